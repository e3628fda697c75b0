"""A PNG -> Secondary Capture (PS3.3 A.8): for viewers that show neither SR nor SEG."""

from io import BytesIO

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from node.encoded import EncodedObject, ObjectIdentity, ObjectKind
from node.encoding_task import EncodingTask
from node.source_headers import ascii_text, finish


def encode_picture(png: bytes, kind: ObjectKind, name: str, task: EncodingTask) -> EncodedObject:
    """The picture as an RGB Secondary Capture in the source's study."""
    identity = task.identity(kind, name)
    ds = _secondary_capture(_pixels(png), task, identity)
    ds.PatientOrientation = None  # a page of several pictures has none; highdicom asks for one
    ds.BurnedInAnnotation = "NO"
    ds.BodyPartExamined = "LSPINE"
    ds.DerivationDescription = ascii_text(task.settings.use_statement)
    ds.ImageType = ["DERIVED", "SECONDARY"]
    return EncodedObject(kind, finish(ds, task.headers[0], identity))


def _secondary_capture(pixels: NDArray[np.uint8], task: EncodingTask, identity: ObjectIdentity) -> Dataset:
    settings = task.settings
    ds = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=task.images[0], pixel_array=pixels, photometric_interpretation="RGB", bits_allocated=8,
        coordinate_system="PATIENT", patient_orientation=("L", "F"),
        series_instance_uid=identity.series_instance_uid, series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid, instance_number=1, manufacturer=ascii_text(settings.manufacturer),
        manufacturer_model_name=ascii_text(settings.model_name), software_versions=settings.software_version,
        series_description=identity.description,
    )
    ds.copy_patient_and_study_information(task.images[0])
    return ds


def _pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)
