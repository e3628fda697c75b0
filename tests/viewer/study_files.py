"""A small study for viewers: CT slices with pixels that show the vertebrae, and all results of it."""

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from analysis.results import PatientResult
from node.encode_results import encode_patient_result
from node.encoded import Attachments, EncodedObject, EncodingSettings
from tests.result_builders import CREATED, Grid, make_headers, make_result

GRID = Grid(n_slices=40, rows=128, columns=128, spacing_mm=(2.0, 1.2, 1.2), origin_lps_mm=(-77.0, -77.0, -300.0))


def viewer_study(settings: EncodingSettings) -> tuple[list[Dataset], PatientResult, tuple[EncodedObject, ...]]:
    """CT images, the result, and its objects."""
    headers = make_headers(GRID, name="viewer")
    result = make_result(headers)
    objects = encode_patient_result(result, headers, settings, attachments=Attachments(created=CREATED))
    return ct_images(headers, result), result, objects


def ct_images(headers: Sequence[Dataset], result: PatientResult) -> list[Dataset]:
    """Soft tissue around cortical and cancellous bone, with noise."""
    assert result.segmentation is not None
    noise = np.random.default_rng(0)
    hu_of = np.array([40, 300, 420, 140])  # nothing, posterior elements, cortex, cancellous bone
    return [
        _image(header, hu_of[body] + noise.normal(0, 15, body.shape))
        for header, body in zip(headers, result.segmentation.body, strict=True)
    ]


def _image(header: Dataset, hu: np.ndarray) -> Dataset:
    ds = Dataset()
    ds.update({element.tag: element for element in header})
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 1, 1
    ds.PhotometricInterpretation, ds.RescaleSlope, ds.RescaleIntercept = "MONOCHROME2", 1, 0
    ds.RescaleType, ds.WindowCenter, ds.WindowWidth, ds.KVP = "HU", 200, 800, 120
    ds.PatientPosition = "HFS"
    ds.PixelData = np.round(hu).astype(np.int16).tobytes()
    ds.ensure_file_meta()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds
