"""A simulated volume -> a CT series in DICOM, with headers taken over from a real series when one is given."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from analysis.errors import UnusableSeriesError
from analysis.version import SOFTWARE_NAME, SOFTWARE_VERSION
from analysis.volume import CtVolume

RESCALE_INTERCEPT_HU = -1024
# attributes of a real series that describe its own slices or object and are never taken over
OWN_KEYWORDS = (
    "PixelData", "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation",
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "InstanceNumber", "RescaleType",
    "PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue", "ContrastBolusAgent", "PatientAge",
    "ContrastBolusAgentSequence", "ReferencedImageSequence", "PatientBirthDate", "TimezoneOffsetFromUTC",
    "AcquisitionDateTime", "BurnedInAnnotation",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SimulatedIdentity:
    """Who and what the simulated series says it is."""

    patient_id: str
    patient_name: str
    series_description: str
    acquired: datetime  # timezone-aware
    kvp: float = 120.0
    patient_sex: str = "O"
    patient_birth_date: str = ""
    contrast_bolus_agent: str = ""


def header_like(folder: Path) -> Dataset:
    """The header of one slice of a real series, without what belongs to its own slices.

    Raises
    ------
    UnusableSeriesError : NO_SUITABLE_SERIES when the folder holds no DICOM CT
    """
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            ds = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if ds.get("Modality") == "CT":
            for keyword in OWN_KEYWORDS:
                if keyword in ds:
                    delattr(ds, keyword)
            ds.remove_private_tags()
            return ds
    raise UnusableSeriesError(
        "NO_SUITABLE_SERIES", f"no DICOM CT slice found in {folder}; a folder of a CT series expected"
    )


def default_header() -> Dataset:
    """A scanner that does not exist, set up as the reference protocol says."""
    ds = Dataset()
    ds.Manufacturer, ds.ManufacturerModelName = "SIMULATED", "CT-1"
    ds.DeviceSerialNumber, ds.StationName, ds.SoftwareVersions = "SIM-0001", "SIMCT", "1.0"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.KVP, ds.FilterType, ds.ConvolutionKernel = "120", "BODY FILTER", "STANDARD"
    ds.XRayTubeCurrent, ds.ExposureModulationType = "220", "XYZ"
    ds.DataCollectionDiameter, ds.ReconstructionDiameter = "500", "500"
    ds.TableHeight, ds.GantryDetectorTilt, ds.SpiralPitchFactor = "150", "0", 0.98
    ds.PatientPosition = "HFS"
    return ds


def write_series(volume: CtVolume, like: Dataset, identity: SimulatedIdentity, folder: Path) -> tuple[Path, ...]:
    """Write one classic CT instance per slice; names are IM0001.dcm ... in slice order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(_slices(volume, like, identity), start=1):
        path = folder / f"IM{number:04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def _slices(volume: CtVolume, like: Dataset, identity: SimulatedIdentity) -> Iterator[Dataset]:
    common = _common_header(volume, like, identity)
    stored = np.clip(np.rint(volume.hu) - RESCALE_INTERCEPT_HU, 0, 4095 * 4).astype(np.uint16)
    for index in range(stored.shape[0]):
        ds = FileDataset("", common, file_meta=_file_meta(), preamble=b"\0" * 128)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
        position = volume.affine[:3, 0] * index + volume.affine[:3, 3]
        ds.ImagePositionPatient = _decimals(position)
        ds.SliceLocation = f"{position[2]:.3f}"
        ds.InstanceNumber = index + 1
        ds.PixelData = stored[index].tobytes()
        yield ds


def _file_meta() -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _common_header(volume: CtVolume, like: Dataset, identity: SimulatedIdentity) -> Dataset:
    ds = Dataset()
    ds.update(like)
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    _identify(ds, identity)
    spacing_mm = volume.spacing_mm
    ds.Rows, ds.Columns = volume.hu.shape[1:]
    ds.PixelSpacing = [f"{spacing_mm[1]:.6f}", f"{spacing_mm[2]:.6f}"]
    ds.SliceThickness = f"{spacing_mm[0]:.4f}"
    ds.ReconstructionDiameter = f"{spacing_mm[2] * volume.hu.shape[2]:.3f}"
    ds.ImageOrientationPatient = _decimals(
        np.concatenate([volume.affine[:3, 2] / spacing_mm[2], volume.affine[:3, 1] / spacing_mm[1]])
    )
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", str(RESCALE_INTERCEPT_HU), "HU"
    return ds


def _identify(ds: Dataset, identity: SimulatedIdentity) -> None:
    ds.PatientID, ds.PatientName = identity.patient_id, identity.patient_name
    ds.PatientSex, ds.PatientBirthDate = identity.patient_sex, identity.patient_birth_date
    ds.SeriesDescription, ds.KVP = identity.series_description, f"{identity.kvp:g}"
    ds.StudyDescription = "Simulated CT"
    ds.ImageComments = f"Simulated by {SOFTWARE_NAME} {SOFTWARE_VERSION}; not a patient"
    ds.AccessionNumber, ds.StudyID, ds.SeriesNumber = ds.get("AccessionNumber", ""), ds.get("StudyID", ""), 1
    ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "", ""
    if identity.contrast_bolus_agent:
        ds.ContrastBolusAgent = identity.contrast_bolus_agent
    for level in ("Study", "Series", "Acquisition", "Content"):
        setattr(ds, f"{level}Date", identity.acquired.strftime("%Y%m%d"))
        setattr(ds, f"{level}Time", identity.acquired.strftime("%H%M%S"))
    ds.TimezoneOffsetFromUTC = identity.acquired.strftime("%z") or "+0000"


def _decimals(numbers: NDArray[np.float64]) -> list[str]:
    """DS values of at most 16 characters."""
    return [f"{value:.6f}"[:16] for value in numbers]
