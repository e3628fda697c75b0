"""Answers to C-STOREs on their way into the database, a few at a time."""

from collections.abc import Callable, Sequence
from time import monotonic

from node.delivery_status import Answer
from storage.outbox import OutboxItem

ANSWERS_AT_ONCE, ANSWERS_WAIT_S = 20, 0.5


class SentAnswers:
    """Collects answers and hands them on in small groups, the last ones when the block ends, however it ends."""

    def __init__(self, settle: Callable[[Sequence[tuple[OutboxItem, Answer]]], None]) -> None:
        self.all: list[tuple[OutboxItem, Answer]] = []
        self._waiting: list[tuple[OutboxItem, Answer]] = []
        self._settle = settle
        self._since = monotonic()

    def __enter__(self) -> "SentAnswers":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def add(self, item: OutboxItem, answer: Answer) -> None:
        self.all.append((item, answer))
        self._waiting.append((item, answer))
        if len(self._waiting) >= ANSWERS_AT_ONCE or monotonic() - self._since > ANSWERS_WAIT_S:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._settle(self._waiting)
        self._waiting = []
        self._since = monotonic()
