"""What an answer of the destination means for the object: stored, refused for now, or refused for good.

C-STORE statuses: PS3.4 table B.2-1 and PS3.7 annex C. Association rejections: PS3.8 table 9-21. Failure reasons of a
storage commitment: PS3.3 C.14.1.1.
"""

from dataclasses import dataclass
from enum import Enum


class Meaning(Enum):
    STORED = "stored"
    FOR_NOW = "refused for now"  # try again later
    FOR_GOOD = "refused for good"  # another attempt would end the same way
    NO_CONTEXT = "class not accepted"  # another form of the object may be


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with its meaning, in words for the outbox and the log."""

    meaning: Meaning
    text: str


# lowest and highest status, meaning, words; the first row that holds the status decides
STORE_STATUSES: tuple[tuple[int, int, Meaning, str], ...] = (
    (0x0000, 0x0000, Meaning.STORED, "success"),
    (0x0107, 0x0107, Meaning.STORED, "stored with a warning: attribute list error"),
    (0x0111, 0x0111, Meaning.STORED, "the destination has this object already"),
    (0x0116, 0x0116, Meaning.STORED, "stored with a warning: attribute value out of range"),
    (0x0001, 0x0001, Meaning.STORED, "stored with a warning"),
    (0xB000, 0xBFFF, Meaning.STORED, "stored with a warning: coerced or dropped elements"),
    (0x0110, 0x0110, Meaning.FOR_NOW, "processing failure"),
    (0x0210, 0x0210, Meaning.FOR_NOW, "duplicate invocation"),
    (0x0213, 0x0213, Meaning.FOR_NOW, "resource limitation"),
    (0xA700, 0xA7FF, Meaning.FOR_NOW, "out of resources"),
    (0xFE00, 0xFE00, Meaning.FOR_NOW, "cancelled"),
    (0x0122, 0x0122, Meaning.NO_CONTEXT, "SOP class not supported"),
    (0x0124, 0x0124, Meaning.FOR_GOOD, "not authorized"),
    (0x0105, 0x0120, Meaning.FOR_GOOD, "the object is not acceptable"),
    (0x0211, 0x0212, Meaning.FOR_GOOD, "operation or argument not recognized"),
    (0xA900, 0xA9FF, Meaning.FOR_GOOD, "data set does not match its SOP class"),
    (0xC000, 0xCFFF, Meaning.FOR_GOOD, "the destination cannot understand the object"),
)
NO_ANSWER = Answer(Meaning.FOR_NOW, "no answer to the C-STORE: timeout, abort or broken connection")

# (result, source, reason): PS3.8 table 9-21
REJECTIONS: dict[tuple[int, int], str] = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized: have it registered at the destination",
    (1, 7): "called AE title not recognized: check ae_title of the destination",
    (2, 1): "no reason given by its ACSE",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
PERMANENT = 1  # the value of Result

COMMITMENT_FAILURES: tuple[tuple[int, int, Meaning, str], ...] = (
    (0x0110, 0x0110, Meaning.FOR_NOW, "processing failure"),
    (0x0112, 0x0112, Meaning.FOR_NOW, "the destination does not have the object"),
    (0x0213, 0x0213, Meaning.FOR_NOW, "resource limitation"),
    (0x0131, 0x0131, Meaning.FOR_NOW, "duplicate transaction UID"),
    (0x0119, 0x0119, Meaning.FOR_GOOD, "class and instance conflict"),
    (0x0122, 0x0122, Meaning.FOR_GOOD, "SOP class not supported"),
)


def judge_store(status: int | None, comment: str = "") -> Answer:
    """The meaning of a C-STORE status; None is no answer. A status that no table knows may pass: refused for now."""
    if status is None:
        return NO_ANSWER
    return _look_up(STORE_STATUSES, status, comment)


def judge_commitment(reason: int) -> Answer:
    """The meaning of a Failure Reason (0008,1197) in a storage commitment result."""
    return _look_up(COMMITMENT_FAILURES, reason, "")


def judge_rejection(result: int, source: int, reason: int) -> Answer:
    """The meaning of an A-ASSOCIATE-RJ."""
    words = REJECTIONS.get((source, reason), f"source {source}, reason {reason}")
    meaning = Meaning.FOR_GOOD if result == PERMANENT else Meaning.FOR_NOW
    kind = "permanently" if result == PERMANENT else "for now"
    return Answer(meaning, f"association rejected {kind}: {words}")


def _look_up(table: tuple[tuple[int, int, Meaning, str], ...], code: int, comment: str) -> Answer:
    meaning, words = next(
        ((meaning, words) for low, high, meaning, words in table if low <= code <= high),
        (Meaning.FOR_NOW, "unknown status"),
    )
    return Answer(meaning, f"0x{code:04X} {words}" + (f" ({comment})" if comment else ""))
