"""A pynetdicom server that one bad peer cannot stop: nothing waits on the accept thread, and everything has a bound.

A connection first sits in the lobby: TLS handshake and association request are read there, with a deadline, before an
association and its threads exist. When the lobby is full the connection that has waited longest leaves.
"""

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import attempt
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from node.bounded_socket import PDU_HEADER_BYTES, BoundedSocket
from node.receiver_settings import TlsSettings
from node.store_status import HANDLER_FAULT, Answer
from node.streaming import OpenFile, StoreRequest, StreamingMessages
from node.upper_layer import MAX_CONTROL_PDU_BYTES, BoundedUpperLayer

LOGGER = logging.getLogger(__name__)

THROWN_OUT_TOLD = (1, 10, 100, 1000)  # counts that go to the log
BACKLOG = 128  # connections that the kernel holds until they are accepted
A_ASSOCIATE_RQ_TYPE = 0x01
TLS_HANDSHAKE_TYPE = 0x16
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4  # a cut cable is noticed after two minutes


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds on connections that have no association yet."""

    max_waiting_connections: int = 64
    association_timeout_s: float = 5.0


class StoringAssociation(Association):  # type: ignore[misc]
    """An accepted association whose upper layer is bounded and whose C-STOREs stream into files."""

    def __init__(self, ae: AE, hooks: "ServerHooks") -> None:
        super().__init__(ae, "acceptor")
        self._hooks = hooks
        self.dul = BoundedUpperLayer(self)
        self.dimse = StreamingMessages(self, hooks.open_file)
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout

    def run_reactor(self) -> None:
        """The association's thread: whatever ends it, files that nobody serves go and the end is told."""
        try:
            super().run_reactor()
        finally:
            self.dimse.discard_unserved()
            self._hooks.on_end(self)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """A C-STORE is answered from this thread, straight to the socket; everything else goes pynetdicom's way."""
        if not isinstance(msg, StoreRequest):
            super()._serve_request(msg, context_id)
            return
        fallback = C_STORE()
        fallback.MessageIDBeingRespondedTo = msg.command.message_id
        with attempt(fallback, self.dimse, context_id, self) as surprise:  # answers 0xC211 to what nobody foresaw
            surprise.error_msg, surprise.error_status = "fault while storing an instance", HANDLER_FAULT
            answer = self._hooks.store(self, msg)
            if self.dul.state_machine.current_state == "Sta6":
                self.dul.socket.send(msg.answer_pdu(answer.status, answer.comment))


class LightContexts(list[PresentationContext]):
    """Supported contexts; pynetdicom copies them deeply for every connection, which is most of an association's cost.

    Negotiation only reads them, so a copy shares the UIDs.
    """

    def __deepcopy__(self, _memo: object) -> "LightContexts":
        return LightContexts(copy(context) for context in self)


class Lobby:
    """Connections that have not asked for an association yet; bounded, first come first thrown out."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._thrown_out = 0
        self._lock = threading.Lock()
        self._waiting: OrderedDict[socket.socket, None] = OrderedDict()

    def enter(self, connection: socket.socket) -> None:
        with self._lock:
            self._waiting[connection] = None
            leaving = [self._waiting.popitem(last=False)[0]] if len(self._waiting) > self._max_waiting else []
            self._thrown_out += len(leaving)
        for oldest in leaving:
            _shut_down(oldest)
            if self._thrown_out in THROWN_OUT_TOLD or self._thrown_out % THROWN_OUT_TOLD[-1] == 0:
                LOGGER.warning("%d silent connections closed so far for want of room", self._thrown_out)

    def leave(self, connection: socket.socket) -> None:
        with self._lock:
            self._waiting.pop(connection, None)

    def __len__(self) -> int:
        return len(self._waiting)


class LobbyHandler(RequestHandler):  # type: ignore[misc]
    """Runs on the connection's own thread: reads the association request, then starts the association."""

    def handle(self) -> None:
        connection, first_pdu = self.server.admit_to_lobby(self.request, self.client_address)
        if connection is not None:
            self._start_association(connection, first_pdu)

    def _start_association(self, connection: socket.socket, first_pdu: bytes) -> None:
        server = self.server
        assoc = StoringAssociation(server.ae, server.hooks)
        assoc._server = server
        assoc.name = f"AcceptorThread-{self.client_address[0]}:{self.client_address[1]}"
        assoc.set_socket(BoundedSocket(assoc, connection, first_pdu))
        acceptor = assoc.acceptor
        acceptor.maximum_length = server.ae.maximum_pdu_size
        acceptor.ae_title = server.ae_title
        acceptor.address_info = self.local
        acceptor.implementation_class_uid = server.ae.implementation_class_uid
        acceptor.implementation_version_name = server.ae.implementation_version_name
        acceptor.supported_contexts = list(server.contexts)
        assoc.requestor.address_info = self.remote
        server.bind_handlers(assoc)
        assoc.start()


class AssociationServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Listens on one port; see the module's docstring."""

    request_queue_size = BACKLOG
    daemon_threads = True

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        contexts: Sequence[PresentationContext],
        handlers: list[Any],
        hooks: "ServerHooks",
    ) -> None:
        self.hooks = hooks
        self._limits = hooks.limits
        self._tls_context = hooks.tls_context
        self.lobby = Lobby(hooks.limits.max_waiting_connections)
        super().__init__(
            ae, address, ae.ae_title, LightContexts(contexts), evt_handlers=handlers, request_handler=LobbyHandler
        )
        self._thread = threading.Thread(target=self.serve_forever, name="accept", daemon=True)

    def start(self) -> None:
        self.ae._servers.append(self)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def bind_handlers(self, assoc: Association) -> None:
        """Give a new association the handlers of this server, one by one as pynetdicom keeps them."""
        for event, bound in self._handlers.items():
            for handler, args in [bound] if event.is_intervention else bound:
                if handler is not None:
                    assoc.bind(event, handler, args)

    def admit_to_lobby(self, connection: socket.socket, address: Any) -> tuple[socket.socket | None, bytes]:
        """The connection with its association request, or (None, b"") for one that did not ask properly in time."""
        deadline = time.monotonic() + self._limits.association_timeout_s
        if self._tls_context is not None:
            connection = self._tls_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.lobby.enter(connection)
        try:
            _set_socket_options(connection)
            if isinstance(connection, ssl.SSLSocket):
                connection.settimeout(self._limits.association_timeout_s)
                connection.do_handshake()
            return connection, _read_request(connection, deadline)
        except (OSError, ValueError) as exc:
            LOGGER.info("connection from %s closed: %s", address[0], str(exc)[:200])
            _shut_down(connection)
            return None, b""
        finally:
            self.lobby.leave(connection)


@dataclass(frozen=True, slots=True)
class ServerHooks:
    """What the server needs of its owner."""

    open_file: OpenFile
    store: Callable[[StoringAssociation, StoreRequest], Answer]  # Success is a status like any other
    on_end: Callable[[StoringAssociation], None]
    limits: ServerLimits = ServerLimits()
    tls_context: ssl.SSLContext | None = None


def make_tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Server side of TLS 1.2+ (PS3.15 B.12); OSError or ssl.SSLError when a file is missing or wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(str(tls.certificate_file), str(tls.key_file) if tls.key_file else None)
    if tls.client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(str(tls.client_ca_file))
    return context


def _read_request(connection: socket.socket, deadline: float) -> bytes:
    """The whole A-ASSOCIATE-RQ PDU, undecoded; memory grows with what arrives, not with what is announced."""
    header = _read(connection, PDU_HEADER_BYTES, deadline)
    if header[0] != A_ASSOCIATE_RQ_TYPE:
        hint = "; a TLS hello: that peer needs the TLS port" if header[0] == TLS_HANDSHAKE_TYPE else ""
        raise ValueError(f"no association request but bytes {header.hex()}{hint}")
    (length,) = struct.unpack(">I", header[2:])
    if length > MAX_CONTROL_PDU_BYTES:
        raise ValueError(f"association request of {length} bytes, at most {MAX_CONTROL_PDU_BYTES} allowed")
    return header + _read(connection, length, deadline)


def _read(connection: socket.socket, length: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < length:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = connection.recv(min(length - len(received), 65536))
        if not piece:
            raise ConnectionError(f"closed by the peer after {len(received)} bytes")
        received += piece
    return bytes(received)


def _set_socket_options(connection: socket.socket) -> None:
    """Answers leave at once; a peer behind a cut cable is noticed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
