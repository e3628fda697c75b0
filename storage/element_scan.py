"""Walks the top-level elements of an encoded little endian data set (PS3.5 chapter 7) without building anything.

Nested sequences are stepped over with a stack, not by recursion: neither depth nor claimed lengths cost memory.
"""

import struct
from collections.abc import Set
from dataclasses import dataclass, field

UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# value representations with a 32-bit length after two reserved bytes (PS3.5 7.1.2)
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_TAG = struct.Struct("<HH")
_LONG = struct.Struct("<I")
_SHORT = struct.Struct("<H")


class BrokenDatasetError(ValueError):
    """The bytes are no data set."""


class WindowEndsError(ValueError):
    """The data set goes on beyond the bytes at hand."""


@dataclass(slots=True)
class Scan:
    """Values of the wanted elements as they stand in the data set, and where the walk stopped."""

    values: dict[int, bytes] = field(default_factory=dict)
    stopped_at: int | None = None  # tag; None: the data set ended before
    stopped_length: int = 0
    stopped_offset: int = 0  # of the value


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    vr: bytes  # b"" in implicit VR
    length: int
    offset: int  # of the value


def scan_elements(window: bytes, *, implicit: bool, wanted: Set[int], stop_tag: int) -> Scan:
    """Collect wanted top-level elements up to the first one at or above `stop_tag`.

    Raises
    ------
    BrokenDatasetError : an element without a valid value representation
    WindowEndsError : the window ends inside an element
    """
    scan = Scan()
    position = 0
    while position < len(window):
        element = _element_at(window, position, implicit)
        if element.tag >= stop_tag:
            scan.stopped_at, scan.stopped_length, scan.stopped_offset = element.tag, element.length, element.offset
            return scan
        if element.length == UNDEFINED_LENGTH:
            position = _end_of_undefined(window, element, implicit)
            continue
        position = element.offset + element.length
        if position > len(window):
            raise WindowEndsError(f"data set ends inside element {name_of(element.tag)}")
        if element.tag in wanted:
            scan.values[element.tag] = window[element.offset : position]
    return scan


def _element_at(window: bytes, position: int, implicit: bool) -> _Element:
    if position + 8 > len(window):
        raise WindowEndsError("data set ends inside the head of an element")
    group, number = _TAG.unpack_from(window, position)
    tag = group << 16 | number
    if implicit or group == 0xFFFE:
        return _Element(tag, b"", _LONG.unpack_from(window, position + 4)[0], position + 8)
    vr = window[position + 4 : position + 6]
    if vr in SHORT_VRS:
        return _Element(tag, vr, _SHORT.unpack_from(window, position + 6)[0], position + 8)
    if vr not in LONG_VRS:
        raise BrokenDatasetError(f"element {name_of(tag)} has no valid value representation")
    if position + 12 > len(window):
        raise WindowEndsError("data set ends inside the head of an element")
    return _Element(tag, vr, _LONG.unpack_from(window, position + 8)[0], position + 12)


def _end_of_undefined(window: bytes, element: _Element, implicit: bool) -> int:
    """Where a sequence (or encapsulated value) of undefined length ends.

    The stack holds, for each open sequence and item, whether it is in implicit VR; a sequence inside UN is (6.2.2).
    """
    open_levels = [implicit or element.vr == b"UN"]
    position = element.offset
    while open_levels:
        inner = _element_at(window, position, open_levels[-1])
        position = inner.offset
        if inner.tag in (ITEM_END, SEQUENCE_END):
            open_levels.pop()
        elif inner.length == UNDEFINED_LENGTH:
            open_levels.append(open_levels[-1] or inner.vr == b"UN")
        else:
            position += inner.length
        if position > len(window):
            raise WindowEndsError(f"data set ends inside sequence {name_of(element.tag)}")
    return position


def name_of(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
