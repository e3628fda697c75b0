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
NO_TIMEOUT_S = 3600.0  # bound of a single PDU where no network timeout is set
READ_AHEAD_BYTES = 256 * 1024  # per association; two PDUs of the usual 128 kB
P_DATA_TYPE = 0x04
PDUS_AT_ONCE = 16  # then timers and answers get their turn
PDU_TYPES = range(0x01, 0x08)
PDU_HEADER_BYTES = 6
MAX_CONTROL_PDU_BYTES = 2**20  # everything but P-DATA; an A-ASSOCIATE-RQ of 128 contexts needs about 100 kB
PDU_SLACK_BYTES = 1024  # senders that count their own headers wrongly
UNLIMITED_PDU_BYTES = 4 * 2**20  # bound when the node itself advertises "no limit"
# what decoding a damaged PDU or command set raises in pynetdicom (which also asserts) and pydicom
MALFORMED_PDU = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, OverflowError, EOFError,
    RecursionError, AssertionError, struct.error,
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
        self._start_time: float | None = time.monotonic()
        self._end_time: float | None = None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None or self._start_time is None:
            return 1.0 if self.timeout is None else float(self.timeout)
        return float(self.timeout) - ((self._end_time or time.monotonic()) - self._start_time)


class BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """The peer's socket: reads ahead into one buffer, with a deadline, and waits for data or a wake-up, never polling.

    The kernel bounds each wait (SO_RCVTIMEO, SO_SNDTIMEO); TLS needs Python's own timeout instead.
    """

    def __init__(self, assoc: Any, client_socket: socket.socket, already_read: bytes) -> None:
        self._buffer = bytearray(max(READ_AHEAD_BYTES, len(already_read)))
        self._buffer[: len(already_read)] = already_read
        self._start, self._end = 0, len(already_read)  # what is read but not yet asked for
        self._send_lock = threading.Lock()
        self._wake_lock = threading.Lock()
        self._wake_descriptor: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        super().__init__(assoc, client_socket=client_socket)
        self._encrypted = isinstance(client_socket, ssl.SSLSocket)
        _set_timeouts(client_socket, WAIT_S, in_kernel=not self._encrypted)
        self._poll = select.poll()
        self._socket_descriptor = client_socket.fileno()
        self._poll.register(self._socket_descriptor, select.POLLIN)
        self._poll.register(self._wake_descriptor, select.POLLIN)

    @property
    def ready(self) -> bool:
        """Wait until the peer sent something (True), someone called `wake`, or a moment passed (False)."""
        if self.socket is None or not self._is_connected or not self.event_queue.empty():
            return False  # an event that waits comes first
        if self._end > self._start or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
            return True
        found = {descriptor for descriptor, _ in self._poll.poll(WAIT_S * 1000)}
        if self._wake_descriptor in found:
            self._clear_wake()
        return self._socket_descriptor in found

    @property
    def has_read_ahead(self) -> bool:
        """Whether at least the head of another PDU is in memory already."""
        return self._end - self._start >= PDU_HEADER_BYTES

    def recv(self, nr_bytes: int) -> memoryview:
        """Read so many bytes, fewer when the peer closed; TimeoutError when they do not come in time.

        The answer lies in a buffer that the next call overwrites.
        """
        if self._end - self._start < nr_bytes:
            self._make_room(nr_bytes)
            self._fill(nr_bytes)
        start = self._start
        self._start = min(start + nr_bytes, self._end)
        return memoryview(self._buffer)[start : self._start]

    def _make_room(self, nr_bytes: int) -> None:
        """Move what is left to the front; grow for a PDU that is longer than the buffer."""
        left = self._buffer[self._start : self._end]
        if len(self._buffer) < nr_bytes:
            self._buffer = bytearray(nr_bytes)
        self._buffer[: len(left)] = left
        self._start, self._end = 0, len(left)

    def _fill(self, nr_bytes: int) -> None:
        """Take what is there; then wait, in the kernel, until the rest of the PDU is there too."""
        deadline = time.monotonic() + (self.assoc.network_timeout or NO_TIMEOUT_S)
        view = memoryview(self._buffer)
        flags = 0 if self._encrypted else socket.MSG_DONTWAIT
        while self._end < nr_bytes and self.socket is not None:
            target = view[self._end :] if flags != socket.MSG_WAITALL else view[self._end : nr_bytes]
            try:
                received = self.socket.recv_into(target, 0, flags) if flags else self.socket.recv_into(target)
            except (TimeoutError, BlockingIOError):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"PDU not complete within {self.assoc.network_timeout} s") from None
            else:
                if not received:
                    return
                self._end += received
            flags = flags and socket.MSG_WAITALL

    def send(self, bytestream: bytes) -> None:
        """Send everything, one PDU after the other whichever thread calls.

        A peer that takes nothing for the network timeout is treated as gone (Evt17).
        """
        with self._send_lock:
            self._send_all(bytestream)

    def _send_all(self, bytestream: bytes) -> None:
        deadline = time.monotonic() + (self.assoc.network_timeout or NO_TIMEOUT_S)
        view = memoryview(bytestream)
        connection = self.socket  # the reading thread may take it away meanwhile; then sending fails as an OSError
        while view and connection is not None:
            try:
                view = view[connection.send(view) :]
            except (TimeoutError, BlockingIOError):
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

    def give_back(self) -> None:
        """Give descriptor and buffer back when the reading thread has ended; the object may live on in a cycle."""
        self._buffer, self._start, self._end = bytearray(), 0, 0
        with self._wake_lock:
            descriptor, self._wake_descriptor = self._wake_descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _clear_wake(self) -> None:
        with self._wake_lock:
            if self._wake_descriptor is not None:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_descriptor)


def _set_timeouts(connection: socket.socket, seconds: float, *, in_kernel: bool) -> None:
    if not in_kernel:
        connection.settimeout(seconds)
        return
    connection.settimeout(None)
    interval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


class ReceivedFragments:
    """A P-DATA-TF PDU (PS3.8 9.3.5) as (context id, message control header and fragment) pairs over one buffer."""

    def __init__(self, view: memoryview) -> None:
        self.values: list[tuple[int, memoryview]] = []
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
            self.dul.to_user_queue.put(_lost_connection() if self.dul.assoc.is_established else None)
            self.dul.kill_dul()


def _lost_connection() -> A_P_ABORT:
    primitive = A_P_ABORT()
    primitive.provider_reason = 0x00
    return primitive


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
                self.socket.give_back()
            self.attention.set()

    def _read_pdu_data(self) -> None:
        """Read PDUs within their bounds and put their events on the queue (PS3.8 table 9-10)."""
        for _ in range(PDUS_AT_ONCE):
            event = self._read_one()
            if event is not None:
                self.event_queue.put(event)
                return
            if not self.socket.has_read_ahead:
                return

    def _read_one(self) -> str | None:
        """The event of the next PDU; None for data that was handed on already."""
        try:
            return self._read_pdu()
        except OSError as exc:
            LOGGER.info("connection of %s lost: %s", self.assoc.name, exc)
            return "Evt17"
        except MALFORMED_PDU as exc:
            LOGGER.warning("invalid PDU from %s: %s", self.assoc.name, str(exc)[:200])
            return "Evt19"

    def _read_pdu(self) -> str | None:
        header = bytes(self.socket.recv(PDU_HEADER_BYTES))
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
            return self._take_data(ReceivedFragments(body))
        pdu, event = self._decode_pdu(bytearray(header + body))
        self._recv_pdu.put(pdu)
        return str(event)

    def _take_data(self, fragments: ReceivedFragments) -> str | None:
        """In state 6 P-DATA is handed on at once (action DT-2), which leaves the state as it is."""
        if self.state_machine.current_state == "Sta6":
            self.assoc.dimse.receive_primitive(fragments)
            return None
        self._recv_pdu.put(fragments)
        return "Evt10"

    def _limit_bytes(self, pdu_type: int) -> int:
        if pdu_type != P_DATA_TYPE:
            return MAX_CONTROL_PDU_BYTES
        return (self.assoc.ae.maximum_pdu_size or UNLIMITED_PDU_BYTES) + PDU_SLACK_BYTES
