"""One writer for all arrivals: rows committed in groups, so that durability costs little under load.

`write` returns only when the instance's row is committed; file and name are durable before it is called. One thread,
one queue: what is put in first is committed first, so the end of an association stands in the database after its last
instance.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from storage.arrival import Arrival
from storage.database import SessionFactory
from storage.inbox import Inbox
from storage.instances import close_association, record_quarantined
from storage.received_tables import AssociationEnding
from storage.recording import ArrivalOutcome, KnownRows, record_arrivals

LOGGER = logging.getLogger(__name__)
MAX_GROUP = 64  # arrivals per transaction
MAX_KNOWN_ROWS = 50_000  # keys remembered, about 10 MB
RETRY_NOTES_S = 5.0
WRITE_DEADLINE_S = 120.0  # longer than the database's busy timeout; then the sender is told to try again

T = TypeVar("T")
_Work = tuple[Arrival, "Future[ArrivalOutcome]"] | Callable[[Connection], None]


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class ArrivalWriter:
    """Commits arrivals in groups on its own thread."""

    def __init__(self, sessions: SessionFactory, inbox: Inbox) -> None:
        engine = sessions.kw["bind"]
        assert isinstance(engine, Engine)
        self._engine = engine
        self._connection: Connection | None = None  # kept open: taking one from the pool costs as much as a row
        self._inbox = inbox
        self._known = KnownRows()
        self._owed: list[Callable[[Connection], None]] = []  # notes that the database refused so far, in order
        self._queue: queue.SimpleQueue[_Work | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="arrival-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Commit what is queued, then end."""
        self._queue.put(_Stop())
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def write(self, arrival: Arrival) -> ArrivalOutcome:
        """Commit the row of an instance whose file and name are durable.

        Raises
        ------
        OSError, SQLAlchemyError : disk or database refused; nothing may be acknowledged
        TimeoutError : no answer from the database within the deadline
        """
        future: Future[ArrivalOutcome] = Future()
        self._queue.put((arrival, future))
        return future.result(timeout=WRITE_DEADLINE_S)

    def close_association(self, association_id: str, ending: AssociationEnding, now: datetime) -> None:
        """Queue the end of an association."""
        self._queue.put(lambda connection: close_association(connection, association_id, ending, now))

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._take_group()
            arrivals = [work for work in group if isinstance(work, tuple)]
            self._commit_arrivals(arrivals)
            self._commit_notes([work for work in group if not isinstance(work, tuple)])
        self._disconnect()

    def _take_group(self) -> tuple[list[_Work], bool]:
        """Wait for the first piece of work, then take what came meanwhile; the end of an association ends a group.

        Waiting for more was measured: it costs more in latency than larger groups save.
        """
        group: list[_Work] = []
        try:
            work: _Work | _Stop = self._queue.get(timeout=RETRY_NOTES_S if self._owed else None)
        except queue.Empty:
            return [], False
        while True:
            if isinstance(work, _Stop):
                return group, True
            group.append(work)
            if len(group) == MAX_GROUP or not isinstance(work, tuple) or self._queue.empty():
                return group, False
            work = self._queue.get()  # this thread is the only reader

    def _commit_arrivals(self, group: Sequence[tuple[Arrival, "Future[ArrivalOutcome]"]]) -> None:
        if not group:
            return
        try:
            outcomes = self._commit([arrival for arrival, _ in group])
        except IntegrityError as exc:
            self._commit_one_by_one(group, exc)
        except (OSError, SQLAlchemyError) as exc:
            for _, future in group:
                future.set_exception(exc)
        else:
            for (_, future), outcome in zip(group, outcomes, strict=True):
                future.set_result(outcome)

    def _commit_one_by_one(
        self, group: Sequence[tuple[Arrival, "Future[ArrivalOutcome]"]], exc: IntegrityError
    ) -> None:
        """Another process wrote one of the rows meanwhile: find out which, let the others pass."""
        if len(group) == 1:
            group[0][1].set_exception(exc)
            return
        for pair in group:
            self._commit_arrivals([pair])

    def _commit(self, arrivals: Sequence[Arrival]) -> tuple[ArrivalOutcome, ...]:
        return self._in_transaction(lambda connection: self._record(connection, arrivals))

    def _record(self, connection: Connection, arrivals: Sequence[Arrival]) -> tuple[ArrivalOutcome, ...]:
        outcomes = record_arrivals(connection, arrivals, self._known)
        for arrival, outcome in zip(arrivals, outcomes, strict=True):
            if outcome is ArrivalOutcome.CONFLICT:
                self._put_aside(connection, arrival)
        return outcomes

    def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        """Do it again on a new connection where a server has closed the kept one: doing any of it twice is harmless."""
        try:
            with self._transaction() as connection:
                return work(connection)
        except DBAPIError as exc:
            if not exc.connection_invalidated:
                raise
        with self._transaction() as connection:
            return work(connection)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A transaction on the kept connection; after a failure the next one starts afresh."""
        if self._connection is None:
            self._connection = self._engine.connect()
        if len(self._known) > MAX_KNOWN_ROWS:
            self._known = KnownRows()
        committed = False
        try:
            with self._connection.begin():
                yield self._connection
            committed = True
        finally:
            if not committed:
                self._disconnect()

    def _disconnect(self) -> None:
        self._known = KnownRows()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _put_aside(self, connection: Connection, arrival: Arrival) -> None:
        source = self._inbox.root / arrival.path
        if not source.exists():  # the same second copy twice in one group
            return
        target = self._inbox.quarantine(source, arrival.header.sop_instance_uid)
        relative = str(target.relative_to(self._inbox.root))
        record_quarantined(connection, arrival, relative, "same SOP Instance UID as a kept instance, other bytes")
        LOGGER.warning(
            "instance %s came again with other bytes from %s: the first is kept, the second is %s",
            arrival.header.sop_instance_uid, arrival.sender.calling_ae_title, relative,
        )  # fmt: skip

    def _commit_notes(self, notes: Sequence[Callable[[Connection], None]]) -> None:
        """A note that the database refuses is kept: a study must not wait for an association that has ended."""
        self._owed += notes
        try:
            while self._owed:
                self._in_transaction(self._owed[0])
                del self._owed[0]
        except SQLAlchemyError as exc:
            LOGGER.error("end of an association not noted yet: %s", str(exc).splitlines()[0])
