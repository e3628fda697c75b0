"""The few header values that receiving needs, from a window at the start of the data set; pixels are never decoded.

A window bounds memory and time whatever the lengths in the data set claim; a deflated data set is expanded only as far
as the window reaches, and its full size is counted without keeping it.
"""

import math
import re
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, CTImageStorage, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from analysis.errors import QctError
from storage.ct_header import number, text, values

WINDOWS_BYTES = (64 * 1024, 32 * 2**20)  # first try, last try
# a deflated data set may expand to this, or to this many times its own size, whichever is more: beyond, it is a bomb
MAX_EXPANDED_BYTES = 64 * 2**20
MAX_EXPANSION = 100
MAX_TEXT = 256  # characters kept of a text value
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)+")  # PS3.5 9.1, leading zeros tolerated
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = Tag(0x7FE0, 0x0010)
LAST_HEADER_TAG = Tag(0x0028, 0x0103)  # reading stops here, in CT images at the pixel data
KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "AccessionNumber", "Modality",
    "StudyDescription", "SeriesDescription", "PatientID", "SliceThickness", "StudyInstanceUID", "SeriesInstanceUID",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated",
)  # fmt: skip
# what pydicom raises on bytes that are no DICOM data set
MALFORMED = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, OverflowError, EOFError,
    RecursionError, MemoryError, struct.error, zlib.error, BytesLengthException, InvalidDicomError,
)  # fmt: skip


class UnreadableInstanceError(QctError):
    """The data set cannot be understood; the message says what was found and expected."""


class InvalidUidError(QctError):
    """A UID that names the object is missing or is no UID."""


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """What the database keeps of an instance."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    patient_id: str
    accession_number: str
    study_description: str
    series_description: str
    image_type: tuple[str, ...]
    instance_number: int | None
    number_of_frames: int
    slice_position_mm: float | None  # along the slice normal, LPS; None where the image has none
    orientation: str | None  # rounded direction cosines: images with equal text are parallel


@dataclass(frozen=True, slots=True)
class EncodedDataset:
    """Where an encoded data set lies in a file."""

    path: Path
    offset: int
    transfer_syntax_uid: str
    sop_class_uid: str


@dataclass(slots=True)
class _Scan:
    """How far reading came."""

    reached_tag: BaseTag | None = None
    reached_length: int = 0
    value_offset: int = 0


def read_instance_header(source: EncodedDataset) -> InstanceHeader:
    """Read the header values; raises UnreadableInstanceError or InvalidUidError with the reason."""
    try:
        ds, scan, available = _read_window(source)
        header = _header(ds)
    except MALFORMED as exc:
        raise UnreadableInstanceError(f"data set cannot be read: {type(exc).__name__}: {str(exc)[:100]}") from exc
    _check_pixels(ds, scan, available, source.transfer_syntax_uid)
    return header


def is_uid(text_value: str) -> bool:
    """Whether the text is a UID (PS3.5 9.1): digits and dots, at most 64 characters; so it is never a path."""
    return len(text_value) <= 64 and UID_PATTERN.fullmatch(text_value) is not None


def _read_window(source: EncodedDataset) -> tuple[Dataset, _Scan, int]:
    """The header, from the smallest window that holds it, and how many bytes there are in all."""
    total = _expanded_size(source) if _is_deflated(source) else source.path.stat().st_size - source.offset
    for window_bytes in WINDOWS_BYTES:
        window = _window(source, window_bytes)
        whole = len(window) >= total or window_bytes == WINDOWS_BYTES[-1]
        _check_start(window, source.transfer_syntax_uid)
        try:
            ds, scan = _parse(window, source)
        except MALFORMED:
            if whole:
                raise
            continue
        if whole or scan.reached_tag is not None:
            break
    return ds, scan, total


def _parse(window: bytes, source: EncodedDataset) -> tuple[Dataset, _Scan]:
    scan = _Scan()
    buffer = BytesIO(window)
    last_tag = PIXEL_DATA if source.sop_class_uid == CTImageStorage else LAST_HEADER_TAG

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag >= last_tag:
            scan.reached_tag, scan.reached_length, scan.value_offset = tag, length, buffer.tell()
        return tag >= last_tag

    implicit = source.transfer_syntax_uid == ImplicitVRLittleEndian
    ds = read_dataset(buffer, implicit, True, stop_when=stop, specific_tags=[Tag(k) for k in KEYWORDS])
    return ds, scan


def _header(ds: Dataset) -> InstanceHeader:
    position, orientation = _slice_position(ds)
    return InstanceHeader(
        sop_class_uid=_uid(ds, "SOPClassUID"),
        sop_instance_uid=_uid(ds, "SOPInstanceUID"),
        study_instance_uid=_uid(ds, "StudyInstanceUID"),
        series_instance_uid=_uid(ds, "SeriesInstanceUID"),
        modality=_short_text(ds, "Modality")[:16],
        patient_id=_short_text(ds, "PatientID"),
        accession_number=_short_text(ds, "AccessionNumber"),
        study_description=_short_text(ds, "StudyDescription"),
        series_description=_short_text(ds, "SeriesDescription"),
        image_type=tuple(str(v)[:16] for v in values(ds, "ImageType")[:16]),
        instance_number=_whole_number(ds, "InstanceNumber"),
        number_of_frames=_whole_number(ds, "NumberOfFrames") or 1,
        slice_position_mm=position,
        orientation=orientation,
    )


def _uid(ds: Dataset, keyword: str) -> str:
    found = text(ds, keyword) or ""
    if not is_uid(found):
        raise InvalidUidError(f"{keyword} is {'missing' if not found else 'no valid UID'}")
    return found


def _short_text(ds: Dataset, keyword: str) -> str:
    return (text(ds, keyword) or "").replace("\0", "")[:MAX_TEXT]


def _whole_number(ds: Dataset, keyword: str) -> int | None:
    found = number(ds, keyword)
    return int(found) if found is not None and math.isfinite(found) and abs(found) < 2**31 else None


def _slice_position(ds: Dataset) -> tuple[float | None, str | None]:
    """Position along the slice normal (PS3.3 C.7.6.2.1.1) and the orientation as text; (None, None) without them."""
    try:
        x, y, z = (float(v) for v in values(ds, "ImagePositionPatient"))
        rx, ry, rz, cx, cy, cz = (float(v) for v in values(ds, "ImageOrientationPatient"))
    except (TypeError, ValueError):
        return None, None
    normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
    position = normal[0] * x + normal[1] * y + normal[2] * z
    if not math.isfinite(position):
        return None, None
    return round(position, 4), " ".join(f"{v + 0.0:.2f}" for v in (rx, ry, rz, cx, cy, cz))


def _check_pixels(ds: Dataset, scan: _Scan, available: int, transfer_syntax_uid: str) -> None:
    """A single-frame CT image must hold as many pixel bytes as its rows and columns need."""
    if ds.get("SOPClassUID") != CTImageStorage:
        return
    if scan.reached_tag != PIXEL_DATA:
        raise UnreadableInstanceError("CT image without pixel data")
    encapsulated = UID(transfer_syntax_uid).is_encapsulated
    if encapsulated != (scan.reached_length == UNDEFINED_LENGTH):
        found = "native" if encapsulated else "encapsulated"
        raise UnreadableInstanceError(f"{found} pixel data under transfer syntax {transfer_syntax_uid}")
    present = available - scan.value_offset
    declared = 8 if encapsulated else scan.reached_length
    needed = declared if encapsulated else _native_bytes(ds)
    if present < declared or declared < needed:
        raise UnreadableInstanceError(
            f"pixel data truncated: {min(present, declared)} bytes found, {max(needed, declared)} expected"
        )


def _native_bytes(ds: Dataset) -> int:
    sizes = [_whole_number(ds, keyword) for keyword in ("Rows", "Columns", "BitsAllocated")]
    if any(size is None or size <= 0 for size in sizes):
        raise UnreadableInstanceError("CT image without Rows, Columns or BitsAllocated")
    rows, columns, bits = (size or 0 for size in sizes)
    return rows * columns * bits * (_whole_number(ds, "SamplesPerPixel") or 1) // 8


def _check_start(window: bytes, transfer_syntax_uid: str) -> None:
    """The first element must be encoded as the transfer syntax says; pydicom would guess and go on."""
    if len(window) < 8:
        raise UnreadableInstanceError(f"data set of {len(window)} bytes")
    group = struct.unpack("<H", window[:2])[0]
    if not 0x0008 <= group < 0x7FE0:
        raise UnreadableInstanceError(f"data set starts with group {group:04X}, expected 0008")
    explicit = bytes(window[4:6]).isalpha() and bytes(window[4:6]).isupper()
    if explicit == (transfer_syntax_uid == ImplicitVRLittleEndian):
        found = "explicit" if explicit else "implicit"
        raise UnreadableInstanceError(f"data set is {found} VR, transfer syntax {transfer_syntax_uid} was negotiated")


def _is_deflated(source: EncodedDataset) -> bool:
    return source.transfer_syntax_uid == DeflatedExplicitVRLittleEndian


def _window(source: EncodedDataset, window_bytes: int) -> bytes:
    with source.path.open("rb") as file:
        file.seek(source.offset)
        if not _is_deflated(source):
            return file.read(window_bytes)
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(window_bytes), window_bytes)


def _expanded_size(source: EncodedDataset) -> int:
    """Bytes of a deflated data set when expanded, counted in pieces; raises when it is a bomb or broken."""
    limit = max(MAX_EXPANDED_BYTES, MAX_EXPANSION * (source.path.stat().st_size - source.offset))
    with source.path.open("rb") as file:
        file.seek(source.offset)
        return _count_expanded(file, limit)


def _count_expanded(file: BinaryIO, limit: int) -> int:
    expander = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while not expander.eof:
        piece = expander.unconsumed_tail or file.read(WINDOWS_BYTES[0])
        if not piece:
            raise UnreadableInstanceError("deflated data set is truncated")
        size += len(expander.decompress(piece, 2**20))
        if size > limit:
            raise UnreadableInstanceError(f"deflated data set expands beyond {limit >> 20} MiB")
    return size
