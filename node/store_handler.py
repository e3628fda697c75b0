"""Answers one C-STORE: checks the received file, makes it durable, records it, and says what happened as a status."""

import errno
import logging
import threading
import uuid
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError

from node.admission import Caller
from node.store_status import (
    CANNOT_UNDERSTAND,
    DATA_SET_MISMATCH,
    INVALID_OBJECT_INSTANCE,
    KEPT_THE_FIRST,
    MAX_COMMENT,
    OUT_OF_RESOURCES,
    STORED,
    Answer,
    Refusal,
)
from node.streaming import StoreRequest
from storage.arrival import Arrival, Sender
from storage.arrival_writer import ArrivalWriter
from storage.inbox import Inbox, IncomingFile
from storage.instance_header import (
    EncodedDataset,
    InstanceHeader,
    InvalidUidError,
    UnreadableInstanceError,
    read_instance_header,
)
from storage.recording import ArrivalOutcome
from storage.steady_clock import SteadyClock

LOGGER = logging.getLogger(__name__)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class OpenAssociation:
    """An admitted association and what it brought so far."""

    caller: Caller
    opened_at: datetime
    instances: int = 0
    refused: int = 0
    sender: Sender = field(init=False)

    def __post_init__(self) -> None:
        self.sender = Sender(
            association_id=uuid.uuid4().hex,
            calling_ae_title=self.caller.calling_ae_title,
            called_ae_title=self.caller.called_ae_title,
            peer_address=self.caller.address,
            opened_at=self.opened_at,
        )


class StoreHandler:
    """Runs on each association's own thread."""

    def __init__(self, inbox: Inbox, writer: ArrivalWriter, clock: SteadyClock) -> None:
        self._inbox = inbox
        self._writer = writer
        self._clock = clock
        self._closed = False
        self._in_flight = 0
        self._idle = threading.Condition()

    def close(self, answer_within_s: float) -> None:
        """Refuse what comes from now on; return when what was in flight has been answered, or the time is over."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._in_flight == 0, timeout=answer_within_s)

    def answer(self, store: StoreRequest, opened: OpenAssociation) -> Answer:
        """Store the instance and return the answer of its C-STORE."""
        with self._idle:
            self._in_flight += 1
        try:
            refusal = store.refusal or self._store(store.incoming, opened.sender)
        finally:
            if store.incoming is not None:
                store.incoming.discard()
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()
        if refusal is None:
            opened.instances += 1
            return STORED
        if refusal.status == KEPT_THE_FIRST:
            opened.instances += 1
        else:
            opened.refused += 1
            LOGGER.warning("instance from %s refused with 0x%04X: %s", opened.caller.calling_ae_title, refusal.status,
                           refusal.comment)  # fmt: skip
        return Refusal(refusal.status, refusal.comment.encode("ascii", "replace").decode()[:MAX_COMMENT])

    def _store(self, incoming: IncomingFile | None, sender: Sender) -> Refusal | None:
        if incoming is None:
            raise ValueError("a C-STORE without a file and without a refusal")
        if self._closed:
            return Refusal(OUT_OF_RESOURCES, "the node is stopping")
        incoming.finish()
        if incoming.error is not None:
            return _disk_refusal(incoming.error)
        header = _checked_header(incoming)
        if isinstance(header, Refusal):
            return header
        try:
            return self._keep(incoming, header, sender)
        except OSError as exc:  # TimeoutError is one
            return _disk_refusal(exc)
        except SQLAlchemyError as exc:
            LOGGER.error("database refused an arrival: %s", str(exc).splitlines()[0][:300])
            return Refusal(OUT_OF_RESOURCES, "database refused; try again")

    def _keep(self, incoming: IncomingFile, header: InstanceHeader, sender: Sender) -> Refusal | None:
        path = self._inbox.relative_path(header.study_instance_uid, header.sop_instance_uid, incoming.digest)
        self._inbox.place(incoming, path)
        self._inbox.sync_folder_of(path)
        arrival = Arrival(
            header=header,
            transfer_syntax_uid=incoming.names.transfer_syntax_uid,
            digest=incoming.digest,
            path=path,
            size_bytes=incoming.data_offset + incoming.data_bytes,
            sender=sender,
            arrived_at=self._clock.now(),
        )
        outcome = self._writer.write(arrival)
        if outcome is ArrivalOutcome.CONFLICT:
            return Refusal(KEPT_THE_FIRST, "other bytes under a known UID: first kept, this one put aside")
        return None


def _checked_header(incoming: IncomingFile) -> InstanceHeader | Refusal:
    """The header, when it can be read and names the object that the command named."""
    names = incoming.names
    source = EncodedDataset(
        incoming.path, incoming.data_offset, names.transfer_syntax_uid, names.sop_class_uid, incoming.head
    )
    try:
        header = read_instance_header(source)
    except InvalidUidError as exc:
        return Refusal(INVALID_OBJECT_INSTANCE, str(exc))
    except UnreadableInstanceError as exc:
        return Refusal(CANNOT_UNDERSTAND, str(exc))
    if header.sop_instance_uid != names.sop_instance_uid:
        return Refusal(DATA_SET_MISMATCH, "SOP Instance UID of data set and command differ")
    if header.sop_class_uid != names.sop_class_uid:
        return Refusal(DATA_SET_MISMATCH, "SOP Class UID of data set and command differ")
    return header


def _disk_refusal(exc: OSError) -> Refusal:
    LOGGER.error("disk refused an instance: %s", exc)
    text = "disk full" if exc.errno in NO_ROOM else f"disk error {exc.errno or ''}".strip()
    return Refusal(OUT_OF_RESOURCES, f"{text}; try again later")
