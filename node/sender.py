"""Storage SCU: outbox -> PACS, one thread and at most one association per destination.

A destination that is away costs one probe per minute, not one per object. An object that is refused for now is tried
again later; one that is refused for good is put aside at once, or replaced by its other form. A resend after a lost
answer is harmless: the object has the same SOP Instance UID. A destination that stores but does not take the request
for commitment is asked again at growing intervals; results are stored there meanwhile.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from time import monotonic

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from analysis.errors import DeliveryError
from node.breaker import Breaker, delay
from node.commitment import CommitmentReceiver, request_commitment
from node.delivery_status import Answer, Meaning
from node.destinations import CommitmentUse, Destination
from node.pacs_association import Call, PacsAssociation, associate, classes_of
from node.sent_answers import SentAnswers
from storage.commitments import explain_unconfirmed, unconfirmed_items
from storage.database import SessionFactory
from storage.outbox import (
    Delivery,
    OutboxItem,
    due_items,
    explain_waiting,
    fully_delivered,
    mark_dead,
    mark_delivered,
    mark_refused_for_now,
    mark_sent,
    states_of,
    use_other_form,
)
from storage.retention import mark_delivered as mark_study_delivered

LOGGER = logging.getLogger(__name__)
LOOK_FOR_WORK_S = 2.0
REFUSALS_TO_STOP = 3  # answers "for now" in a row after which the association is given up


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one association is opened for."""

    items: tuple[OutboxItem, ...]
    unconfirmed: tuple[OutboxItem, ...]

    def __bool__(self) -> bool:
        return bool(self.items or self.unconfirmed)


class DestinationSender:
    """Delivers to one destination until stopped; `wake` when something was queued."""

    def __init__(self, sessions: SessionFactory, destination: Destination, calling_ae_title: str,
                 on_delivered: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self.destination = destination
        self.breaker, self._asking = Breaker(destination.retry), Breaker(destination.retry)
        self._sessions, self._on_delivered = sessions, on_delivered
        self._calling_ae_title = destination.calling_ae_title or calling_ae_title
        self._answers: SimpleQueue[threading.Thread] = SimpleQueue()
        self._commitments = CommitmentReceiver(sessions, destination.retry, self._answer_arrived)
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sender {destination.name}")
        self._turn_at = monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop_soon(self) -> None:
        """Ask the thread to end without waiting for it."""
        self._stop.set()
        self._wake.set()

    def stop(self) -> None:
        """Finish the object being sent, release the association, end."""
        self.stop_soon()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and is not stuck longer than its own time-outs allow."""
        limit_s = 2 * self.destination.response_timeout_s + self.destination.connect_timeout_s + 60.0
        return self._thread.is_alive() and monotonic() - self._turn_at < limit_s

    def _run(self) -> None:
        while not self._stop.is_set():
            self._turn_at = monotonic()
            if not self._worked():
                self._wake.wait(min(LOOK_FOR_WORK_S, self.breaker.wait_s or LOOK_FOR_WORK_S))
                self._wake.clear()

    def _worked(self) -> bool:
        try:
            return self.breaker.wait_s == 0.0 and self.deliver_once()
        except OperationalError as error:  # locked, disk full, server away: the outbox is looked at again
            LOGGER.error("database refused the sender of %s: %s", self.destination.name, error.orig)
            return False

    def deliver_once(self) -> bool:
        """One association's worth of work; False when there is nothing to do or the destination failed."""
        batch = self._batch()
        if not batch:
            return False
        handlers = self._commitments.handlers()
        call = Call(self.destination, self._calling_ae_title, classes_of(batch.items), handlers)
        try:
            with associate(call) as association:
                self._use(association, batch)
        except DeliveryError as error:
            self._failed(batch, error)
            return False
        self.breaker.succeeded()
        self._on_delivered()
        return True

    def _batch(self) -> _Batch:
        now, limit = datetime.now(UTC), self.destination.objects_per_association
        asked_before = now - timedelta(hours=self.destination.commitment_deadline_h)
        with self._sessions.begin() as session:
            items = due_items(session, self.destination.name, now, limit)
            may_ask = self._asking.wait_s == 0.0
            unconfirmed = unconfirmed_items(session, self.destination.name, asked_before, limit) if may_ask else []
        return _Batch(tuple(items), tuple(unconfirmed))

    def _use(self, association: PacsAssociation, batch: _Batch) -> None:
        if self.breaker.is_open:
            association.echo()
            LOGGER.info("destination %s answers again", self.destination.name)
        sent = self._send_all(association, batch.items)
        self._confirm(association, [*batch.unconfirmed, *sent])

    def _send_all(self, association: PacsAssociation, items: Sequence[OutboxItem]) -> list[OutboxItem]:
        """Send until done, stopped or refused too often in a row; returns what awaits commitment.

        Answers are written a few at a time: a crash in between resends those few, as the same objects.
        """
        answers = SentAnswers(lambda found: self._settle(found, commits=self._commits(association)))
        refusals = 0
        with answers:
            for item in items:
                if self._stop.is_set():
                    break
                self._turn_at = started = monotonic()
                answer = association.store(item.path)
                _log_store(item, answer, monotonic() - started)
                answers.add(item, answer)
                refusals = refusals + 1 if answer.meaning is Meaning.FOR_NOW else 0
                if not association.alive or refusals >= REFUSALS_TO_STOP:
                    raise DeliveryError(f"{self.destination.name}: {answer.text}", permanent=False)
        return [item for item, answer in answers.all if answer.meaning is Meaning.STORED and self._commits(association)]

    def _commits(self, association: PacsAssociation) -> bool:
        """Whether commitment will be asked for what this association stores."""
        use = self.destination.commitment
        return use is CommitmentUse.REQUIRED or (
            use is CommitmentUse.WHEN_OFFERED and association.offers_commitment
        )  # fmt: skip

    def _settle(self, answers: Sequence[tuple[OutboxItem, Answer]], *, commits: bool) -> None:
        """Answers to C-STOREs, into the database."""
        now = datetime.now(UTC)
        with self._sessions.begin() as session:
            for item, answer in answers:
                self._settle_one(session, item, answer, now, commits)
            if not commits:
                _mark_studies(session, [item for item, answer in answers if answer.meaning is Meaning.STORED], now)

    def _settle_one(self, session: Session, item: OutboxItem, answer: Answer, now: datetime, commits: bool) -> None:
        if answer.meaning is Meaning.STORED and commits:
            mark_sent(session, item.id, answer.text, now)
        elif answer.meaning is Meaning.STORED:
            mark_delivered(session, [item.id], answer.text, now)
        elif answer.meaning is Meaning.FOR_NOW and not self._given_up(item, now):
            mark_refused_for_now(session, item.id, answer.text, now + timedelta(seconds=self._delay_s(item)))
        elif answer.meaning is not Meaning.NO_CONTEXT or not use_other_form(session, item.id, answer.text, now):
            mark_dead(session, item.id, answer.text)

    def _confirm(self, association: PacsAssociation, items: Sequence[OutboxItem]) -> None:
        if not items or self._asking.wait_s:
            return
        try:
            self._ask(association, items)
        except DeliveryError as error:
            delay_s = self._asking.failed()
            with self._sessions.begin() as session:
                explain_unconfirmed(session, self.destination.name, str(error))
            LOGGER.warning("%s; asked again in %.0f s, storing goes on", error, delay_s)
        else:
            self._asking.succeeded()

    def _ask(self, association: PacsAssociation, items: Sequence[OutboxItem]) -> None:
        if not association.offers_commitment:
            self._without_commitment(items)
            return
        self._answers = SimpleQueue()
        request_commitment(association, self._sessions, self.destination.name, items)
        self._await_answer()

    def _answer_arrived(self) -> None:
        """pynetdicom serves each N-EVENT-REPORT in a thread of its own; this is it."""
        self._answers.put(threading.current_thread())

    def _await_answer(self) -> None:
        """Until the answer is in the database and responded to: a release before that would cut the response off."""
        try:
            serving = self._answers.get(timeout=self.destination.commitment_wait_s)
        except Empty:
            return
        serving.join(self.destination.response_timeout_s)

    def _without_commitment(self, items: Sequence[OutboxItem]) -> None:
        """The destination used to offer commitment, or must and does not."""
        if self.destination.commitment is CommitmentUse.REQUIRED:
            raise DeliveryError(
                f"{self.destination.name}: {len(items)} objects are stored, but it does not offer the storage "
                "commitment that the configuration requires",
                permanent=False,
            )
        now = datetime.now(UTC)
        with self._sessions.begin() as session:
            mark_delivered(session, [item.id for item in items], "stored; commitment is no longer offered", now)
            _mark_studies(session, items, now)

    def _failed(self, batch: _Batch, error: DeliveryError) -> None:
        delay_s = self.breaker.failed()
        if error.permanent:
            with self._sessions.begin() as session:
                for item in batch.items:
                    if states_of(session, [item.id]) == {Delivery.WAITING}:
                        mark_dead(session, item.id, str(error))
            LOGGER.error("%s; %d objects put aside: mend it, then `qct-node requeue outbox`", error, len(batch.items))
        else:
            with self._sessions.begin() as session:
                explain_waiting(session, self.destination.name, str(error))
            LOGGER.warning("%s; failure %d, next attempt in %.0f s", error, self.breaker.failures, delay_s)

    def _given_up(self, item: OutboxItem, now: datetime) -> bool:
        return now - item.queued_at > timedelta(days=self.destination.retry.give_up_after_days)

    def _delay_s(self, item: OutboxItem) -> float:
        retry = self.destination.retry
        return delay(item.attempts + 1, retry.longest_object_delay_s, retry)


class Senders:
    """All destinations."""

    def __init__(self, sessions: SessionFactory, destinations: Iterable[Destination], calling_ae_title: str) -> None:
        self.all = tuple(DestinationSender(sessions, one, calling_ae_title) for one in destinations)

    def start(self) -> None:
        for sender in self.all:
            sender.start()

    def stop(self) -> None:
        for sender in self.all:
            sender.stop_soon()
        for sender in self.all:
            sender.stop()

    def wake(self) -> None:
        for sender in self.all:
            sender.wake()

    @property
    def alive(self) -> bool:
        return all(sender.alive for sender in self.all)


def _mark_studies(session: Session, items: Iterable[OutboxItem], now: datetime) -> None:
    for study, version in {(item.study_instance_uid, item.version) for item in items}:
        if fully_delivered(session, study, version):
            mark_study_delivered(session, study, version, now)


def _log_store(item: OutboxItem, answer: Answer, duration_s: float) -> None:
    level = logging.INFO if answer.meaning is Meaning.STORED else logging.WARNING
    LOGGER.log(level, "sent series=%s kind=%s destination=%s answer=%s duration_s=%.2f",
               item.series_instance_uid, item.kind, item.destination, answer.text, duration_s)  # fmt: skip
