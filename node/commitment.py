"""Storage Commitment Push Model as SCU (PS3.4 annex J): "delivered" means that the destination has committed itself.

The request is an N-ACTION under a Transaction UID kept in the database. The answer is an N-EVENT-REPORT on the same
association or on a new one that the destination opens to our port, possibly after a restart of this node.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from analysis.errors import DeliveryError
from node.delivery_status import Meaning, judge_commitment
from node.destinations import RetrySettings
from node.pacs_association import Handlers, PacsAssociation
from storage.commitments import CommitmentResult, close_commitment, open_commitment, withdraw_commitment
from storage.database import SessionFactory
from storage.outbox import OutboxItem, fully_delivered, mark_dead, mark_delivered, mark_refused_for_now
from storage.retention import mark_delivered as mark_study_delivered

LOGGER = logging.getLogger(__name__)
REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 J.3.2.1
SUCCESS, PROCESSING_FAILURE, INVALID_ARGUMENT = 0x0000, 0x0110, 0x0115


@dataclass(frozen=True, slots=True)
class CommitmentReceiver:
    """Takes the answers, on whatever association they come.

    arrived : called in the thread that serves the answer, before anything is done with it
    answered : called when it is in the database; wakes the senders
    """

    sessions: SessionFactory
    retry: RetrySettings = RetrySettings()
    arrived: Callable[[], None] = lambda: None
    answered: Callable[[], None] = lambda: None

    def handlers(self) -> Handlers:
        """For the sender's own associations and for the receiver's port."""
        return [(evt.EVT_N_EVENT_REPORT, self.take_report)]

    def context(self) -> PresentationContext:
        """For the receiver's port: the destination calls as SCP of the service; some do not negotiate the role."""
        context = build_context(StorageCommitmentPushModel)
        context.scu_role = context.scp_role = True
        return context

    def take_report(self, event: Any) -> tuple[int, None]:
        """N-EVENT-REPORT: match it with its request and settle every object it names."""
        self.arrived()
        report = event.event_information
        uid = str(report.get("TransactionUID", ""))
        if not uid:
            return INVALID_ARGUMENT, None
        committed = [str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence", ())]
        failed = {
            str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", PROCESSING_FAILURE))
            for item in report.get("FailedSOPSequence", ())
        }
        now = datetime.now(UTC)
        with self.sessions.begin() as session:
            result = close_commitment(session, uid, committed, failed, now)
            if result is not None:
                self._settle(session, result, now)
        if result is None:
            LOGGER.warning("commitment report with unknown transaction=%s", uid)
            return PROCESSING_FAILURE, None
        LOGGER.info("commitment answered destination=%s transaction=%s committed=%d failed=%d",
                    result.destination, uid, len(result.committed), len(result.failed))  # fmt: skip
        self.answered()
        return SUCCESS, None

    def _settle(self, session: Any, result: CommitmentResult, now: datetime) -> None:
        mark_delivered(session, [item.id for item in result.committed], "committed", now)
        for item, reason in (*result.failed, *((item, PROCESSING_FAILURE) for item in result.unmentioned)):
            answer = judge_commitment(reason)
            LOGGER.warning("not committed series=%s kind=%s destination=%s: %s",
                           item.series_instance_uid, item.kind, item.destination, answer.text)  # fmt: skip
            if answer.meaning is Meaning.FOR_GOOD:
                mark_dead(session, item.id, f"not committed: {answer.text}")
            else:
                again_at = now + timedelta(seconds=self.retry.first_delay_s * random.uniform(0.5, 1.5))
                mark_refused_for_now(session, item.id, f"not committed: {answer.text}; sent again", again_at)
        for study, version in {(item.study_instance_uid, item.version) for item in result.committed}:
            if fully_delivered(session, study, version):
                mark_study_delivered(session, study, version, now)


def request_commitment(
    association: PacsAssociation, sessions: SessionFactory, destination: str, items: Sequence[OutboxItem]
) -> UID:
    """Ask the destination to commit itself to these objects; the request is in the database before it is sent.

    Raises
    ------
    DeliveryError : the destination did not take the request; it may be asked again later
    """
    uid = generate_uid(prefix=None)  # 2.25., PS3.5 B.2
    with sessions.begin() as session:
        open_commitment(session, uid, destination, [item.id for item in items], datetime.now(UTC))
    try:
        status, _ = association.raw.send_n_action(
            _request(uid, items), REQUEST_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        code = status.get("Status")
    except (ValueError, RuntimeError) as error:  # no such context, or the association ended
        code, reason = None, str(error)
    else:
        reason = "no answer" if code is None else f"status 0x{code:04X}"
    if code != SUCCESS:
        with sessions.begin() as session:
            withdraw_commitment(session, uid)
        raise DeliveryError(f"{destination}: the request for commitment failed: {reason}", permanent=False)
    LOGGER.info("commitment requested destination=%s transaction=%s objects=%d", destination, uid, len(items))
    return uid


def _request(uid: str, items: Sequence[OutboxItem]) -> Dataset:
    ds = Dataset()
    ds.TransactionUID = uid
    ds.ReferencedSOPSequence = [_reference(item) for item in items]
    return ds


def _reference(item: OutboxItem) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID = item.sop_class_uid
    ds.ReferencedSOPInstanceUID = item.sop_instance_uid
    return ds
