"""Storage commitment over real sockets: on the same association, on a new one, after a restart, in part, never."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import update

from node.commitment import CommitmentReceiver
from node.destinations import CommitmentUse
from node.receiver import Extras, Receiver
from node.receiver_settings import ANY_PEER, ListenAddress, ReceiverSettings
from node.sender import DestinationSender
from storage.commitments import CommitmentRow
from storage.database import SessionFactory
from storage.inbox import Inbox
from storage.outbox import Delivery
from tests.database_builders import database
from tests.fake_pacs import Behaviour, FakePacs, fake_pacs, no_report
from tests.test_sender import QUICK, destination, items, queue, states, wait_for

COMMITTING = {"commitment": CommitmentUse.WHEN_OFFERED, "commitment_wait_s": 5.0}


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[SessionFactory]:
    with database(tmp_path) as found:
        yield found


@pytest.fixture
def listener(sessions: SessionFactory, tmp_path: Path) -> Iterator[Receiver]:
    """The node's own port, where a PACS may bring its answer."""
    commitments = CommitmentReceiver(sessions)
    extras = Extras((commitments.context(),), tuple(commitments.handlers()))
    address = ListenAddress("QCT-NODE", "127.0.0.1", 0)
    receiver = Receiver(address, ReceiverSettings(peers=(ANY_PEER,)), sessions, Inbox(tmp_path / "inbox"), extras)
    receiver.start()
    yield receiver
    receiver.stop(drain_s=1)


def send(sessions: SessionFactory, pacs: FakePacs, **changes: object) -> DestinationSender:
    sender = DestinationSender(sessions, destination(pacs.port, **(COMMITTING | changes)), "QCT-NODE")
    sender.deliver_once()
    return sender


def test_an_answer_on_the_same_association_makes_the_objects_delivered(
    sessions: SessionFactory, tmp_path: Path
) -> None:
    uids = queue(sessions, tmp_path, 3)
    with fake_pacs(Behaviour(commitment=True)) as pacs:
        send(sessions, pacs)
        (request,) = pacs.actions
    assert [str(item.ReferencedSOPInstanceUID) for item in request.ReferencedSOPSequence] == uids
    assert states(sessions) == [Delivery.DELIVERED] * 3
    assert {item.detail for item in items(sessions)} == {"committed"}


def test_the_pacs_has_our_response_to_its_answer_before_the_association_ends(
    sessions: SessionFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = CommitmentReceiver.take_report

    def slow_to_respond(receiver: CommitmentReceiver, event: object) -> tuple[int, None]:
        answer = taken(receiver, event)
        time.sleep(0.3)
        return answer

    monkeypatch.setattr(CommitmentReceiver, "take_report", slow_to_respond)
    queue(sessions, tmp_path)
    with fake_pacs(Behaviour(commitment=True)) as pacs:
        send(sessions, pacs)
        wait_for(lambda: bool(pacs.report_answers))
        assert pacs.report_answers == [0x0000]


@pytest.mark.parametrize("negotiate_role", [True, False])
def test_an_answer_on_a_new_association_is_taken_even_without_role_negotiation(
    sessions: SessionFactory, tmp_path: Path, listener: Receiver, negotiate_role: bool
) -> None:
    queue(sessions, tmp_path, 2)
    with fake_pacs(Behaviour(commitment=True, report=no_report)) as pacs:
        send(sessions, pacs, commitment_wait_s=0.1)
        assert states(sessions) == [Delivery.SENT] * 2, "stored is not yet delivered"
        report = pacs.report_for(pacs.actions[0])
        status = pacs.send_report(report, ("127.0.0.1", listener.port), "QCT-NODE", negotiate_role=negotiate_role)
    assert status == 0x0000
    assert states(sessions) == [Delivery.DELIVERED] * 2


def test_an_answer_after_a_restart_of_the_node_finds_its_request(tmp_path: Path) -> None:
    with fake_pacs(Behaviour(commitment=True, report=no_report)) as pacs:
        with database(tmp_path) as before:
            queue(before, tmp_path)
            send(before, pacs, commitment_wait_s=0.1)
        with database(tmp_path) as after:
            taken = CommitmentReceiver(after).take_report(event_with(pacs.report_for(pacs.actions[0])))
            assert taken == (0x0000, None)
            assert states(after) == [Delivery.DELIVERED]


def test_only_the_object_that_was_not_committed_is_sent_again(sessions: SessionFactory, tmp_path: Path) -> None:
    uids = queue(sessions, tmp_path, 3)
    with fake_pacs(Behaviour(commitment=True, commit_failures={uids[1]: 0x0112})) as pacs:
        sender = send(sessions, pacs)
        wait_for(lambda: states(sessions) == [Delivery.DELIVERED, Delivery.WAITING, Delivery.DELIVERED])
        pacs.behaviour.commit_failures = {}
        wait_for(lambda: sender.deliver_once() or Delivery.WAITING not in states(sessions))
        wait_for(lambda: states(sessions) == [Delivery.DELIVERED] * 3)
        assert pacs.stored == [*uids, uids[1]]


def test_an_object_the_pacs_can_never_keep_is_put_aside(sessions: SessionFactory, tmp_path: Path) -> None:
    uids = queue(sessions, tmp_path, 2)
    with fake_pacs(Behaviour(commitment=True, commit_failures={uids[0]: 0x0122})) as pacs:
        send(sessions, pacs)
        wait_for(lambda: states(sessions) == [Delivery.DEAD, Delivery.DELIVERED])
    assert "not committed: 0x0122" in items(sessions)[-1].detail


def test_a_pacs_without_commitment_has_the_objects_when_they_are_stored(
    sessions: SessionFactory, tmp_path: Path
) -> None:
    queue(sessions, tmp_path)
    with fake_pacs(Behaviour(commitment=False)) as pacs:
        send(sessions, pacs)
    assert states(sessions) == [Delivery.DELIVERED]


def test_where_commitment_is_required_stored_is_never_delivered(
    sessions: SessionFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue(sessions, tmp_path)
    with fake_pacs(Behaviour(commitment=False)) as pacs:
        send(sessions, pacs, commitment=CommitmentUse.REQUIRED)
    assert states(sessions) == [Delivery.SENT]
    assert "does not offer the storage commitment that the configuration requires" in caplog.text


def test_a_pacs_that_takes_no_request_for_commitment_gets_the_next_results_at_once(
    sessions: SessionFactory, tmp_path: Path
) -> None:
    """Its refusals count for the requests alone: they must not keep a result from the radiologist."""
    queue(sessions, tmp_path, study="1.2.3")
    with fake_pacs(Behaviour(commitment=True, takes_requests=False)) as pacs:
        sender = send(sessions, pacs, retry=replace(QUICK, first_delay_s=2.0, longest_delay_s=2.0, jitter=0.0))
        assert states(sessions) == [Delivery.SENT] and "request for commitment failed" in items(sessions)[0].detail
        queue(sessions, tmp_path, study="1.2.4")
        assert sender.deliver_once() and len(pacs.stored) == 2 and len(pacs.actions) == 1
        assert not sender.deliver_once(), "asked again too early"
        pacs.behaviour = replace(pacs.behaviour, takes_requests=True)
        wait_for(lambda: sender.deliver_once() or set(states(sessions)) == {Delivery.DELIVERED})
        wait_for(lambda: states(sessions) == [Delivery.DELIVERED] * 2)
        assert len(pacs.actions) == 2 and len(pacs.stored) == 2


def test_without_an_answer_commitment_is_asked_for_again_after_the_deadline(
    sessions: SessionFactory, tmp_path: Path
) -> None:
    queue(sessions, tmp_path)
    with fake_pacs(Behaviour(commitment=True, report=no_report)) as pacs:
        sender = send(sessions, pacs, commitment_wait_s=0.1)
        assert not sender.deliver_once(), "asked again too early"
        day_ago = datetime.now(UTC) - timedelta(hours=25)
        with sessions.begin() as session:
            session.execute(update(CommitmentRow).values(requested_at=day_ago))
        pacs.behaviour = replace(pacs.behaviour, report=None)
        sender.deliver_once()
        wait_for(lambda: states(sessions) == [Delivery.DELIVERED])
        assert len(pacs.actions) == 2 and len(pacs.stored) == 1


def test_a_report_about_nothing_we_asked_is_answered_as_a_failure(sessions: SessionFactory) -> None:
    report = Dataset()
    report.TransactionUID = "2.25.1"
    assert CommitmentReceiver(sessions).take_report(event_with(report)) == (0x0110, None)
    assert CommitmentReceiver(sessions).take_report(event_with(Dataset())) == (0x0115, None)


def event_with(report: Dataset) -> object:
    class Event:
        event_information = report

    return Event()
