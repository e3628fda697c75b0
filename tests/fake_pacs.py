"""A PACS on a free loopback port that records what it gets, and can refuse, stall, abort, commit late or not at all."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

SUCCESS = 0x0000
DEFAULT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
)
SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


@dataclass
class Behaviour:
    """How the fake answers; may be changed while it runs."""

    classes: Sequence[str] = DEFAULT_CLASSES
    status: Callable[[str], int | None] = lambda sop_instance_uid: SUCCESS  # None: abort instead of answering
    stall_s: float = 0.0
    commitment: bool = False
    takes_requests: bool = True  # False: every request for commitment is aborted, as Orthanc does for strangers
    report: Callable[["FakePacs", Dataset], None] | None = None  # None: on the same association
    commit_failures: dict[str, int] = field(default_factory=dict)  # SOP Instance UID -> Failure Reason
    require_calling: tuple[str, ...] = ()


class FakePacs:
    """`stored` holds SOP Instance UIDs in the order in which they came, `datasets` what they held."""

    ae_title = "FAKEPACS"

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.stored: list[str] = []
        self.datasets: dict[str, Dataset] = {}
        self.associations = 0
        self.echoes = 0
        self.actions: list[Dataset] = []
        self.report_answers: list[int | None] = []  # what its reports were answered with, None: not at all
        self._lock = threading.Lock()
        self._server: Any = None
        self.port = port

    def start(self) -> "FakePacs":
        ae = AE(self.ae_title)
        ae.network_timeout = 20
        ae.require_calling_aet = list(self.behaviour.require_calling)
        ae.require_called_aet = True
        ae.add_supported_context(Verification)
        for sop_class in self.behaviour.classes:
            ae.add_supported_context(sop_class, list(SYNTAXES))
        if self.behaviour.commitment:
            ae.add_supported_context(StorageCommitmentPushModel)
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=self._handlers())
        self.port = int(self._server.server_address[1])
        return self

    def stop(self) -> None:
        """Go away: no listener, no association."""
        for association in self._server.active_associations:
            association.abort()
        self._server.shutdown()

    def send_report(self, report: Dataset, to: tuple[str, int], ae_title: str, *, negotiate_role: bool = True) -> int:
        """N-EVENT-REPORT on an association that this PACS opens itself."""
        ae = AE(self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)] if negotiate_role else []
        association = ae.associate(*to, ae_title=ae_title, ext_neg=roles)
        assert association.is_established, "the node did not accept the association for the report"
        status, _ = association.send_n_event_report(
            report, _event_type(report), StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        association.release()
        return int(status.Status)

    def report_for(self, request: Dataset) -> Dataset:
        """The answer to a commitment request, with the configured failures."""
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        failures = self.behaviour.commit_failures
        kept = [item for item in request.ReferencedSOPSequence if item.ReferencedSOPInstanceUID not in failures]
        failed = [item for item in request.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in failures]
        for item in failed:
            item.FailureReason = failures[item.ReferencedSOPInstanceUID]
        if kept:
            report.ReferencedSOPSequence = kept
        if failed:
            report.FailedSOPSequence = failed
        return report

    def _handlers(self) -> list[tuple[Any, Any]]:
        return [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_N_ACTION, self._action),
            (evt.EVT_REQUESTED, self._requested),
        ]

    def _requested(self, event: Any) -> None:
        self.associations += 1

    def _echo(self, event: Any) -> int:
        self.echoes += 1
        return SUCCESS

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        time.sleep(self.behaviour.stall_s)
        status = self.behaviour.status(uid)
        if status is None:
            event.assoc.abort()
            return SUCCESS
        if status in (SUCCESS, 0xB000):
            with self._lock:
                self.stored.append(uid)
                self.datasets[uid] = event.dataset
        return status

    def _action(self, event: Any) -> tuple[int, None]:
        request = event.action_information
        self.actions.append(request)
        if not self.behaviour.takes_requests:
            event.assoc.abort()
            return 0x0110, None  # processing failure
        if self.behaviour.report is not None:
            self.behaviour.report(self, request)
        else:
            threading.Thread(target=self._report_here, args=(event.assoc, request), daemon=True).start()
        return SUCCESS, None

    def _report_here(self, association: Any, request: Dataset) -> None:
        time.sleep(0.05)  # after the answer to the N-ACTION
        report = self.report_for(request)
        answer, _ = association.send_n_event_report(
            report, _event_type(report), StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.report_answers.append(answer.get("Status"))


def _event_type(report: Dataset) -> int:
    """PS3.4 J.3.3.1: 1 all committed, 2 failures exist."""
    return 2 if "FailedSOPSequence" in report else 1


@contextmanager
def fake_pacs(behaviour: Behaviour | None = None, port: int = 0) -> Iterator[FakePacs]:
    pacs = FakePacs(behaviour, port).start()
    try:
        yield pacs
    finally:
        pacs.stop()


def no_report(pacs: FakePacs, request: Dataset) -> None:
    """For a PACS that never answers a commitment request, or answers when the test says so."""
