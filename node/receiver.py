"""The receiving side of the node: Verification and Storage SCP on one or two ports (PS3.4 annexes A and B).

    receiver = Receiver(ListenAddress(...), ReceiverSettings(...), sessions, inbox)
    receiver.start()             # recovers from a crash first; OSError when a port cannot be had
    receiver.port, receiver.tls_port, receiver.open_associations(), receiver.alive
    receiver.stop(drain_s=20)    # in-flight C-STOREs are answered

`Extras` puts further contexts and handlers on the same AE, for example Storage Commitment reports.

A C-STORE is answered with Success only when the file is durable and its row is committed. The handler stores, notes the
arrival and answers; it never analyses.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydicom import config as pydicom_config
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AddressInformation

from node.admission import Caller, Rejection, Situation, judge_caller
from node.association_server import (
    AssociationServer,
    ServerHooks,
    ServerLimits,
    StoringAssociation,
    make_tls_context,
)
from node.receiver_settings import CT_CLASSES, ListenAddress, ReceiverSettings
from node.store_handler import OpenAssociation, StoreHandler
from node.store_status import OUT_OF_RESOURCES, Answer, Refusal
from node.streaming import StoreRequest
from node.transfer_syntaxes import UNCOMPRESSED, decodable_syntaxes
from storage.arrival import Sender
from storage.arrival_writer import ArrivalWriter
from storage.database import SessionFactory
from storage.inbox import Inbox, IncomingFile, ObjectNames
from storage.received_tables import AssociationEnding
from storage.recovery import Recovery, recover
from storage.steady_clock import SteadyClock

LOGGER = logging.getLogger(__name__)
REMEMBERED_REJECTIONS = 50
ANSWER_IN_FLIGHT_S = 5.0  # after the drain, for C-STOREs that were received completely
NO_LIMIT = 10_000_000  # pynetdicom's own count of associations is not used


@dataclass(frozen=True, slots=True)
class Extras:
    """Contexts and pynetdicom handlers of other services on the same AE."""

    contexts: tuple[PresentationContext, ...] = ()
    handlers: tuple[tuple[Any, Callable[..., Any]], ...] = ()


class Receiver:
    """Accepts associations and stores what they bring."""

    def __init__(
        self,
        address: ListenAddress,
        settings: ReceiverSettings,
        sessions: SessionFactory,
        inbox: Inbox,
        extras: Extras | None = None,
    ) -> None:
        self._address = address
        self._settings = settings
        self._sessions = sessions
        self._inbox = inbox
        self._extras = extras or Extras()
        self.clock = SteadyClock()
        self._writer = ArrivalWriter(sessions, inbox)
        self._store_handler = StoreHandler(inbox, self._writer, self.clock)
        self._lock = threading.Lock()
        self._open: dict[StoringAssociation, OpenAssociation] = {}
        self._rejections: deque[tuple[datetime, Caller, Rejection]] = deque(maxlen=REMEMBERED_REJECTIONS)
        self._servers: list[AssociationServer] = []
        self._stopping = False

    def start(self) -> Recovery:
        """Bring inbox and database into agreement, then listen; OSError when a port or a TLS file cannot be had."""
        pynetdicom_config.LOG_HANDLER_LEVEL = "none"  # its own lines would hold whole association requests
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # a traceback for each damaged PDU; ours are a line
        logging.getLogger("pynetdicom.service_class").setLevel(logging.ERROR)  # faults while storing
        pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE  # its warnings quote values
        recovery = recover(self._sessions, self._inbox, self.clock.now())
        ae = self._make_ae()
        self._servers = [self._make_server(ae, self._address.port, tls=False)]
        if self._settings.tls.enabled:
            self._servers.append(self._make_server(ae, self._settings.tls.port, tls=True))
        self._writer.start()
        for server in self._servers:
            server.start()
        LOGGER.info("listening as %s on port %s", self._address.ae_title, ", ".join(str(s.port) for s in self._servers))
        return recovery

    def stop(self, drain_s: float = 20.0) -> None:
        """Accept nothing new, give open associations time to finish, answer what is in flight, then end them."""
        if self._stopping:
            return
        self._stopping = True
        for server in self._servers:
            server.shutdown()
        self._wait_for_end(drain_s)
        self._store_handler.close(answer_within_s=ANSWER_IN_FLIGHT_S)
        with self._lock:
            remaining = list(self._open)
        for assoc in remaining:
            LOGGER.warning("association of %s ended by the node: it is stopping", assoc.requestor.ae_title)
            assoc.abort(block=False)
        self._wait_for_end(ANSWER_IN_FLIGHT_S)
        self._writer.stop()

    def _wait_for_end(self, seconds: float) -> None:
        """Return when no association is open, or the time is over."""
        deadline = time.monotonic() + seconds
        while self.open_associations() and time.monotonic() < deadline:
            time.sleep(0.02)

    @property
    def port(self) -> int:
        return self._servers[0].port

    @property
    def tls_port(self) -> int | None:
        return self._servers[1].port if len(self._servers) > 1 else None

    @property
    def alive(self) -> bool:
        """Whether all threads that receiving needs are running: for the watchdog."""
        return self._writer.alive and bool(self._servers) and all(server.alive for server in self._servers)

    def open_associations(self) -> tuple[Sender, ...]:
        with self._lock:
            return tuple(opened.sender for opened in self._open.values())

    def rejections(self) -> tuple[tuple[datetime, Caller, Rejection], ...]:
        """The last rejected callers with the configuration lines that would admit them."""
        return tuple(self._rejections)

    def _make_ae(self) -> AE:
        ae = AE(self._address.ae_title)
        ae.maximum_pdu_size = self._settings.max_pdu_bytes
        ae.maximum_associations = NO_LIMIT
        ae.acse_timeout = self._settings.association_timeout_s
        ae.network_timeout = self._settings.network_timeout_s
        return ae

    def _make_server(self, ae: AE, port: int, *, tls: bool) -> AssociationServer:
        settings = self._settings
        hooks = ServerHooks(
            open_file=self._open_file,
            store=self._on_store,
            on_end=self._on_end,
            limits=ServerLimits(settings.max_waiting_connections, settings.association_timeout_s),
            tls_context=make_tls_context(settings.tls) if tls else None,
        )
        handlers = [
            (evt.EVT_REQUESTED, self._on_request),
            (evt.EVT_C_ECHO, lambda _event: 0x0000),
            *self._extras.handlers,
        ]
        address = AddressInformation(self._address.bind_address, port).as_tuple
        return AssociationServer(ae, address, self._contexts(), handlers, hooks)

    def _contexts(self) -> list[PresentationContext]:
        syntaxes = list(decodable_syntaxes())
        contexts = [build_context(Verification, list(UNCOMPRESSED[:2]))]
        contexts += [build_context(uid, syntaxes) for uid in (*CT_CLASSES, *self._settings.other_classes)]
        return contexts + list(self._extras.contexts)

    def _on_request(self, event: evt.Event) -> None:
        """Admit or reject, before pynetdicom negotiates; what is admitted counts as open from here."""
        assoc = event.assoc
        caller = _caller(assoc)
        storage = {*CT_CLASSES, *self._settings.other_classes}
        wants_storage = any(
            c.abstract_syntax in storage for c in assoc.requestor.primitive.presentation_context_definition_list
        )
        with self._lock:
            situation = Situation(
                open_callers=tuple(opened.caller for opened in self._open.values()),
                wants_storage=wants_storage,
                disk_refusal=self._inbox.disk_state().refuses_associations,
                stopping=self._stopping,
            )
            rejection = judge_caller(caller, self._address.ae_title, self._settings, situation)
            if rejection is None:
                self._open[assoc] = OpenAssociation(caller, self.clock.now())
        if rejection is not None:
            self._reject(assoc, caller, rejection)

    def _reject(self, assoc: StoringAssociation, caller: Caller, rejection: Rejection) -> None:
        self._rejections.append((self.clock.now(), caller, rejection))
        hint = f"; to admit it put into config.yaml:\n{rejection.admitting_lines}" if rejection.admitting_lines else ""
        LOGGER.warning("association rejected: %s%s", rejection.reason, hint)
        assoc.acse.send_reject(rejection.result, rejection.source, rejection.diagnostic)
        assoc.kill()

    def _open_file(self, names: ObjectNames) -> IncomingFile | Refusal:
        if refusal := self._inbox.disk_state().refuses_instances:
            return Refusal(OUT_OF_RESOURCES, f"disk full: {refusal}")
        return self._inbox.receive(names)

    def _on_store(self, assoc: StoringAssociation, request: StoreRequest) -> Answer:
        with self._lock:
            opened = self._open[assoc]
        return self._store_handler.answer(request, opened)

    def _on_end(self, assoc: StoringAssociation) -> None:
        with self._lock:
            opened = self._open.pop(assoc, None)
        if opened is None:
            return
        ending = AssociationEnding.RELEASED if assoc.is_released else AssociationEnding.ABORTED
        if opened.instances:
            self._writer.close_association(opened.sender.association_id, ending, self.clock.now())
        level = logging.INFO if opened.instances or opened.refused else logging.DEBUG
        LOGGER.log(
            level, "association of %s at %s %s: %d instances, %d refused, %.1f s",
            opened.caller.calling_ae_title, opened.caller.address, ending, opened.instances, opened.refused,
            (self.clock.now() - opened.sender.opened_at).total_seconds(),
        )  # fmt: skip


def _caller(assoc: StoringAssociation) -> Caller:
    request = assoc.requestor.primitive
    address = str(assoc.requestor.address_info.address)
    return Caller(str(request.calling_ae_title).strip(), str(request.called_ae_title).strip(), address)


def names_of(syntaxes: Sequence[str]) -> str:
    """Transfer syntaxes in words, for `doctor` and the log."""
    return ", ".join(UID(syntax).name for syntax in syntaxes)
