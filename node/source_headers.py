"""What the encoders take from the source series: identity, geometry, references.

Patient and study attributes go into our objects exactly as the scanner wrote them. highdicom checks some of them while
it builds (sex, dates, character set), so it is given harmless stand-ins and the originals are put back afterwards.
"""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
from highdicom import PixelMeasuresSequence
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage

from analysis.errors import EncodingError
from node.encoded import EncodingSettings, ObjectIdentity
from node.frame_references import MULTI_FRAME_CLASSES, stand_in
from node.result_uids import derive_uid

#: Patient and General Study attributes, type 2: present in every object, empty when the scanner sent none.
IDENTITY_KEYWORDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)
_STAND_INS = {"PatientSex": "", "PatientBirthDate": "", "StudyDate": None, "StudyTime": None, "PatientName": None,
              "ReferringPhysicianName": None}
_SLICE_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
)
_REQUEST_KEYWORDS = (
    "StudyInstanceUID", "ReferencedStudySequence", "AccessionNumber", "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest", "RequestedProcedureID", "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
)
_REPLACEMENTS = {"\u00b1": "+/-", "\u00b3": "3", "\u00b2": "2", "\u00b5": "u", "\u03bc": "u", "\u03c3": "sigma",
                 "\u2013": "-", "\u2212": "-", "\u2264": "<=", "\u2265": ">=", "\u00df": "ss", "\u00b0": " deg"}


def source_images(headers: Sequence[Dataset], settings: EncodingSettings) -> list[Dataset]:
    """Lean copies of the slices' headers that highdicom accepts, in the same order; the first carries the identity.

    Raises
    ------
    EncodingError : no slices, no CT, or no UID without which nothing can be referenced
    """
    check_sources(headers)
    first = identity_source(headers[0])
    slices = [_slice(ds, settings) for ds in headers]
    for keyword in _SLICE_KEYWORDS:
        if keyword in slices[0]:
            first[keyword] = _own(slices[0][keyword])
    return [first, *slices[1:]]


def check_sources(headers: Sequence[Dataset]) -> None:
    if not headers:
        raise EncodingError("no source headers given; expected those of the analysed series")
    for ds in headers:
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not ds.get(keyword):
                raise EncodingError(f"a source image has no {keyword}; results cannot refer to it")
    if headers[0].SOPClassUID not in (CTImageStorage, *MULTI_FRAME_CLASSES):
        raise EncodingError(f"source SOP class is {headers[0].SOPClassUID}; expected CT or enhanced CT Image Storage")
    if len({ds.SeriesInstanceUID for ds in headers}) != 1:
        raise EncodingError("source headers are of several series; expected one")


def identity_source(header: Dataset) -> Dataset:
    """Copy of the header with every type 2 identity attribute present and acceptable to highdicom."""
    copy = Dataset()
    for element in header:
        copy.add(_own(element))
    for keyword in IDENTITY_KEYWORDS:
        if keyword not in copy:
            setattr(copy, keyword, "")
    for keyword, value in _STAND_INS.items():
        setattr(copy, keyword, value)
    if "SpecificCharacterSet" in copy:
        del copy.SpecificCharacterSet
    return copy


def finish(ds: Dataset, header: Dataset, identity: ObjectIdentity) -> Dataset:
    """Put back the scanner's identity attributes and state times, time zone and institution; returns `ds`."""
    for keyword in ("SpecificCharacterSet", *IDENTITY_KEYWORDS):
        if keyword in header:
            ds[keyword] = _own(header[keyword])
        elif keyword == "SpecificCharacterSet":
            _remove(ds, keyword)
        else:
            ds.add(DataElement(Tag(keyword), dictionary_VR(keyword), None))
    for keyword in ("TimezoneOffsetFromUTC", "InstitutionName"):
        if header.get(keyword):
            ds[keyword] = _own(header[keyword])
    _state_times(ds, header, identity.created)
    for equipment in ds.get("ContributingEquipmentSequence") or ():
        _remove(equipment, "ContributionDateTime")  # highdicom states its own clock for the scanner's contribution
    ds.StationName = ascii_text(identity.settings.station_name)[:16]
    return ds


def requested_procedures(header: Dataset) -> list[Dataset] | None:
    """Items of Referenced Request Sequence (PS3.3 C.17.2) from the CT's Request Attributes Sequence."""
    items = []
    for request in header.get("RequestAttributesSequence") or ():
        item = Dataset()
        for keyword in _REQUEST_KEYWORDS:
            source = request if keyword in request else header
            value = source[keyword].value if keyword in source else None
            setattr(item, keyword, [] if keyword.endswith("Sequence") and not value else value)
        items.append(item)
    return items or None


def pixel_measures(headers: Sequence[Dataset]) -> PixelMeasuresSequence:
    """Pixel spacing as stored; slice spacing from the positions, never from the header's claim."""
    spacing_mm = slice_spacing_mm(headers)
    thickness_mm = headers[0].get("SliceThickness") or spacing_mm
    return PixelMeasuresSequence(
        pixel_spacing=[float(value) for value in headers[0].PixelSpacing],
        slice_thickness=round(float(thickness_mm), 6), spacing_between_slices=round(spacing_mm, 6),
    )


def slice_spacing_mm(headers: Sequence[Dataset]) -> float:
    """Distance between neighbouring slices along their normal; the slice thickness for a single slice."""
    along = positions_mm(headers) @ slice_normal(headers[0])
    if len(along) < 2:
        return float(headers[0].get("SliceThickness") or 1.0)
    return float(abs(along[-1] - along[0]) / (len(along) - 1))


def slice_normal(header: Dataset) -> NDArray[np.float64]:
    """Unit normal of the image plane: row direction x column direction (PS3.3 C.7.6.2.1.1)."""
    orientation = np.asarray(header.ImageOrientationPatient, dtype=np.float64)
    normal = np.cross(orientation[:3], orientation[3:])
    return np.asarray(normal / np.linalg.norm(normal))


def positions_mm(headers: Sequence[Dataset]) -> NDArray[np.float64]:
    """ImagePositionPatient of each slice, (slices, 3), LPS mm."""
    return np.asarray([[float(v) for v in ds.ImagePositionPatient] for ds in headers], dtype=np.float64)


def to_lps_mm(header: Dataset, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """(column, row) indices of pixel centres in one slice, (n, 2) -> LPS mm, (n, 3)."""
    orientation = np.asarray(header.ImageOrientationPatient, dtype=np.float64)
    row_spacing_mm, column_spacing_mm = (float(value) for value in header.PixelSpacing)
    steps_mm = np.stack([orientation[:3] * column_spacing_mm, orientation[3:] * row_spacing_mm])
    return np.asarray(positions_mm([header])[0] + pixels @ steps_mm)


def ascii_text(text: str) -> str:
    """Our own wording in ASCII, which every character set of a source can hold; patient attributes never pass here."""
    for found, replacement in _REPLACEMENTS.items():
        text = text.replace(found, replacement)
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _own(element: DataElement) -> DataElement:
    """The element in an object of its own: setting an attribute changes the element, which must not be the source's."""
    return DataElement(element.tag, element.VR, element.value, already_converted=True)


def _slice(ds: Dataset, settings: EncodingSettings) -> Dataset:
    copy = Dataset()
    for keyword in _SLICE_KEYWORDS:
        if keyword in ds:
            copy[keyword] = _own(ds[keyword])
    copy.SOPClassUID, copy.SOPInstanceUID = stand_in(ds)
    if not copy.get("SliceThickness"):
        copy.SliceThickness = None
    if not copy.get("FrameOfReferenceUID"):
        copy.FrameOfReferenceUID = derive_uid(settings.uid_root, ("frame of reference", str(ds.SeriesInstanceUID)))
    return copy


def _state_times(ds: Dataset, header: Dataset, created: datetime) -> None:
    """All times of a data set are in its Timezone Offset From UTC (PS3.3 C.12.1.1)."""
    local = created.astimezone(_time_zone(header))
    for name in ("InstanceCreation", "Series", "Content"):
        if name != "Content" or "ContentDate" in ds:
            setattr(ds, f"{name}Date", local.strftime("%Y%m%d"))
            setattr(ds, f"{name}Time", local.strftime("%H%M%S"))


def _time_zone(header: Dataset) -> timezone | None:
    """The source's zone; None, the process' own zone, when it states none or nonsense."""
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    if len(offset) != 5 or offset[0] not in "+-" or not offset[1:].isdigit():
        return None
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)) if minutes < 24 * 60 else UTC


def _remove(ds: Dataset, keyword: str) -> None:
    if keyword in ds:
        delattr(ds, keyword)
