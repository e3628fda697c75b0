"""PS3.8 upper layer with bounds: every PDU has a length limit and a deadline, and nothing polls.

Convention: pynetdicom's state machine stays; only reading, writing and waiting are replaced. P-DATA is handed on as
fragments that share one buffer, so that an image passes through without copies.
"""

import logging
import queue
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError, StateMachine
from pynetdicom.pdu_primitives import A_P_ABORT
from pynetdicom.timer import Timer

from node.bounded_socket import PDU_HEADER_BYTES, BoundedSocket

LOGGER = logging.getLogger(__name__)

P_DATA_TYPE = 0x04
PDUS_AT_ONCE = 16  # then timers and answers get their turn
PDU_TYPES = range(0x01, 0x08)
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
            self._serve()
        finally:
            self.assoc.dimse.abandon()
            if isinstance(self.socket, BoundedSocket):
                self.socket.give_back()
            self.attention.set()

    def _serve(self) -> None:
        """pynetdicom's loop without its sleep: `ready` waits, and to sleep means to queue for the interpreter again."""
        self._idle_timer.start()
        self.assoc._dul_ready.set()
        while not self._kill_thread:
            if self.artim_timer.expired:
                self.event_queue.put("Evt18")
            if not self._process_recv_primitive() and self._is_transport_event():
                self._idle_timer.restart()
            if not self.event_queue.empty():  # this thread is the only reader
                self.state_machine.do_action(self.event_queue.get())

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
