"""C-STORE messages whose data set goes from the network straight into a file (PS3.7 9.1.1); all others as pynetdicom.

Whatever is wrong with one object, the association goes on: its data set is drained and its answer is a status.
"""

import logging
import queue
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from node.bounded_socket import WAIT_S
from node.command_set import StoreAnswer, StoreCommand, announces_data_set, parse_store_command, store_answer_pdu
from node.store_status import (
    CANNOT_UNDERSTAND,
    INVALID_OBJECT_INSTANCE,
    PROCESSING_FAILURE,
    SOP_CLASS_NOT_SUPPORTED,
    Refusal,
)
from node.upper_layer import MALFORMED_PDU, AlertingQueue, ReceivedFragments
from storage.inbox import IncomingFile, ObjectNames
from storage.instance_header import is_uid

LOGGER = logging.getLogger(__name__)

COMMAND, LAST = 0x01, 0x02  # bits of the message control header (PS3.8 annex E.2)
MAX_COMMAND_BYTES = 64 * 1024
MAX_SMALL_DATA_SET_BYTES = 2**20  # N-ACTION, N-EVENT-REPORT and the like are held in memory
MAX_QUEUED_MESSAGES = 8  # the node does not negotiate asynchronous operations; a sender that floods is aborted

OpenFile = Callable[[ObjectNames], "IncomingFile | Refusal"]


@dataclass(slots=True)
class StoreRequest:
    """A C-STORE whose data set has been taken from the network."""

    context_id: int
    command: StoreCommand
    incoming: IncomingFile | None
    refusal: Refusal | None

    is_valid_request = True  # what pynetdicom asks of a message
    msg_type = "C-STORE"

    def answer_pdu(self, status: int, comment: str = "") -> bytes:
        """The response; UIDs that are none are not repeated."""
        sop_class_uid, sop_instance_uid = self.command.sop_class_uid, self.command.sop_instance_uid
        answer = StoreAnswer(
            message_id=self.command.message_id,
            sop_class_uid=sop_class_uid if is_uid(sop_class_uid) else "",
            sop_instance_uid=sop_instance_uid if is_uid(sop_instance_uid) else "",
            status=status,
            comment=comment,
        )
        return store_answer_pdu(self.context_id, answer)


class StreamingMessages(DIMSEServiceProvider):  # type: ignore[misc]
    """The DIMSE provider of one association; written to by the upper layer's thread only."""

    def __init__(self, assoc: Any, open_file: OpenFile) -> None:
        super().__init__(assoc)
        self.msg_queue = AlertingQueue(self.dul.attention.set)
        self._open_file = open_file
        self._command = bytearray()
        self._data = bytearray()
        self._store: StoreRequest | None = None

    def get_msg(self, block: bool = False) -> Any:
        """The next message; without one the association's thread rests until something needs its attention."""
        if not block and self.msg_queue.empty():
            self.dul.attention.wait(WAIT_S)
            self.dul.attention.clear()
        try:
            return self.msg_queue.get(block=block, timeout=self.dimse_timeout)
        except queue.Empty:
            return None, None

    def receive_primitive(self, primitive: ReceivedFragments) -> None:
        """Take the fragments of one P-DATA PDU; what breaks the protocol aborts the association (Evt19)."""
        try:
            for context_id, value in primitive.values:
                self._take(context_id, value)
        except MALFORMED_PDU as exc:
            LOGGER.warning("invalid DIMSE message from %s: %s", self.assoc.name, str(exc)[:200])
            self.abandon()
            self.dul.event_queue.put("Evt19")

    def abandon(self) -> None:
        """Forget a half received message and remove its file."""
        if self._store is not None and self._store.incoming is not None:
            self._store.incoming.discard()
        self._store = None
        self._command.clear()
        self._data.clear()

    def discard_unserved(self) -> None:
        """Remove the files of complete messages that nobody will serve any more."""
        while not self.msg_queue.empty():
            _, message = self.msg_queue.get(block=False)
            if isinstance(message, StoreRequest) and message.incoming is not None:
                message.incoming.discard()

    def _take(self, context_id: int, value: memoryview) -> None:
        control, fragment = value[0], value[1:]
        if control & COMMAND:
            self._take_command(context_id, fragment, last=bool(control & LAST))
        elif self._store is not None:
            self._take_image(fragment, last=bool(control & LAST))
        else:
            self._take_small_data(context_id, fragment, last=bool(control & LAST))

    def _take_command(self, context_id: int, fragment: memoryview, *, last: bool) -> None:
        if self._store is not None or self._data:
            raise ValueError("command fragment inside a data set")
        self._command += fragment
        if len(self._command) > MAX_COMMAND_BYTES:
            raise ValueError(f"command set beyond {MAX_COMMAND_BYTES} bytes")
        if not last:
            return
        command = parse_store_command(bytes(self._command))
        if command is not None:
            self._command.clear()
            self._start_store(context_id, command)
            if not command.has_data_set:
                self._finish_store()
        elif not announces_data_set(bytes(self._command)):
            self._pass_on(context_id, None)

    def _take_small_data(self, context_id: int, fragment: memoryview, *, last: bool) -> None:
        if not self._command:
            raise ValueError("data set without a command")
        self._data += fragment
        if len(self._data) > MAX_SMALL_DATA_SET_BYTES:
            raise ValueError(f"data set beyond {MAX_SMALL_DATA_SET_BYTES} bytes in a message that is no C-STORE")
        if last:
            self._pass_on(context_id, bytes(self._data))

    def _pass_on(self, context_id: int, data: bytes | None) -> None:
        """Everything that is no C-STORE goes pynetdicom's way."""
        primitive = _as_primitive(context_id, bytes(self._command), data)
        self._command.clear()
        self._data.clear()
        self._check_queue()
        super().receive_primitive(primitive)

    def _start_store(self, context_id: int, command: StoreCommand) -> None:
        context = self.assoc._accepted_cx[context_id]
        refusal = _check_names(command, str(context.abstract_syntax))
        self._store = StoreRequest(context_id, command, None, refusal)
        if refusal is None:
            names = ObjectNames(
                command.sop_class_uid,
                command.sop_instance_uid,
                str(context.transfer_syntax[0]),
                str(self.assoc.requestor.ae_title),
            )
            opened = self._open_file(names)
            self._store.refusal = opened if isinstance(opened, Refusal) else None
            self._store.incoming = opened if isinstance(opened, IncomingFile) else None

    def _take_image(self, fragment: memoryview, *, last: bool) -> None:
        if self._store is not None and self._store.incoming is not None:
            self._store.incoming.write(fragment)
        if last:
            self._finish_store()

    def _finish_store(self) -> None:
        store, self._store = self._store, None
        if store is None:
            raise ValueError("data set without a command")
        self._check_queue(store.incoming)
        self.msg_queue.put((store.context_id, store))

    def _check_queue(self, incoming: IncomingFile | None = None) -> None:
        if self.msg_queue.qsize() >= MAX_QUEUED_MESSAGES:
            if incoming is not None:
                incoming.discard()
            raise ValueError(f"more than {MAX_QUEUED_MESSAGES} requests without waiting for an answer")


def _check_names(command: StoreCommand, negotiated_class_uid: str) -> Refusal | None:
    if command.sop_class_uid != negotiated_class_uid:
        if not is_uid(command.sop_class_uid):
            return Refusal(PROCESSING_FAILURE, "Affected SOP Class UID missing or invalid")
        return Refusal(SOP_CLASS_NOT_SUPPORTED, "SOP class is not the one of the presentation context")
    if not command.sop_instance_uid:
        return Refusal(CANNOT_UNDERSTAND, "Affected SOP Instance UID missing")
    if not is_uid(command.sop_instance_uid):
        return Refusal(INVALID_OBJECT_INSTANCE, "Affected SOP Instance UID is no valid UID")
    if not command.has_data_set:
        return Refusal(CANNOT_UNDERSTAND, "C-STORE without a data set")
    return None


def _as_primitive(context_id: int, command: bytes, data: bytes | None) -> P_DATA:
    """A whole message as one pynetdicom primitive."""
    primitive = P_DATA()
    values = [[context_id, struct.pack("B", COMMAND | LAST) + command]]
    if data is not None:
        values.append([context_id, struct.pack("B", LAST) + data])
    primitive.presentation_data_value_list = values
    return primitive
