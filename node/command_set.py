"""C-STORE command sets as bytes (PS3.7 6.3.1 and 9.3.1): implicit VR little endian, read and written directly.

Only C-STORE goes this way, once per image; every other message is left to pynetdicom.
"""

import struct
from dataclasses import dataclass

AFFECTED_SOP_CLASS_UID = 0x00000002
COMMAND_FIELD = 0x00000100
MESSAGE_ID = 0x00000110
MESSAGE_ID_BEING_RESPONDED_TO = 0x00000120
COMMAND_DATA_SET_TYPE = 0x00000800
STATUS = 0x00000900
ERROR_COMMENT = 0x00000902
AFFECTED_SOP_INSTANCE_UID = 0x00001000
C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
NO_DATA_SET = 0x0101

P_DATA_TF = 0x04
LAST_COMMAND_FRAGMENT = 0x03  # message control header (PS3.8 annex E.2)


@dataclass(frozen=True, slots=True)
class StoreCommand:
    """A C-STORE-RQ: its UIDs are as sent and may be anything."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """A C-STORE-RSP; empty UIDs are left out."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    status: int
    comment: str = ""


def parse_store_command(encoded: bytes) -> StoreCommand | None:
    """The command set as a C-STORE-RQ, or None when it is another command; ValueError when it is broken."""
    elements = _parse(encoded)
    if _us(elements, COMMAND_FIELD) != C_STORE_RQ:
        return None
    return StoreCommand(
        message_id=_us(elements, MESSAGE_ID),
        sop_class_uid=_ui(elements, AFFECTED_SOP_CLASS_UID),
        sop_instance_uid=_ui(elements, AFFECTED_SOP_INSTANCE_UID),
        has_data_set=_us(elements, COMMAND_DATA_SET_TYPE) != NO_DATA_SET,
    )


def announces_data_set(encoded: bytes) -> bool:
    """Whether a data set follows this command set."""
    return _us(_parse(encoded), COMMAND_DATA_SET_TYPE) != NO_DATA_SET


def store_answer_pdu(context_id: int, answer: StoreAnswer) -> bytes:
    """A whole P-DATA-TF PDU (PS3.8 9.3.5) with the response; shorter than any maximum length that is allowed."""
    elements = b""
    if answer.sop_class_uid:
        elements += _element(AFFECTED_SOP_CLASS_UID, _even(answer.sop_class_uid, b"\0"))
    elements += _element(COMMAND_FIELD, struct.pack("<H", C_STORE_RSP))
    elements += _element(MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", answer.message_id))
    elements += _element(COMMAND_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET))
    elements += _element(STATUS, struct.pack("<H", answer.status))
    if answer.comment:
        elements += _element(ERROR_COMMENT, _even(answer.comment, b" "))
    if answer.sop_instance_uid:
        elements += _element(AFFECTED_SOP_INSTANCE_UID, _even(answer.sop_instance_uid, b"\0"))
    command = _element(0, struct.pack("<I", len(elements))) + elements
    return (
        struct.pack(">BBIIBB", P_DATA_TF, 0, len(command) + 6, len(command) + 2, context_id, LAST_COMMAND_FRAGMENT)
        + command
    )


def _parse(encoded: bytes) -> dict[int, bytes]:
    elements = {}
    position = 0
    while position < len(encoded):
        group, element, length = struct.unpack_from("<HHI", encoded, position)
        position += 8
        if length > len(encoded) - position:
            raise ValueError(f"element ({group:04X},{element:04X}) of {length} bytes reaches beyond the command set")
        elements[group << 16 | element] = encoded[position : position + length]
        position += length
    return elements


def _us(elements: dict[int, bytes], tag: int) -> int:
    value = elements.get(tag, b"")
    if len(value) != 2:
        raise ValueError(f"command element ({tag >> 16:04X},{tag & 0xFFFF:04X}) has {len(value)} bytes, expected 2")
    return int.from_bytes(value, "little")


def _ui(elements: dict[int, bytes], tag: int) -> str:
    return elements.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")


def _element(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _even(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)
