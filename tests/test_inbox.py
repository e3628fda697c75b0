"""The inbox: a file is complete and durable or not there, and no name comes from a peer."""

import contextlib
import errno
import os
import random
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from storage.database import SessionFactory, sqlite_url
from storage.element_scan import BrokenDatasetError, WindowEndsError, scan_elements
from storage.inbox import HEAD_BYTES, DiskLimits, Inbox, IncomingFile, ObjectNames, file_meta, judge_disk
from storage.instance_header import (
    EncodedDataset,
    InvalidUidError,
    UnreadableInstanceError,
    is_uid,
    read_instance_header,
)
from storage.instances import series_of_study
from storage.recovery import recover
from storage.schema import open_database
from tests.data import SHARED_DATA, needs_data
from tests.network_builders import ct_slice, series_spec
from tests.test_bad_inputs import encode

NAMES = ObjectNames(CTImageStorage, "1.2.3", ExplicitVRLittleEndian, "CT1")
NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


def received(inbox: Inbox, content: bytes, names: ObjectNames = NAMES) -> IncomingFile:
    incoming = inbox.receive(names)
    incoming.write(content)
    incoming.finish()
    return incoming


def test_the_file_is_a_dicom_file_with_the_bytes_that_came(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    ds = ct_slice(series_spec(), 0)
    names = ObjectNames(CTImageStorage, ds.SOPInstanceUID, ExplicitVRLittleEndian, "CT1")
    incoming = received(inbox, encode(ds), names)
    path = inbox.relative_path(ds.StudyInstanceUID, ds.SOPInstanceUID, incoming.digest)
    inbox.place(incoming, path)
    stored = dcmread(inbox.root / path)
    assert stored == ds
    assert stored.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert (inbox.root / path).read_bytes()[incoming.data_offset :] == encode(ds)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=80), st.text(max_size=80))
def test_no_name_of_a_peer_becomes_a_path(study_uid: str, sop_uid: str) -> None:
    path = Inbox.relative_path(None, study_uid, sop_uid, "ab" * 32)  # type: ignore[arg-type]
    folder, study, file = path.split("/")
    assert folder == "studies" and study.isalnum() and file.replace("-", "").removesuffix(".dcm").isalnum()


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=100))
def test_what_counts_as_a_uid_has_digits_and_dots_only(text: str) -> None:
    assert not is_uid(text) or (set(text) <= set("0123456789.") and len(text) <= 64 and ".." not in text)


def test_the_same_instance_twice_at_once_gets_two_temporary_files(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    first, second = inbox.receive(NAMES), inbox.receive(NAMES)
    assert first.path != second.path
    first.discard()
    second.discard()
    assert not list(inbox.incoming.iterdir())


def test_the_digest_tells_bytes_and_transfer_syntax_apart(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    other_syntax = ObjectNames(CTImageStorage, "1.2.3", "1.2.840.10008.1.2", "CT1")
    digests = [received(inbox, b"a").digest, received(inbox, b"b").digest, received(inbox, b"a", other_syntax).digest]
    assert len(set(digests)) == 3
    assert received(inbox, b"a").digest == digests[0]


def test_the_head_of_a_data_set_stays_in_memory_whatever_the_fragments(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(HEAD_BYTES + 12_345)
    for size in (1_000, HEAD_BYTES - 1, len(data)):
        incoming = Inbox(tmp_path).receive(NAMES)
        for start in range(0, len(data), size):
            incoming.write(memoryview(data)[start : start + size])
        incoming.finish()
        assert incoming.head == data[:HEAD_BYTES]
        assert incoming.path.read_bytes() == file_meta(NAMES) + data


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_disk_error_is_kept_and_the_temporary_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    inbox = Inbox(tmp_path)
    incoming = inbox.receive(NAMES)
    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        os.dup2(os.open("/dev/full", os.O_WRONLY), incoming._file.fileno())  # type: ignore[union-attr]
    incoming.write(bytes(2**20))
    incoming.write(b"more after the failure")
    incoming.finish()
    assert incoming.error is not None and incoming.error.errno == errno.ENOSPC
    assert not list(inbox.incoming.iterdir())


def test_the_folder_is_synced_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox(tmp_path)
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    incoming = received(inbox, b"x")
    path = inbox.relative_path("1.2", "1.2.3", incoming.digest)
    inbox.place(incoming, path)
    inbox.sync_folder_of(path)
    assert synced == [str(incoming.path), str(inbox.studies), str((inbox.root / path).parent)]


def test_quarantine_never_overwrites(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    for content in (b"a", b"b"):
        inbox.quarantine(received(inbox, content).path, "1.2.3")
    assert len(list(inbox.quarantined.iterdir())) == 2


def test_an_emptied_study_folder_goes_and_comes_back(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    for _ in range(2):
        incoming = received(inbox, b"x")
        path = inbox.relative_path("1.2", "1.2.3", incoming.digest)
        inbox.place(incoming, path)
        assert inbox.remove([path]) > 0
        assert not (inbox.root / path).parent.exists()


@pytest.mark.parametrize(
    ("free_gib", "refuses", "stops"), [(100, False, False), (4, True, False), (0.1, True, True)], ids=str
)
def test_images_are_refused_before_the_disk_is_full(free_gib: float, refuses: bool, stops: bool) -> None:
    total = 1000 * 2**30
    free = int(free_gib * 2**30)
    state = judge_disk(total, total - free, free, DiskLimits(refuse_above_used_fraction=1.0))
    assert (state.refuses_associations is not None, state.refuses_instances is not None) == (refuses, stops)


def test_the_used_fraction_counts_too() -> None:
    state = judge_disk(1000 * 2**30, 960 * 2**30, 40 * 2**30, DiskLimits())
    assert state.refuses_associations == "disk 96% full, limit 95%"


@needs_data
def test_the_header_of_a_real_scan_is_read_as_pydicom_reads_it() -> None:
    path = sorted((SHARED_DATA / "acrin-flt-001").glob("*.dcm"))[0]
    ds = dcmread(path, stop_before_pixels=True)
    offset = len(path.read_bytes()) - len(dataset_bytes(path))
    syntax = ds.file_meta.TransferSyntaxUID
    header = read_instance_header(EncodedDataset(path, offset, syntax, ds.SOPClassUID))
    assert header.series_instance_uid == ds.SeriesInstanceUID
    assert header.patient_id == ds.PatientID
    assert header.image_type == tuple(ds.ImageType)
    assert header.slice_position_mm == pytest.approx(float(ds.ImagePositionPatient[2]))


def dataset_bytes(path: Path) -> bytes:
    """What follows the meta header, found by its group length."""
    whole = path.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def test_text_is_read_in_its_character_set(tmp_path: Path) -> None:
    ds = ct_slice(series_spec(), 0)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SeriesDescription = "Wirbelsäule 脊椎"
    path = tmp_path / "a"
    path.write_bytes(encode(ds))
    header = read_instance_header(EncodedDataset(path, 0, ExplicitVRLittleEndian, CTImageStorage))
    assert header.series_description == "Wirbelsäule 脊椎"


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_header_or_a_reason(data: bytes) -> None:
    valid = encode(ct_slice(series_spec(), 0))
    for window in (data, valid[:40] + data, valid[:300] + data + valid[300:]):
        for implicit in (False, True):
            with contextlib.suppress(BrokenDatasetError, WindowEndsError):
                scan_elements(window, implicit=implicit, wanted=frozenset(), stop_tag=0x7FE00010)


def test_a_sequence_inside_unknown_vr_is_stepped_over_as_implicit() -> None:
    """PS3.5 6.2.2: UN of undefined length holds a sequence in implicit VR."""
    inner = b"\x08\x00\x16\x00" + (4).to_bytes(4, "little") + b"1.2\0"
    unknown = b"\x09\x00\x01\x10UN\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner
    unknown += b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    patient = b"\x10\x00\x20\x00LO\x02\x00P1"
    scan = scan_elements(unknown + patient, implicit=False, wanted={0x00100020}, stop_tag=0x7FE00010)
    assert scan.values == {0x00100020: b"P1"}


@pytest.fixture
def sessions(tmp_path: Path) -> SessionFactory:
    return open_database(sqlite_url(tmp_path / "node.sqlite"))


def test_after_a_crash_temporary_files_go_and_files_without_a_row_are_taken_in(
    tmp_path: Path, sessions: SessionFactory
) -> None:
    inbox = Inbox(tmp_path / "inbox")
    inbox.receive(NAMES)
    ds = ct_slice(series_spec(), 0)
    names = ObjectNames(CTImageStorage, ds.SOPInstanceUID, ExplicitVRLittleEndian, "CT1")
    incoming = received(inbox, encode(ds), names)
    inbox.place(incoming, inbox.relative_path(ds.StudyInstanceUID, ds.SOPInstanceUID, incoming.digest))
    (inbox.studies / "broken").mkdir()
    (inbox.studies / "broken" / "x.dcm").write_bytes(b"no DICOM")
    result = recover(sessions, inbox, NOW)
    assert (result.removed_temporary_files, result.adopted_files, result.unreadable_files) == (1, 1, 1)
    with sessions.begin() as session:
        (series,) = series_of_study(session, ds.StudyInstanceUID)
    assert [i.digest for i in series.instances] == [incoming.digest]
    assert (inbox.studies / "broken" / "x.dcm").exists(), "nothing durable is ever deleted"
    assert recover(sessions, inbox, NOW).adopted_files == 0


def test_missing_names_are_told_apart_from_unreadable_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    ds = ct_slice(series_spec(), 0)
    ds.StudyInstanceUID = None
    path.write_bytes(encode(ds))
    with pytest.raises(InvalidUidError, match="Study Instance UID is missing"):
        read_instance_header(EncodedDataset(path, 0, ExplicitVRLittleEndian, CTImageStorage))
    path.write_bytes(bytes(400))
    with pytest.raises(UnreadableInstanceError, match="starts with group 0000"):
        read_instance_header(EncodedDataset(path, 0, ExplicitVRLittleEndian, CTImageStorage))


def test_the_meta_header_is_read_back_by_pydicom() -> None:
    meta = dcmread(BytesIO(file_meta(NAMES))).file_meta
    assert meta.MediaStorageSOPClassUID == CTImageStorage
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.SourceApplicationEntityTitle == "CT1"
