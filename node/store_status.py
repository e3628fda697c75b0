"""C-STORE response statuses that this node answers (PS3.4 table B.2-1, PS3.7 annex C), each with one meaning."""

from dataclasses import dataclass

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
INVALID_OBJECT_INSTANCE = 0x0117  # the SOP Instance UID breaks the rules for UIDs
SOP_CLASS_NOT_SUPPORTED = 0x0122  # the command names another class than its presentation context
OUT_OF_RESOURCES = 0xA700  # disk or database; the sender may try again
DATA_SET_MISMATCH = 0xA900  # data set and command name different objects
KEPT_THE_FIRST = 0xB000  # warning: this UID was here before with other bytes, the first copy is kept
CANNOT_UNDERSTAND = 0xC000
HANDLER_FAULT = 0xC211  # a fault of the node, with a traceback in its log

MAX_COMMENT = 64  # Error Comment (0000,0902) is LO


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of a C-STORE response and the comment that the sender gets."""

    status: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Refusal(Answer):
    """Why an instance is not stored."""


STORED = Answer(SUCCESS)
