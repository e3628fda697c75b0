"""The few header values that receiving needs, from a window at the start of the data set; pixels are never decoded.

A window bounds memory and time whatever the lengths in the data set claim; a deflated data set is expanded only as far
as the window reaches, and its full size is counted without keeping it.
"""

import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.uid import UID, CTImageStorage, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from analysis.errors import QctError
from storage.element_scan import UNDEFINED_LENGTH, BrokenDatasetError, Scan, WindowEndsError, scan_elements

WINDOWS_BYTES = (64 * 1024, 32 * 2**20)  # first try, last try
# a deflated data set may expand to this, or to this many times its own size, whichever is more: beyond, it is a bomb
MAX_EXPANDED_BYTES = 64 * 2**20
MAX_EXPANSION = 100
MAX_TEXT = 256  # characters kept of a text value
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)+")  # PS3.5 9.1, leading zeros tolerated

CHARACTER_SET, IMAGE_TYPE, SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080005, 0x00080008, 0x00080016, 0x00080018
ACCESSION_NUMBER, MODALITY, STUDY_DESCRIPTION, SERIES_DESCRIPTION = 0x00080050, 0x00080060, 0x00081030, 0x0008103E
PATIENT_ID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID = 0x00100020, 0x0020000D, 0x0020000E
INSTANCE_NUMBER, IMAGE_POSITION, IMAGE_ORIENTATION = 0x00200013, 0x00200032, 0x00200037
SAMPLES_PER_PIXEL, NUMBER_OF_FRAMES, ROWS, COLUMNS, BITS_ALLOCATED = (
    0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip
PIXEL_DATA = 0x7FE00010
AFTER_HEADER = 0x00280103  # reading stops here, in CT images at the pixel data
WANTED = frozenset({
    CHARACTER_SET, IMAGE_TYPE, SOP_CLASS_UID, SOP_INSTANCE_UID, ACCESSION_NUMBER, MODALITY, STUDY_DESCRIPTION,
    SERIES_DESCRIPTION, PATIENT_ID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, INSTANCE_NUMBER, IMAGE_POSITION,
    IMAGE_ORIENTATION, SAMPLES_PER_PIXEL, NUMBER_OF_FRAMES, ROWS, COLUMNS, BITS_ALLOCATED,
})  # fmt: skip


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
    """Where an encoded data set lies in a file; `head` is its first bytes, for who has them in memory already."""

    path: Path
    offset: int
    transfer_syntax_uid: str
    sop_class_uid: str
    head: bytes = b""


def read_instance_header(source: EncodedDataset) -> InstanceHeader:
    """Read the header values; raises UnreadableInstanceError or InvalidUidError with the reason."""
    try:
        scan, available = _scan_window(source)
    except (BrokenDatasetError, WindowEndsError, zlib.error) as exc:
        raise UnreadableInstanceError(str(exc)) from exc
    header = _header(scan.values)
    _check_pixels(header.sop_class_uid, scan, available, source.transfer_syntax_uid)
    return header


def is_uid(text_value: str) -> bool:
    """Whether the text is a UID (PS3.5 9.1): digits and dots, at most 64 characters; so it is never a path."""
    return len(text_value) <= 64 and UID_PATTERN.fullmatch(text_value) is not None


def _scan_window(source: EncodedDataset) -> tuple[Scan, int]:
    """The header, from the smallest window that holds it, and how many bytes there are in all."""
    total = _expanded_size(source) if _is_deflated(source) else source.path.stat().st_size - source.offset
    implicit = source.transfer_syntax_uid == ImplicitVRLittleEndian
    stop_tag = PIXEL_DATA if source.sop_class_uid == CTImageStorage else AFTER_HEADER
    for window_bytes in WINDOWS_BYTES:
        window = _window(source, window_bytes)
        _check_start(window, source.transfer_syntax_uid)
        try:
            return scan_elements(window, implicit=implicit, wanted=WANTED, stop_tag=stop_tag), total
        except WindowEndsError:
            if len(window) >= total:
                raise
    raise UnreadableInstanceError(f"no image within the first {WINDOWS_BYTES[-1] >> 20} MiB of header")


def _header(values: dict[int, bytes]) -> InstanceHeader:
    position, orientation = _slice_position(values)
    return InstanceHeader(
        sop_class_uid=_uid(values, SOP_CLASS_UID, "SOP Class UID"),
        sop_instance_uid=_uid(values, SOP_INSTANCE_UID, "SOP Instance UID"),
        study_instance_uid=_uid(values, STUDY_INSTANCE_UID, "Study Instance UID"),
        series_instance_uid=_uid(values, SERIES_INSTANCE_UID, "Series Instance UID"),
        modality=_text(values, MODALITY)[:16],
        patient_id=_text(values, PATIENT_ID),
        accession_number=_text(values, ACCESSION_NUMBER),
        study_description=_text(values, STUDY_DESCRIPTION),
        series_description=_text(values, SERIES_DESCRIPTION),
        image_type=tuple(part.strip() for part in _text(values, IMAGE_TYPE).split("\\") if part.strip()),
        instance_number=_whole_number(values, INSTANCE_NUMBER),
        number_of_frames=_whole_number(values, NUMBER_OF_FRAMES) or 1,
        slice_position_mm=position,
        orientation=orientation,
    )


def _uid(values: dict[int, bytes], tag: int, name: str) -> str:
    found = values.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")
    if not is_uid(found):
        raise InvalidUidError(f"{name} is {'no valid UID' if found else 'missing'}")
    return found


def _text(values: dict[int, bytes], tag: int) -> str:
    """The text in the object's own character set, shortened, without padding."""
    value = values.get(tag, b"")
    if value.isascii():
        text = value.decode("ascii")
    else:
        sets = [
            part.strip() for part in _text({CHARACTER_SET: values.get(CHARACTER_SET, b"")}, CHARACTER_SET).split("\\")
        ]
        text = decode_bytes(value, _encodings(sets), {"\\"})
    return text.replace("\0", "").strip()[:MAX_TEXT]


def _encodings(character_sets: list[str]) -> list[str]:
    """Python's names of the character sets; one that nobody knows is read as Latin-1."""
    try:
        return list(convert_encodings(character_sets))
    except LookupError:
        return ["latin-1"]


def _decimals(values: dict[int, bytes], tag: int) -> list[float]:
    """Numbers of a DS or IS element; a value that is no number becomes NaN."""
    found = []
    for part in values.get(tag, b"").rstrip(b"\0 ").split(b"\\"):
        try:
            found.append(float(part))
        except ValueError:
            found.append(math.nan)
    return found


def _whole_number(values: dict[int, bytes], tag: int) -> int | None:
    number = _decimals(values, tag)[0]
    return int(number) if math.isfinite(number) and abs(number) < 2**31 else None


def _slice_position(values: dict[int, bytes]) -> tuple[float | None, str | None]:
    """Position along the slice normal (PS3.3 C.7.6.2.1.1) and the orientation as text; (None, None) without them."""
    position = _decimals(values, IMAGE_POSITION)
    cosines = _decimals(values, IMAGE_ORIENTATION)
    if len(position) != 3 or len(cosines) != 6:
        return None, None
    rx, ry, rz, cx, cy, cz = cosines
    normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
    along_mm = sum(n * p for n, p in zip(normal, position, strict=True))
    if not math.isfinite(along_mm):
        return None, None
    return round(along_mm, 4), " ".join(f"{cosine + 0.0:.2f}" for cosine in cosines)


def _check_pixels(sop_class_uid: str, scan: Scan, available: int, transfer_syntax_uid: str) -> None:
    """A single-frame CT image must hold as many pixel bytes as its rows and columns need."""
    if sop_class_uid != CTImageStorage:
        return
    if scan.stopped_at != PIXEL_DATA:
        raise UnreadableInstanceError("CT image without pixel data")
    encapsulated = UID(transfer_syntax_uid).is_encapsulated
    if encapsulated != (scan.stopped_length == UNDEFINED_LENGTH):
        found = "native" if encapsulated else "encapsulated"
        raise UnreadableInstanceError(f"{found} pixel data under another kind of transfer syntax")
    present = available - scan.stopped_offset
    declared = 8 if encapsulated else scan.stopped_length
    needed = declared if encapsulated else _native_bytes(scan.values)
    if present < declared or declared < needed:
        raise UnreadableInstanceError(f"pixel data: {min(present, declared)} bytes, {max(needed, declared)} expected")


def _native_bytes(values: dict[int, bytes]) -> int:
    rows, columns, bits = (_unsigned(values, tag) for tag in (ROWS, COLUMNS, BITS_ALLOCATED))
    if 0 in (rows, columns, bits):
        raise UnreadableInstanceError("CT image without Rows, Columns or Bits Allocated")
    return rows * columns * bits * max(_unsigned(values, SAMPLES_PER_PIXEL), 1) // 8


def _unsigned(values: dict[int, bytes], tag: int) -> int:
    return int.from_bytes(values.get(tag, b"")[:2], "little")


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
    return source.transfer_syntax_uid == str(DeflatedExplicitVRLittleEndian)


def _window(source: EncodedDataset, window_bytes: int) -> bytes:
    if len(source.head) >= window_bytes and not _is_deflated(source):
        return source.head[:window_bytes]
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
