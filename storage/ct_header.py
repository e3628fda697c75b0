"""A series' DICOM attributes as the analysis sees them: absent stays None, times become UTC."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

from analysis.results import SeriesHeader

DAYS_PER_YEAR = 365.2425
_AGE_UNITS_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / DAYS_PER_YEAR, "D": 1 / DAYS_PER_YEAR}


def read_header(datasets: Sequence[Dataset], spacing_mm: float, site_timezone: tzinfo = UTC) -> SeriesHeader:
    """Header of a series from its slices in order; `site_timezone` is used where the images state none."""
    first = datasets[0]
    acquired = acquired_utc(first, site_timezone)
    return SeriesHeader(
        series_instance_uid=text(first, "SeriesInstanceUID") or "",
        study_instance_uid=text(first, "StudyInstanceUID") or "",
        frame_of_reference_uid=text(first, "FrameOfReferenceUID"),
        acquired=acquired,
        manufacturer=text(first, "Manufacturer"),
        manufacturer_model_name=text(first, "ManufacturerModelName"),
        device_serial_number=text(first, "DeviceSerialNumber"),
        station_name=text(first, "StationName"),
        software_versions=text(first, "SoftwareVersions"),
        date_of_last_calibration=text(first, "DateOfLastCalibration"),
        kvp=number(first, "KVP"),
        tube_current_ma=_range(datasets, "XRayTubeCurrent"),
        exposure_modulation_type=text(first, "ExposureModulationType"),
        filter_type=text(first, "FilterType"),
        data_collection_diameter_mm=number(first, "DataCollectionDiameter"),
        reconstruction_diameter_mm=number(first, "ReconstructionDiameter"),
        convolution_kernel=text(first, "ConvolutionKernel"),
        slice_thickness_mm=number(first, "SliceThickness"),
        spacing_between_slices_mm=spacing_mm,
        pixel_spacing_mm=(float(first.PixelSpacing[0]), float(first.PixelSpacing[1])),
        table_height_mm=number(first, "TableHeight"),
        spiral_pitch_factor=number(first, "SpiralPitchFactor"),
        gantry_detector_tilt_deg=number(first, "GantryDetectorTilt"),
        patient_position=text(first, "PatientPosition"),
        image_type=tuple(str(v) for v in values(first, "ImageType")),
        contrast_bolus_agent=text(first, "ContrastBolusAgent"),
        lossy=any(text(ds, "LossyImageCompression") == "01" for ds in datasets),
        rows=int(first.Rows),
        columns=int(first.Columns),
        n_slices=len(datasets),
        series_description=text(first, "SeriesDescription") or "",
        protocol_name=text(first, "ProtocolName") or "",
        patient_sex=text(first, "PatientSex"),
        patient_age_years=patient_age_years(first, acquired),
    )


def values(ds: Dataset, keyword: str) -> tuple[Any, ...]:
    """All values of an attribute; () when absent or empty."""
    value = ds.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, MultiValue | list | tuple) else (value,)


def text(ds: Dataset, keyword: str) -> str | None:
    """The attribute as one string, several values joined by backslash as in DICOM; None when absent or blank."""
    joined = "\\".join(str(v).strip() for v in values(ds, keyword))
    return joined or None


def number(ds: Dataset, keyword: str) -> float | None:
    """The first value as a number; None when absent or not a number."""
    try:
        return float(values(ds, keyword)[0])
    except (IndexError, TypeError, ValueError):
        return None


def _range(datasets: Sequence[Dataset], keyword: str) -> tuple[float, float] | None:
    found = [value for ds in datasets if (value := number(ds, keyword)) is not None]
    return (min(found), max(found)) if found else None


def acquired_utc(ds: Dataset, site_timezone: tzinfo) -> datetime | None:
    """When the images were acquired, in UTC; falls back from acquisition to content, series and study."""
    zone = _timezone(ds) or site_timezone
    combined: list[tuple[str, str | None]] = [("AcquisitionDateTime", None)]
    combined += [(f"{level}Date", f"{level}Time") for level in ("Acquisition", "Content", "Series", "Study")]
    for date_keyword, time_keyword in combined:
        stamp = (text(ds, date_keyword) or "") + (text(ds, time_keyword) or "" if time_keyword else "")
        if parsed := _parse(stamp, zone):
            return parsed.astimezone(UTC)
    return None


def _timezone(ds: Dataset) -> timezone | None:
    offset = text(ds, "TimezoneOffsetFromUTC")
    if not offset or len(offset) != 5 or not offset[1:].isdigit():
        return None
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


def _parse(stamp: str, zone: tzinfo) -> datetime | None:
    """DICOM DT or DA+TM text: YYYYMMDD[HHMM[SS[.FFFFFF]]][&ZZXX]."""
    digits, _, fraction = stamp.partition(".")
    if digits[-5:-4] in ("+", "-"):
        digits = digits[:-5]
    digits = digits.replace(".", "").replace(":", "")
    if len(digits) < 8 or not digits[:14].isdigit():
        return None
    try:
        parsed = datetime.strptime(digits[:14].ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return None
    micros = fraction[:6].rstrip("+-")
    return parsed.replace(microsecond=int(micros.ljust(6, "0")) if micros.isdigit() else 0, tzinfo=zone)


def patient_age_years(ds: Dataset, acquired: datetime | None) -> float | None:
    """Age at acquisition from PatientBirthDate, else from PatientAge (PS3.5: nnnD, nnnW, nnnM, nnnY)."""
    born = _parse(text(ds, "PatientBirthDate") or "", UTC)
    if born and acquired and acquired > born:
        return (acquired - born).days / DAYS_PER_YEAR
    age = text(ds, "PatientAge") or ""
    if len(age) == 4 and age[:3].isdigit() and age[3] in _AGE_UNITS_YEARS:
        return int(age[:3]) * _AGE_UNITS_YEARS[age[3]]
    return None
