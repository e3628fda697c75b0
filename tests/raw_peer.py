"""A peer on a bare socket that says exactly what a test wants, right or wrong (PS3.8 PDUs, PS3.7 command sets)."""

import socket
import struct
from dataclasses import dataclass
from types import TracebackType

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification

FRAGMENT_BYTES = 16_000
RELEASE_RQ = bytes.fromhex("05000000000400000000")
ABORT = bytes.fromhex("07000000000400000000")


@dataclass(frozen=True)
class StoreReply:
    status: int
    comment: str


def association_request(contexts: list[PresentationContext], calling: str = "CT1", called: str = "QCT-NODE") -> bytes:
    """An encoded A-ASSOCIATE-RQ."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    for index, context in enumerate(contexts):
        context.context_id = 2 * index + 1
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.826.0.1.3680043.9.3811.1"
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


class RawPeer:
    """An association on a bare socket; context 1 is CT in the given syntax, context 3 is Verification."""

    def __init__(self, port: int, transfer_syntax_uid: str = ExplicitVRLittleEndian, sop_class: str = CTImageStorage):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        contexts = [build_context(sop_class, [transfer_syntax_uid]), build_context(Verification)]
        self.socket.sendall(association_request(contexts))
        self.answer_type, _ = self.read_pdu()

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def read_pdu(self) -> tuple[int, bytes]:
        """Type and body of the next PDU; type 0 when the node closed the connection."""
        try:
            head = self._read(6)
            kind, _, length = struct.unpack(">BBI", head)
            return kind, self._read(length)
        except ConnectionError:
            return 0, b""

    def store(self, sop_instance_uid: str | bytes, encoded: bytes, sop_class_uid: str = CTImageStorage) -> StoreReply:
        """Send a data set as these bytes under this name and wait for the status."""
        self.send_store(sop_instance_uid, encoded, sop_class_uid)
        kind, body = self.read_pdu()
        assert kind == 0x04, f"answered with PDU type {kind:#x}, expected P-DATA"
        return _reply(body)

    def send_store(self, sop_instance_uid: str | bytes, encoded: bytes, sop_class_uid: str = CTImageStorage) -> None:
        command = store_command(sop_class_uid, sop_instance_uid)
        self.socket.sendall(p_data(1, 0x03, command))
        for start in range(0, max(len(encoded), 1), FRAGMENT_BYTES):
            last = 0x02 if start + FRAGMENT_BYTES >= len(encoded) else 0x00
            self.socket.sendall(p_data(1, last, encoded[start : start + FRAGMENT_BYTES]))

    def echo(self) -> int:
        """C-ECHO on the same association; its status."""
        self.socket.sendall(p_data(3, 0x03, echo_command()))
        kind, body = self.read_pdu()
        assert kind == 0x04, f"answered with PDU type {kind:#x}, expected P-DATA"
        return _reply(body).status

    def release(self) -> int:
        """Release; the type of the answer, 6 when all is well."""
        self.socket.sendall(RELEASE_RQ)
        return self.read_pdu()[0]

    def _read(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            piece = self.socket.recv(length - len(received))
            if not piece:
                raise ConnectionError("closed by the node")
            received += piece
        return received


def p_data(context_id: int, control: int, fragment: bytes) -> bytes:
    return struct.pack(">BBIIBB", 4, 0, len(fragment) + 6, len(fragment) + 2, context_id, control) + fragment


def store_command(sop_class_uid: str, sop_instance_uid: str | bytes, message_id: int = 7) -> bytes:
    instance = sop_instance_uid if isinstance(sop_instance_uid, bytes) else sop_instance_uid.encode("latin-1")
    elements = _element(0x0002, _even(sop_class_uid.encode())) + _element(0x0100, struct.pack("<H", 1))
    elements += _element(0x0110, struct.pack("<H", message_id)) + _element(0x0700, struct.pack("<H", 0))
    elements += _element(0x0800, struct.pack("<H", 1)) + _element(0x1000, _even(instance))
    return _element(0, struct.pack("<I", len(elements))) + elements


def echo_command() -> bytes:
    elements = _element(0x0002, _even(str(Verification).encode())) + _element(0x0100, struct.pack("<H", 0x30))
    elements += _element(0x0110, struct.pack("<H", 9)) + _element(0x0800, struct.pack("<H", 0x0101))
    return _element(0, struct.pack("<I", len(elements))) + elements


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _even(value: bytes) -> bytes:
    return value + b"\0" * (len(value) % 2)


def _reply(body: bytes) -> StoreReply:
    elements, position = {}, 6
    while position < len(body):
        _, number, length = struct.unpack_from("<HHI", body, position)
        elements[number] = body[position + 8 : position + 8 + length]
        position += 8 + length
    return StoreReply(int.from_bytes(elements[0x0900], "little"), elements.get(0x0902, b"").decode().strip())
