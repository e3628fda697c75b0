"""Sending over real sockets: every answer of a PACS, a PACS that is away, and stock DCMTK at speed."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from node.breaker import Breaker, delay
from node.delivery_status import Meaning, judge_commitment, judge_rejection, judge_store
from node.destinations import CommitmentUse, Destination, DestinationTls, RetrySettings
from node.sender import DestinationSender
from storage.database import SessionFactory
from storage.outbox import Delivery, OutboxItem, Wanted, list_items, requeue_dead
from tests.database_builders import NOW, SEG, SR, SR_3D, database, outcome, report, stored
from tests.fake_pacs import Behaviour, FakePacs, fake_pacs

QUICK = RetrySettings(first_delay_s=0.05, longest_delay_s=0.2, longest_object_delay_s=0.2, failures_to_open=2)
WANTED = Wanted("pacs", frozenset({"segmentation", "measurements"}), (SEG, SR_3D, SR))


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[SessionFactory]:
    with database(tmp_path) as found:
        yield found


def destination(port: int, **changes: object) -> Destination:
    values = {"commitment": CommitmentUse.NEVER, "retry": QUICK, "connect_timeout_s": 5, "response_timeout_s": 5}
    return Destination("pacs", "FAKEPACS", "127.0.0.1", port, **(values | changes))  # type: ignore[arg-type]


def write_object(folder: Path, uid: str, sop_class: str, n_bytes: int = 200) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = "1.2.3", f"{uid}.9", "T"
    ds.EncapsulatedDocument = b"\0" * n_bytes
    path = folder / f"{uid}.dcm"
    dcmwrite(path, ds, enforce_file_format=True)
    return path


def queue(sessions: SessionFactory, folder: Path, n: int = 1, study: str = "1.2.3") -> list[str]:
    uids = [f"{study}.{number}.7" for number in range(n)]
    objects = tuple(stored("segmentation", SEG, uid, write_object(folder, uid, SEG)) for uid in uids)
    report(sessions, outcome(study, objects=objects), WANTED, now=datetime.now(UTC))
    return uids


def items(sessions: SessionFactory) -> list[OutboxItem]:
    with sessions.begin() as session:
        return list_items(session, limit=5000)


def states(sessions: SessionFactory) -> list[Delivery]:
    return [item.state for item in reversed(items(sessions))]


def deliver(sessions: SessionFactory, pacs: FakePacs, **changes: object) -> DestinationSender:
    sender = DestinationSender(sessions, destination(pacs.port, **changes), "QCT-NODE")
    sender.deliver_once()
    return sender


@contextmanager
def running(*senders: DestinationSender) -> Iterator[None]:
    """Stopped whatever happens: a thread that a failed test leaves would keep the whole run from ending."""
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        for sender in senders:
            sender.stop()


def wait_for(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


# --- what an answer means -------------------------------------------------------------------------------------------

STATUSES = {
    0x0000: Meaning.STORED,
    0xB000: Meaning.STORED,
    0xB006: Meaning.STORED,
    0xB007: Meaning.STORED,
    0x0111: Meaning.STORED,
    0xA700: Meaning.FOR_NOW,
    0xA7FF: Meaning.FOR_NOW,
    0x0110: Meaning.FOR_NOW,
    0x0213: Meaning.FOR_NOW,
    None: Meaning.FOR_NOW,
    0xA900: Meaning.FOR_GOOD,
    0xA9AB: Meaning.FOR_GOOD,
    0xC000: Meaning.FOR_GOOD,
    0xCFFF: Meaning.FOR_GOOD,
    0x0117: Meaning.FOR_GOOD,
    0x0124: Meaning.FOR_GOOD,
    0x0122: Meaning.NO_CONTEXT,
}


@pytest.mark.parametrize(("status", "meaning"), STATUSES.items())
def test_a_store_status_means_what_the_standard_says(status: int | None, meaning: Meaning) -> None:
    assert judge_store(status).meaning is meaning


@pytest.mark.parametrize(
    ("rejection", "meaning"),
    [((1, 1, 1), Meaning.FOR_GOOD), ((1, 1, 3), Meaning.FOR_GOOD), ((1, 1, 7), Meaning.FOR_GOOD),
     ((2, 1, 1), Meaning.FOR_NOW), ((2, 3, 1), Meaning.FOR_NOW), ((2, 3, 2), Meaning.FOR_NOW)],
)  # fmt: skip
def test_a_rejected_association_is_permanent_only_when_it_says_so(
    rejection: tuple[int, int, int], meaning: Meaning
) -> None:
    assert judge_rejection(*rejection).meaning is meaning


def test_an_object_the_pacs_lost_is_sent_again_and_one_it_cannot_keep_is_not() -> None:
    assert judge_commitment(0x0112).meaning is Meaning.FOR_NOW
    assert judge_commitment(0x0122).meaning is Meaning.FOR_GOOD


# --- one object, each answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "state"),
    [(0x0000, Delivery.DELIVERED), (0xB000, Delivery.DELIVERED), (0xA700, Delivery.WAITING),
     (0xA900, Delivery.DEAD), (0xC000, Delivery.DEAD), (0x0122, Delivery.DEAD), (0x0124, Delivery.DEAD),
     (None, Delivery.WAITING)],
)  # fmt: skip
def test_each_answer_settles_the_object(
    sessions: SessionFactory, tmp_path: Path, status: int | None, state: Delivery
) -> None:
    queue(sessions, tmp_path)
    with fake_pacs(Behaviour(status=lambda uid: status)) as pacs:
        deliver(sessions, pacs)
    assert states(sessions) == [state]


def test_an_object_that_was_refused_for_good_does_not_hold_up_the_others(
    sessions: SessionFactory, tmp_path: Path
) -> None:
    uids = queue(sessions, tmp_path, 3)
    with fake_pacs(Behaviour(status=lambda uid: 0xA900 if uid == uids[1] else 0)) as pacs:
        deliver(sessions, pacs)
        assert pacs.stored == [uids[0], uids[2]] and pacs.associations == 1
    assert states(sessions) == [Delivery.DELIVERED, Delivery.DEAD, Delivery.DELIVERED]


def test_a_pacs_out_of_resources_is_left_alone_after_three_refusals(sessions: SessionFactory, tmp_path: Path) -> None:
    asked: list[str] = []
    queue(sessions, tmp_path, 10)
    with fake_pacs(Behaviour(status=lambda uid: asked.append(uid) or 0xA700)) as pacs:
        sender = deliver(sessions, pacs)
    assert len(asked) == 3
    assert sender.breaker.failures == 1 and set(states(sessions)) == {Delivery.WAITING}


def test_an_object_that_makes_the_pacs_abort_lets_the_others_through(sessions: SessionFactory, tmp_path: Path) -> None:
    uids = queue(sessions, tmp_path, 3)
    with fake_pacs(Behaviour(status=lambda uid: None if uid == uids[0] else 0)) as pacs:
        sender = DestinationSender(sessions, destination(pacs.port, response_timeout_s=1), "QCT-NODE")
        with running(sender):
            wait_for(lambda: len(pacs.stored) == 2)
    assert sorted(pacs.stored) == sorted(uids[1:])


def test_a_class_that_is_not_accepted_is_sent_in_its_other_form(sessions: SessionFactory, tmp_path: Path) -> None:
    objects = (
        stored("measurements", SR_3D, "1.2.3.1", write_object(tmp_path, "1.2.3.1", SR_3D)),
        stored("measurements", SR, "1.2.3.2", write_object(tmp_path, "1.2.3.2", SR)),
    )
    report(sessions, outcome(objects=objects), WANTED)
    with fake_pacs(Behaviour(classes=(SR,))) as pacs:
        sender = deliver(sessions, pacs)
        sender.deliver_once()
        assert pacs.stored == ["1.2.3.2"]
    assert states(sessions) == [Delivery.REPLACED, Delivery.DELIVERED]


def test_a_class_without_another_form_is_put_aside_at_once(sessions: SessionFactory, tmp_path: Path) -> None:
    queue(sessions, tmp_path)
    with fake_pacs(Behaviour(classes=(SR,))) as pacs:
        deliver(sessions, pacs)
    assert states(sessions) == [Delivery.DEAD]
    assert "did not accept" in items(sessions)[0].detail


def test_a_caller_the_pacs_does_not_know_is_put_aside_at_once_and_can_be_requeued(
    sessions: SessionFactory, tmp_path: Path
) -> None:
    queue(sessions, tmp_path, 2)
    with fake_pacs(Behaviour(require_calling=("KNOWN",))) as pacs:
        deliver(sessions, pacs)
        assert states(sessions) == [Delivery.DEAD, Delivery.DEAD]
        assert "calling AE title not recognized" in items(sessions)[0].detail
        with sessions.begin() as session:
            assert requeue_dead(session, NOW, "pacs") == 2
        deliver(sessions, pacs, calling_ae_title="KNOWN")
    assert states(sessions) == [Delivery.DELIVERED, Delivery.DELIVERED]


def test_a_pacs_that_only_speaks_implicit_vr_gets_implicit_vr(
    sessions: SessionFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(sessions, tmp_path)
    monkeypatch.setattr("tests.fake_pacs.SYNTAXES", ("1.2.840.10008.1.2",))
    with fake_pacs() as pacs:
        deliver(sessions, pacs)
        assert len(pacs.stored) == 1


def test_a_file_that_is_gone_is_put_aside_with_its_reason(sessions: SessionFactory, tmp_path: Path) -> None:
    (uid,) = queue(sessions, tmp_path)
    (tmp_path / f"{uid}.dcm").unlink()
    with fake_pacs() as pacs:
        deliver(sessions, pacs)
    assert states(sessions) == [Delivery.DEAD] and "cannot be read" in items(sessions)[0].detail


# --- a PACS that is away --------------------------------------------------------------------------------------------


def test_a_pacs_that_comes_back_gets_every_object_once_after_a_probe(sessions: SessionFactory, tmp_path: Path) -> None:
    uids = queue(sessions, tmp_path, 20)
    port = free_port()
    sender = DestinationSender(sessions, destination(port), "QCT-NODE")
    with ExitStack() as open_parts:
        with running(sender):
            wait_for(lambda: sender.breaker.failures >= 3)
            assert all("not reached" in item.detail for item in items(sessions)), "status must say why they wait"
            pacs = open_parts.enter_context(fake_pacs(port=port))
            wait_for(lambda: len(pacs.stored) == 20)
        assert pacs.stored == uids and pacs.echoes == 1 and pacs.associations == 1
    assert set(states(sessions)) == {Delivery.DELIVERED}


def test_a_pacs_that_stalls_is_given_up_after_the_response_time(sessions: SessionFactory, tmp_path: Path) -> None:
    queue(sessions, tmp_path)
    started = time.monotonic()
    with fake_pacs(Behaviour(stall_s=3.0)) as pacs:
        deliver(sessions, pacs, response_timeout_s=0.5)
        assert time.monotonic() - started < 3.0
    assert states(sessions) == [Delivery.WAITING]


def test_a_silent_host_costs_no_more_than_the_connect_time(sessions: SessionFactory, tmp_path: Path) -> None:
    queue(sessions, tmp_path)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        sender = DestinationSender(sessions, destination(silent.getsockname()[1], connect_timeout_s=0.5), "QCT-NODE")
        started = time.monotonic()
        sender.deliver_once()
    assert time.monotonic() - started < 5.0 and sender.breaker.failures == 1


def test_a_host_that_has_no_address_is_a_destination_that_is_away(sessions: SessionFactory, tmp_path: Path) -> None:
    queue(sessions, tmp_path)
    sender = DestinationSender(sessions, replace(destination(104), host="no-such-host.invalid"), "QCT-NODE")
    assert not sender.deliver_once()
    assert sender.breaker.failures == 1 and states(sessions) == [Delivery.WAITING]


def test_tls_files_that_cannot_be_used_are_named_and_tried_again(
    sessions: SessionFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue(sessions, tmp_path)
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    tls = DestinationTls(enabled=True, ca_file=rubbish)
    DestinationSender(sessions, destination(free_port(), tls=tls), "QCT-NODE").deliver_once()
    assert "its TLS files cannot be used" in caplog.text and states(sessions) == [Delivery.WAITING]


def test_the_breaker_opens_after_its_failures_and_closes_on_success() -> None:
    now = [100.0]
    breaker = Breaker(replace(QUICK, first_delay_s=5, longest_delay_s=60, jitter=0.2), lambda: now[0])
    waits = []
    for _ in range(8):
        waits.append(breaker.failed())
        now[0] += breaker.wait_s
    assert not Breaker(QUICK).is_open and breaker.is_open
    assert 4 <= waits[0] <= 6 and 8 <= waits[1] <= 12
    assert all(48 <= wait <= 72 for wait in waits[4:]), "about one attempt per minute, with jitter"
    assert len({round(wait, 6) for wait in waits[4:]}) > 1
    breaker.succeeded()
    assert not breaker.is_open and breaker.wait_s == 0


def test_no_number_of_failures_makes_a_delay_overflow() -> None:
    assert delay(10_000, 60.0, RetrySettings()) <= 72.0


def test_a_destination_that_is_away_does_not_delay_another(sessions: SessionFactory, tmp_path: Path) -> None:
    objects = (stored("segmentation", SEG, "1.2.3.1", write_object(tmp_path, "1.2.3.1", SEG)),)
    report(sessions, outcome(objects=objects), WANTED, replace(WANTED, destination="archive"))
    with fake_pacs() as pacs:
        away = DestinationSender(sessions, destination(free_port()), "QCT-NODE")
        there = DestinationSender(sessions, replace(destination(pacs.port), name="archive"), "QCT-NODE")
        with running(away, there):
            wait_for(lambda: pacs.stored == ["1.2.3.1"])
    assert sorted(states(sessions)) == [Delivery.DELIVERED, Delivery.WAITING]


def test_stopping_in_the_middle_of_a_batch_leaves_the_rest_for_the_next_start(
    sessions: SessionFactory, tmp_path: Path
) -> None:
    queue(sessions, tmp_path, 30)
    with fake_pacs(Behaviour(stall_s=0.05)) as pacs:
        sender = DestinationSender(sessions, destination(pacs.port), "QCT-NODE")
        with running(sender):
            wait_for(lambda: len(pacs.stored) >= 3)
        sent = len(pacs.stored)
        assert 3 <= sent < 30 and states(sessions).count(Delivery.DELIVERED) == sent
        deliver(sessions, pacs)
        assert len(pacs.stored) == len(set(pacs.stored)) == 30


# --- stock DCMTK ----------------------------------------------------------------------------------------------------

needs_dcmtk = pytest.mark.skipif(shutil.which("storescp") is None, reason="DCMTK's storescp is not installed")


@needs_dcmtk
def test_a_stock_dcmtk_storescp_is_not_waited_for_at_each_object(
    sessions: SessionFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nagle's algorithm stays on at the peer: without our immediate acknowledgements each object costs 40 ms."""
    n = 60
    with storescp(tmp_path / "received") as port:
        queue(sessions, tmp_path, n)
        patient = replace(destination(port), ae_title="STORESCP", response_timeout_s=60.0)
        quick_s = timed(DestinationSender(sessions, patient, "QCT-NODE"))
        queue(sessions, tmp_path, n, "1.2.4")
        monkeypatch.setattr("node.pacs_association.SOCKET_HANDLERS", [])
        plain_s = timed(DestinationSender(sessions, patient, "QCT-NODE"))
    assert len(list((tmp_path / "received").iterdir())) == 2 * n
    assert set(states(sessions)) == {Delivery.DELIVERED}
    print(f"{n / quick_s:.0f} objects/s, {n / plain_s:.0f} without")
    assert plain_s > n * 0.035, "the peer no longer delays: the test shows nothing"
    assert quick_s < 0.6 * plain_s


@pytest.mark.skipif(shutil.which("dcmqrscp") is None, reason="DCMTK's dcmqrscp is not installed")
def test_an_archive_of_dcmtk_keeps_what_it_is_sent(sessions: SessionFactory, tmp_path: Path) -> None:
    queue(sessions, tmp_path, 3)
    port, area = free_port(), tmp_path / "area"
    area.mkdir()
    (tmp_path / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 4\n"
        f"HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {area} RW (100, 1024mb) ANY\nAETable END\n"
    )
    process = subprocess.Popen(["dcmqrscp", "-c", str(tmp_path / "dcmqrscp.cfg")])
    try:
        wait_for(lambda: listening(port))
        DestinationSender(sessions, replace(destination(port), ae_title="ARCHIVE"), "QCT-NODE").deliver_once()
    finally:
        process.kill()
        process.wait()
    assert set(states(sessions)) == {Delivery.DELIVERED}
    assert len([path for path in area.iterdir() if path.suffix == ".dcm"]) == 3


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    folder.mkdir()
    port = free_port()
    process = subprocess.Popen(["storescp", "--output-directory", str(folder), str(port)])
    try:
        wait_for(lambda: listening(port))
        yield port
    finally:
        process.kill()
        process.wait()


def timed(sender: DestinationSender) -> float:
    started = time.monotonic()
    sender.deliver_once()
    return time.monotonic() - started


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_no_sender_thread_is_left() -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("sender")]
