"""PS3.8 upper layer with bounds: every PDU has a length limit and a deadline, and nothing polls.

Convention: pynetdicom's state machine stays; only reading, writing and waiting are replaced. P-DATA is handed on as
fragments that share one buffer, so that an image passes through without copies.
"""

import contextlib
import logging
import os
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError, StateMachine
from pynetdicom.pdu_primitives import A_P_ABORT
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

LOGGER = logging.getLogger(__name__)

WAIT_S = 0.25  # how long a thread waits for data before it looks at its timers
P_DATA_TYPE = 0x04
PDU_TYPES = range(0x01, 0x08)
PDU_HEADER_BYTES = 6
MAX_CONTROL_PDU_BYTES = 2**20  # everything but P-DATA; an A-ASSOCIATE-RQ of 128 contexts needs about 100 kB
PDU_SLACK_BYTES = 1024  # senders that count their own headers wrongly
UNLIMITED_PDU_BYTES = 4 * 2**20  # bound when the node itself advertises "no limit"
# what decoding a damaged PDU or command set raises in pynetdicom and pydicom
MALFORMED_PDU = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, OverflowError, EOFError,
    RecursionError, struct.error,
)  # fmt: skip


class AlertingQueue(queue.Queue[Any]):
    """A queue that calls back when something is put in, so that its reader need not poll."""

    def __init__(self, alert: Callable[[], None]) -> None:
        super().__init__()
        self._alert = alert

    def _put(self, item: Any) -> None:
        super()._put(item)
        self._alert()


class SteadyTimer(Timer):  # type: ignore[misc]
    """pynetdicom's timer, counted by the monotonic clock: a step of the system clock ends no association."""

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None or self._start_time is None:
            return 1.0 if self.timeout is None else float(self.timeout)
        return float(self.timeout) - ((self._end_time or time.monotonic()) - self._start_time)


class BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """The peer's socket: reads with a deadline into one buffer, waits for data or for a wake-up instead of polling."""

    def __init__(self, assoc: Any, client_socket: socket.socket, already_read: bytes) -> None:
        self._already_read = memoryview(already_read)
        self._wake_lock = threading.Lock()
        self._wake_descriptor: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        super().__init__(assoc, client_socket=client_socket)
        client_socket.settimeout(WAIT_S)
        self._poll = select.poll()
        self._socket_descriptor = client_socket.fileno()
        self._poll.register(self._socket_descriptor, select.POLLIN)
        self._poll.register(self._wake_descriptor, select.POLLIN)

    @property
    def ready(self) -> bool:
        """Wait until the peer sent something (True), someone called `wake`, or a moment passed (False)."""
        if self.socket is None or not self._is_connected:
            return False
        if self._already_read or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
            return True
        found = {descriptor for descriptor, _ in self._poll.poll(WAIT_S * 1000)}
        if self._wake_descriptor in found:
            self._clear_wake()
        return self._socket_descriptor in found

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, fewer when the peer closed; TimeoutError when they do not come in time."""
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        prefix = self._already_read[:nr_bytes]
        view[: len(prefix)] = prefix
        self._already_read = self._already_read[len(prefix) :]
        filled = len(prefix) + self._fill(view[len(prefix) :])
        view.release()
        del buffer[filled:]
        return buffer

    def _fill(self, view: memoryview) -> int:
        deadline = time.monotonic() + (self.assoc.network_timeout or 3600)
        filled = 0
        while filled < len(view):
            if self.socket is None:
                return filled
            try:
                received = self.socket.recv_into(view[filled:])
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
                continue
            if not received:
                return filled
            filled += received
        return filled

    def send(self, bytestream: bytes) -> None:
        """Send everything; a peer that takes nothing for the network timeout is treated as gone (Evt17)."""
        if self.socket is None:
            return
        deadline = time.monotonic() + (self.assoc.network_timeout or 3600)
        view = memoryview(bytestream)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except TimeoutError:
                if time.monotonic() > deadline:
                    self.event_queue.put("Evt17")
                    return
            except OSError:
                self.event_queue.put("Evt17")
                return

    def wake(self) -> None:
        """End a wait in `ready`; callable from any thread."""
        with self._wake_lock:
            if self._wake_descriptor is not None:
                os.eventfd_write(self._wake_descriptor, 1)

    def release_wake(self) -> None:
        """Give the wake-up's descriptor back; called once, when the reading thread has ended."""
        with self._wake_lock:
            descriptor, self._wake_descriptor = self._wake_descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _clear_wake(self) -> None:
        with self._wake_lock:
            if self._wake_descriptor is not None:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_descriptor)


class ReceivedFragments:
    """A P-DATA-TF PDU (PS3.8 9.3.5) as (context id, message control header and fragment) pairs over one buffer."""

    def __init__(self, body: bytearray) -> None:
        self.values: list[tuple[int, memoryview]] = []
        view = memoryview(body)
        while view:
            if len(view) < 6:
                raise ValueError(f"{len(view)} bytes left over in a P-DATA PDU")
            (length,) = struct.unpack(">I", view[:4])
            if not 2 <= length <= len(view) - 4:
                raise ValueError(f"presentation data value of {length} bytes in {len(view) - 4}")
            self.values.append((view[4], view[5 : 4 + length]))
            view = view[4 + length :]

    def to_primitive(self) -> "ReceivedFragments":
        """What pynetdicom's state machine asks of a PDU."""
        return self


class GuardedStateMachine(StateMachine):  # type: ignore[misc]
    """The state machine of PS3.8 9.2; a PDU that cannot be understood ends its association and nothing else."""

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except (InvalidEventError, *MALFORMED_PDU) as exc:
            LOGGER.warning("association %s ended: %s", self.dul.assoc.name, str(exc)[:200])
            self.dul.socket.close()
            self.current_state = "Sta1"
            primitive = A_P_ABORT()
            primitive.provider_reason = 0x00
            self.dul.to_user_queue.put(primitive)
            self.dul.kill_dul()


class BoundedUpperLayer(DULServiceProvider):  # type: ignore[misc]
    """The upper layer's thread for one association."""

    def __init__(self, assoc: Any) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._run_loop_delay = 0
        self._idle_timer = SteadyTimer(60)
        self.artim_timer = SteadyTimer(30)
        self.state_machine = GuardedStateMachine(self)
        self.attention = threading.Event()  # something for the association's own thread
        self.to_provider_queue = AlertingQueue(self._wake)
        self.to_user_queue = AlertingQueue(self.attention.set)

    def _wake(self) -> None:
        if isinstance(self.socket, BoundedSocket):
            self.socket.wake()

    def kill_dul(self) -> None:
        super().kill_dul()
        self.attention.set()
        self._wake()

    def stop_dul(self) -> bool:
        """pynetdicom spins here until the thread has ended; with a pause instead of a full core."""
        if self.state_machine.current_state != "Sta1":
            return False
        self.kill_dul()
        self.join()
        return True

    def run_reactor(self) -> None:
        """The thread: whatever ends it, the file of a half received instance goes."""
        try:
            super().run_reactor()
        finally:
            self.assoc.dimse.abandon()
            if isinstance(self.socket, BoundedSocket):
                self.socket.release_wake()
            self.attention.set()

    def _read_pdu_data(self) -> None:
        """Read one PDU within its bounds and put its event on the queue (PS3.8 table 9-10)."""
        try:
            event = self._read_pdu()
        except OSError as exc:
            LOGGER.info("connection of %s lost: %s", self.assoc.name, exc)
            event = "Evt17"
        except MALFORMED_PDU as exc:
            LOGGER.warning("invalid PDU from %s: %s", self.assoc.name, str(exc)[:200])
            event = "Evt19"
        self.event_queue.put(event)

    def _read_pdu(self) -> str:
        header = self.socket.recv(PDU_HEADER_BYTES)
        if len(header) < PDU_HEADER_BYTES:
            return "Evt17"
        pdu_type, _, length = struct.unpack(">BBI", header)
        if pdu_type not in PDU_TYPES:
            raise ValueError(f"unknown PDU type 0x{pdu_type:02X}")
        if length > self._limit_bytes(pdu_type):
            raise ValueError(f"PDU of {length} bytes announced, at most {self._limit_bytes(pdu_type)} allowed")
        body = self.socket.recv(length)
        if len(body) < length:
            return "Evt17"
        if pdu_type == P_DATA_TYPE:
            self._recv_pdu.put(ReceivedFragments(body))
            return "Evt10"
        pdu, event = self._decode_pdu(header + body)
        self._recv_pdu.put(pdu)
        return str(event)

    def _limit_bytes(self, pdu_type: int) -> int:
        if pdu_type != P_DATA_TYPE:
            return MAX_CONTROL_PDU_BYTES
        return (self.assoc.acceptor.maximum_length or UNLIMITED_PDU_BYTES) + PDU_SLACK_BYTES
