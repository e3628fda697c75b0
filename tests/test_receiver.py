"""Receiving over real sockets, DCMTK and pynetdicom as peers: what is acknowledged is on disk and in the database."""

import base64
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel
from sqlalchemy import text

from node.receiver import Extras
from node.transfer_syntax_samples import SAMPLES
from node.transfer_syntaxes import ALL_SYNTAXES, check_syntaxes
from storage.inbox import DiskLimits
from storage.instances import release_study, series_of_study, study_facts, take_study
from storage.retention import mark_delivered, purge_delivered
from tests.network_builders import (
    AE_TITLE,
    NO_DISK_LIMITS,
    QUIET_TOOLS,
    RunningNode,
    ct_slice,
    echoscu,
    running_node,
    series_spec,
    storescu,
    wait_until,
    write_file,
    write_series,
)

MEGABYTE = 2**20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "node") as running:
        yield running


def stored_files(node: RunningNode, study_uid: str) -> list[Path]:
    with node.sessions.begin() as session:
        return [node.inbox.root / i.path for s in series_of_study(session, study_uid) for i in s.instances]


def test_what_is_acknowledged_is_on_disk_and_in_the_database(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec(slices=5)
    sent = write_series(spec, tmp_path / "s")
    assert storescu(node.port, "+sd", str(tmp_path / "s")).code == 0
    received = stored_files(node, spec.study_uid)
    assert len(received) == len(sent)
    for ours, theirs in zip(received, sent, strict=True):
        assert dcmread(ours) == dcmread(theirs)
        assert dcmread(ours).file_meta.SourceApplicationEntityTitle == "CT1"


def test_verification_is_answered(node: RunningNode) -> None:
    assert echoscu(node.port).code == 0


def test_every_transfer_syntax_passes_its_decode_test() -> None:
    assert [verdict.reason for verdict in check_syntaxes(ALL_SYNTAXES) if not verdict.decodable] == []


def test_a_decoder_that_gives_wrong_pixels_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = dict(SAMPLES)
    swapped[HTJ2KLossless] = replace(SAMPLES["1.2.840.10008.1.2.4.203"], tolerance=0)
    monkeypatch.setattr("node.transfer_syntaxes.SAMPLES", swapped)
    (verdict,) = check_syntaxes([HTJ2KLossless])
    assert not verdict.decodable and "wrong by" in verdict.reason


@pytest.mark.parametrize("syntax", ALL_SYNTAXES, ids=lambda uid: uid.name)
def test_an_image_in_every_syntax_is_stored_as_it_came(node: RunningNode, syntax: UID) -> None:
    ds = ct_slice(series_spec(), 0)
    ds.file_meta = Dataset()  # type: ignore[assignment]
    ds.file_meta.TransferSyntaxUID = syntax
    sample = SAMPLES.get(HTJ2KLossless if syntax == HTJ2KLosslessRPCL else syntax)
    if syntax == RLELossless:
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless, generate_instance_uid=False)
    elif sample is not None:
        ds.PixelData = encapsulate([base64.b85decode(sample.codestream_base85)])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    ae = AE("CT1")
    ae.add_requested_context(ds.SOPClassUID, syntax)
    association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
    assert association.send_c_store(ds).Status == 0
    association.release()
    (path,) = stored_files(node, ds.StudyInstanceUID)
    stored = dcmread(path)
    assert stored.file_meta.TransferSyntaxUID == syntax
    assert stored.PixelData == ds.PixelData


def test_uncompressed_is_preferred_whatever_the_peer_lists_first(node: RunningNode) -> None:
    ae = AE("CT1")
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2", [RLELossless, ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
    assert [c.transfer_syntax for c in association.accepted_contexts] == [[ExplicitVRLittleEndian]]
    association.release()


def test_an_identical_resend_succeeds_and_changes_nothing(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec(slices=4)
    write_series(spec, tmp_path / "s")
    assert storescu(node.port, "+sd", str(tmp_path / "s")).code == 0
    with node.sessions.begin() as session:
        assert take_study(session, spec.study_uid, 1)
        before = study_facts(session, spec.study_uid)
    assert storescu(node.port, "+sd", str(tmp_path / "s")).code == 0
    with node.sessions.begin() as session:
        assert study_facts(session, spec.study_uid) == before
    assert len(stored_files(node, spec.study_uid)) == 4
    assert not list(node.inbox.quarantined.iterdir())


def test_other_bytes_under_a_known_uid_are_put_aside_and_the_first_is_kept(node: RunningNode, tmp_path: Path) -> None:
    ds = ct_slice(series_spec(), 0)
    first = write_file(ds, tmp_path / "first.dcm")
    kept = bytes(ds.PixelData)
    ds.PixelData = bytes(len(ds.PixelData))
    second = write_file(ds, tmp_path / "second.dcm")
    assert storescu(node.port, str(first)).code == 0
    answer = storescu(node.port, "-v", str(second))
    assert "0xb000" in answer.text.lower() or "Warning" in answer.text, answer.text
    (path,) = stored_files(node, ds.StudyInstanceUID)
    assert dcmread(path).PixelData == kept
    (aside,) = node.inbox.quarantined.iterdir()
    assert dcmread(aside).PixelData == ds.PixelData
    with node.sessions.begin() as session:
        rows = session.connection().exec_driver_sql("SELECT path, reason, calling_ae_title FROM quarantine").all()
    assert [(f"quarantine/{aside.name}", "CT1")] == [(row[0], row[2]) for row in rows]


def test_a_late_image_opens_the_next_version_and_the_old_keeps_its_images(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec(slices=3)
    files = write_series(spec, tmp_path / "s")
    assert storescu(node.port, *map(str, files[:2])).code == 0
    with node.sessions.begin() as session:
        assert take_study(session, spec.study_uid, 1)
        assert not take_study(session, spec.study_uid, 1), "one job per version"
    assert storescu(node.port, str(files[2])).code == 0
    with node.sessions.begin() as session:
        facts = study_facts(session, spec.study_uid)
        assert facts is not None and (facts.version, facts.taken_version) == (2, 1)
        (old,), (new,) = (series_of_study(session, spec.study_uid, version) for version in (1, 2))
    assert (len(old.instances), len(new.instances)) == (2, 3)


def test_two_patient_ids_in_one_study_are_flagged(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec()
    other = replace(spec, patient_id="P2", seed=1)
    files = [write_file(ct_slice(spec, 0), tmp_path / "a.dcm"), write_file(ct_slice(other, 1), tmp_path / "b.dcm")]
    assert storescu(node.port, *map(str, files)).code == 0
    with node.sessions.begin() as session:
        facts = study_facts(session, spec.study_uid)
    assert facts is not None and facts.conflict == "two Patient IDs in one study"


def test_the_same_study_over_four_associations_at_once_is_one_copy(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec(slices=30, rows=64)
    write_series(spec, tmp_path / "s")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: storescu(node.port, "+sd", str(tmp_path / "s"), calling=f"CT{i}"), range(4)))
    assert [result.code for result in results] == [0, 0, 0, 0], results
    assert len(stored_files(node, spec.study_uid)) == 30
    assert len(list(node.inbox.stored_paths())) == 30
    assert not list(node.inbox.incoming.iterdir())


def test_a_class_beside_ct_is_stored_and_an_unlisted_one_is_refused_in_negotiation(
    node: RunningNode, tmp_path: Path
) -> None:
    ds = ct_slice(series_spec(), 0)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    assert storescu(node.port, str(write_file(ds, tmp_path / "mr.dcm"))).code == 0
    ae = AE("CT1")
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.6.1")  # ultrasound: not listed
    association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
    assert not association.accepted_contexts


def test_enhanced_ct_streams_to_disk_without_memory(tmp_path: Path) -> None:
    """A 128 MB instance raises the memory of the node by less than 40 MB."""
    source = large_enhanced_ct(tmp_path / "big.dcm", 128 * MEGABYTE)
    command = [sys.executable, "-m", "tests.studies.receive_benchmark", "--serve", str(tmp_path / "node")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        process = psutil.Process(server.pid)
        assert storescu(port, str(write_file(ct_slice(series_spec(), 0), tmp_path / "small.dcm"))).code == 0
        before = process.memory_info().rss
        sender = subprocess.Popen(["storescu", "-aec", AE_TITLE, "127.0.0.1", str(port), str(source)], env=QUIET_TOOLS)
        peak = before
        while sender.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.01)
        assert sender.returncode == 0
        assert peak - before < 40 * MEGABYTE, f"{(peak - before) / MEGABYTE:.0f} MB"
    finally:
        server.terminate()
        server.wait(timeout=20)


def large_enhanced_ct(path: Path, size_bytes: int) -> Path:
    """An Enhanced CT whose pixels are a hole in the file."""
    ds = ct_slice(series_spec(), 0)
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.Rows = ds.Columns = 512
    ds.NumberOfFrames = size_bytes // (512 * 512 * 2)
    ds.PixelData = b"\0\0"
    write_file(ds, path)
    with path.open("r+b") as file:
        file.seek(-6, 2)
        file.write(size_bytes.to_bytes(4, "little"))
        file.truncate(file.tell() + size_bytes)
    return path


def test_under_the_watermark_images_are_refused_as_transient_and_verification_stays(tmp_path: Path) -> None:
    limits = DiskLimits(refuse_below_free_bytes=2**60)
    with running_node(tmp_path / "node", limits=limits) as node:
        path = write_file(ct_slice(series_spec(), 0), tmp_path / "a.dcm")
        answer = storescu(node.port, str(path))
        assert "Rejected Transient" in answer.text and "Local Limit Exceeded" in answer.text, answer.text
        assert echoscu(node.port).code == 0


def test_a_full_disk_answers_a700_keeps_what_is_there_and_recovers(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root: the disk-full test did not run")
    try:
        fill_and_recover(mount, tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False)


def fill_and_recover(mount: Path, tmp_path: Path) -> None:
    spec = series_spec(slices=20, rows=512)
    files = [str(path) for path in write_series(spec, tmp_path / "s")]
    ballast = mount / "ballast"
    with running_node(mount / "node", limits=NO_DISK_LIMITS) as node:
        ballast.write_bytes(bytes(MEGABYTE))
        answer = storescu(node.port, "-v", "+sd", str(tmp_path / "s"))
        assert "a700" in answer.text.lower() or "OutOfResources" in answer.text, answer.text
        kept = stored_files(node, spec.study_uid)
        assert 0 < len(kept) < 20
        assert all(dcmread(path).PixelData for path in kept)
        assert not list(node.inbox.incoming.iterdir())
        assert echoscu(node.port).code == 0
        ballast.unlink()
        missing = [f for f in files if dcmread(f).SOPInstanceUID not in {dcmread(p).SOPInstanceUID for p in kept}]
        assert storescu(node.port, missing[0]).code == 0
        assert len(stored_files(node, spec.study_uid)) == len(kept) + 1


def test_without_a_committed_row_there_is_no_success(node: RunningNode, tmp_path: Path) -> None:
    path = str(write_file(ct_slice(series_spec(), 0), tmp_path / "a.dcm"))
    with node.sessions.begin() as session:
        refuse = "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        session.execute(text(f"CREATE TRIGGER refuse BEFORE INSERT ON instances {refuse}"))
    answer = storescu(node.port, "-v", path)
    assert answer.code != 0 and ("a700" in answer.text.lower() or "OutOfResources" in answer.text), answer.text
    with node.sessions.begin() as session:
        session.execute(text("DROP TRIGGER refuse"))
    assert storescu(node.port, path).code == 0


def test_stop_answers_what_was_received_and_loses_nothing(tmp_path: Path) -> None:
    spec = series_spec(slices=150, rows=128)
    write_series(spec, tmp_path / "s")
    with running_node(tmp_path / "node") as node:
        sender = threading.Thread(target=storescu, args=(node.port, "+sd", str(tmp_path / "s")))
        sender.start()
        assert wait_until(lambda: len(list(node.inbox.stored_paths())) > 5)
        node.receiver.stop(drain_s=0.1)
        sender.join(timeout=20)
        assert not node.receiver.open_associations()
        with node.sessions.begin() as session:
            rows = {i.path for s in series_of_study(session, spec.study_uid) for i in s.instances}
        assert rows == set(node.inbox.stored_paths()), "no file without a row, no row without a file"
        assert not list(node.inbox.incoming.iterdir())


def test_drain_lets_a_sender_finish(tmp_path: Path) -> None:
    spec = series_spec(slices=60, rows=64)
    write_series(spec, tmp_path / "s")
    with running_node(tmp_path / "node") as node, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(storescu, node.port, "+sd", str(tmp_path / "s"))
        assert wait_until(lambda: len(list(node.inbox.stored_paths())) > 2)
        node.receiver.stop(drain_s=30)
        assert sending.result().code == 0
        assert len(stored_files(node, spec.study_uid)) == 60


def test_delivered_studies_are_purged_and_a_resend_brings_the_file_back_without_new_work(
    node: RunningNode, tmp_path: Path
) -> None:
    done, open_study = series_spec(slices=3), series_spec(slices=3, seed=1)
    write_series(done, tmp_path / "done")
    write_series(open_study, tmp_path / "open")
    assert storescu(node.port, "+sd", str(tmp_path / "done")).code == 0
    assert storescu(node.port, "+sd", str(tmp_path / "open")).code == 0
    now = node.receiver.clock.now()
    with node.sessions.begin() as session:
        take_study(session, done.study_uid, 1)
        mark_delivered(session, done.study_uid, 1, now)
    assert purge_delivered(node.sessions, node.inbox, retention_days=1.0, now=now) == 0, "kept for the retention time"
    assert purge_delivered(node.sessions, node.inbox, retention_days=-1.0, now=now) > 0
    assert not stored_files(node, done.study_uid)
    assert len(stored_files(node, open_study.study_uid)) == 3, "an undelivered study is never purged"
    assert storescu(node.port, "+sd", str(tmp_path / "done")).code == 0
    assert all(path.exists() for path in stored_files(node, done.study_uid))
    assert len(stored_files(node, done.study_uid)) == 3
    with node.sessions.begin() as session:
        facts = study_facts(session, done.study_uid)
    assert facts is not None and facts.version == facts.taken_version == 1


def test_the_operator_can_release_a_study(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec()
    write_series(spec, tmp_path / "s")
    storescu(node.port, "+sd", str(tmp_path / "s"))
    with node.sessions.begin() as session:
        release_study(session, spec.study_uid)
        row = session.connection().exec_driver_sql("SELECT version, released_version FROM studies").one()
    assert tuple(row) == (1, 1)


def test_other_services_can_be_put_on_the_same_ae(tmp_path: Path) -> None:
    actions: list[Dataset] = []

    def on_action(event: evt.Event) -> tuple[int, None]:
        actions.append(event.action_information)
        return 0x0000, None

    extras = Extras((build_context(StorageCommitmentPushModel),), ((evt.EVT_N_ACTION, on_action),))
    with running_node(tmp_path / "node", extras=extras) as node:
        ae = AE("CT1")
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
        request = Dataset()
        request.TransactionUID = generate_uid()
        instance = "1.2.840.10008.1.20.1.1"
        status, _ = association.send_n_action(request, 1, StorageCommitmentPushModel, instance)
        association.release()
    assert status.Status == 0
    assert [action.TransactionUID for action in actions] == [request.TransactionUID]


def test_logs_hold_no_patient(node: RunningNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    spec = series_spec(patient_id="SECRET-4711")
    write_series(spec, tmp_path / "s")
    assert storescu(node.port, "+sd", str(tmp_path / "s")).code == 0
    broken = ct_slice(spec, 9)
    del broken.StudyInstanceUID
    storescu(node.port, str(write_file(broken, tmp_path / "broken.dcm")))
    assert "refused" in caplog.text
    assert "SECRET-4711" not in caplog.text and "Doe" not in caplog.text


def test_deflated_is_stored_and_readable(node: RunningNode, tmp_path: Path) -> None:
    ds = ct_slice(series_spec(), 0)
    path = write_file(ds, tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    assert storescu(node.port, "-xd", str(path)).code == 0
    (stored,) = stored_files(node, ds.StudyInstanceUID)
    assert dcmread(stored).PixelData == ds.PixelData
