"""The peer's socket of an association: reads ahead, never polls, and every wait has an end."""

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from typing import Any

from pynetdicom.transport import AssociationSocket

WAIT_S = 0.25  # how long a thread waits for data before it looks at its timers
NO_TIMEOUT_S = 3600.0  # bound of a single PDU where no network timeout is set
READ_AHEAD_BYTES = 256 * 1024  # per association; two PDUs of the usual 128 kB
PDU_HEADER_BYTES = 6


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
