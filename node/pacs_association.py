"""One association with a destination: contexts, sockets without needless waiting, C-ECHO, C-STORE.

pynetdicom sets neither TCP_NODELAY nor TCP_QUICKACK. A peer that writes its answer in two pieces with Nagle's algorithm
on (stock DCMTK) waits for our acknowledgement of the first, which Linux delays by 40 ms: 20 objects/s. Asking for an
immediate acknowledgement after each piece we send ends that, without a change at the peer.
"""

import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, Association, build_context, evt
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from analysis.errors import DeliveryError
from node.delivery_status import Answer, Meaning, judge_rejection, judge_store
from node.destinations import CommitmentUse, Destination
from node.reactor_pause import pause_for_real

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2: odd identifiers 1 to 255
TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux only

ClassAndSyntax = tuple[str, str]
Handlers = list[tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls whom, and what for."""

    destination: Destination
    calling_ae_title: str
    classes: tuple[ClassAndSyntax, ...] = ()  # SOP class and transfer syntax of what will be sent
    handlers: Handlers = field(default_factory=list)


class PacsAssociation:
    """An established association; use `associate`."""

    def __init__(self, association: Association) -> None:
        self._association = association

    @property
    def alive(self) -> bool:
        return bool(self._association.is_established)

    def accepts(self, sop_class_uid: str) -> bool:
        return any(c.abstract_syntax == sop_class_uid for c in self._association.accepted_contexts)

    def accepted(self) -> dict[str, list[str]]:
        """SOP class -> transfer syntaxes that the destination accepted."""
        found: dict[str, list[str]] = {}
        for context in self._association.accepted_contexts:
            found.setdefault(str(context.abstract_syntax), []).append(str(context.transfer_syntax[0]))
        return found

    @property
    def offers_commitment(self) -> bool:
        return self.accepts(StorageCommitmentPushModel)

    @property
    def raw(self) -> Association:
        return self._association

    def echo(self) -> None:
        """C-ECHO.

        Raises
        ------
        DeliveryError : no answer, or not success
        """
        status = self._association.send_c_echo().get("Status")
        if status != 0x0000:
            raise DeliveryError(f"C-ECHO answered {_hex(status)}, expected 0x0000", permanent=False)

    def store(self, path: Path) -> Answer:
        """C-STORE one file."""
        try:
            ds = dcmread(path)
        except (OSError, InvalidDicomError) as error:
            return Answer(Meaning.FOR_GOOD, f"the file to send cannot be read: {error}")
        if not self.accepts(ds.SOPClassUID):
            return Answer(Meaning.NO_CONTEXT, "the destination did not accept this SOP class")
        try:
            status = self._association.send_c_store(ds)
        except ValueError as error:  # no context with this or a convertible transfer syntax, or not encodable
            return Answer(Meaning.NO_CONTEXT, f"cannot be sent as the destination wants it: {error}")
        except RuntimeError:  # the association ended meanwhile
            return judge_store(None)
        return judge_store(status.get("Status"), str(status.get("ErrorComment", "")))


@contextmanager
def associate(call: Call) -> Iterator[PacsAssociation]:
    """Open an association, release it at the end.

    Raises
    ------
    DeliveryError : not reached, rejected (`permanent` as the destination says), or aborted
    """
    ae = AE(call.calling_ae_title)
    destination = call.destination
    ae.connection_timeout = ae.acse_timeout = destination.connect_timeout_s
    ae.dimse_timeout = ae.network_timeout = destination.response_timeout_s
    association = _request(ae, call)
    if not association.is_established:
        raise _why_not(association, destination)
    try:
        yield PacsAssociation(pause_for_real(association))
    finally:
        if association.is_established:
            association.release()
        ae.shutdown()


def _request(ae: AE, call: Call) -> Association:
    destination = call.destination
    try:
        return ae.associate(
            destination.host, destination.port, contexts=_contexts(call), ae_title=destination.ae_title,
            evt_handlers=[*call.handlers, *SOCKET_HANDLERS], tls_args=_tls(destination),
        )  # fmt: skip
    except socket.gaierror as error:
        raise DeliveryError(f"{destination.name}: {destination.host}: {error.strerror}", permanent=False) from error


def _contexts(call: Call) -> list[PresentationContext]:
    """Verification, commitment if used, then one context per class; native objects may be converted to implicit VR."""
    contexts = [build_context(Verification)]
    if call.destination.commitment is not CommitmentUse.NEVER:
        contexts.append(build_context(StorageCommitmentPushModel))
    wanted: dict[ClassAndSyntax, PresentationContext] = {}
    for sop_class, syntax in call.classes:
        native = syntax in (*NATIVE, DeflatedExplicitVRLittleEndian)
        key = (sop_class, NATIVE[0] if native else syntax)
        wanted.setdefault(key, build_context(sop_class, list(NATIVE) if native else [syntax]))
    return [*contexts, *wanted.values()][:MAXIMUM_CONTEXTS]


def _tls(destination: Destination) -> tuple[ssl.SSLContext, str] | None:
    tls = destination.tls
    if not tls.enabled:
        return None
    try:
        context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
        if tls.certificate_file and tls.key_file:
            context.load_cert_chain(tls.certificate_file, tls.key_file)
    except OSError as error:  # ssl.SSLError among them
        raise DeliveryError(f"{destination.name}: its TLS files cannot be used: {error}", permanent=False) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.check_host_name
    return context, destination.host


def _why_not(association: Association, destination: Destination) -> DeliveryError:
    where = f"{destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
    primitive = association.acceptor.primitive
    if association.is_rejected and primitive is not None:
        answer = judge_rejection(primitive.result, primitive.result_source, primitive.diagnostic)
        return DeliveryError(f"{where}: {answer.text}", permanent=answer.meaning is Meaning.FOR_GOOD)
    if primitive is not None and primitive.result == 0:
        return DeliveryError(f"{where}: accepted none of our presentation contexts", permanent=True)
    return DeliveryError(f"{where}: not reached, or aborted the association", permanent=False)


def _socket_of(event: Any) -> socket.socket | None:
    transport = event.assoc.dul.socket
    found: socket.socket | None = transport.socket if transport is not None else None
    return found


def _send_at_once(event: Any) -> None:
    if (found := _socket_of(event)) is not None:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _acknowledge_at_once(event: Any) -> None:
    """The kernel forgets the option after a while (tcp(7)), so it is set again for every answer."""
    found = _socket_of(event)
    if found is not None and TCP_QUICKACK is not None:
        try:
            found.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 1)
        except OSError:
            return  # the socket was closed meanwhile: there is nothing left to acknowledge


SOCKET_HANDLERS: Handlers = [
    (evt.EVT_CONN_OPEN, _send_at_once),
    (evt.EVT_DATA_SENT, _acknowledge_at_once),
    (evt.EVT_DATA_RECV, _acknowledge_at_once),
]


def classes_of(items: Iterable[Any]) -> tuple[ClassAndSyntax, ...]:
    """The distinct (SOP class, transfer syntax) pairs of outbox items."""
    return tuple(dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in items))


def _hex(status: int | None) -> str:
    return "nothing" if status is None else f"0x{status:04X}"
