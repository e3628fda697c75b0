"""The doctor's questions, asked of a real (fake) PACS, a disk, a database."""

from pathlib import Path

import pytest

from node.config import Config, StorageSettings
from node.destinations import CommitmentUse
from node.doctor import Verdict, _examine_database, _examine_disk, _examine_peers, examine_destination
from node.receiver_settings import ANY_PEER, ReceiverSettings
from storage.inbox import DiskLimits
from tests.database_builders import SEG, SR, database
from tests.fake_pacs import Behaviour, fake_pacs
from tests.test_sender import destination, free_port


def test_a_pacs_that_takes_everything_is_in_order() -> None:
    with fake_pacs(Behaviour(commitment=True)) as pacs:
        found = list(examine_destination(destination(pacs.port), "QCT-NODE"))
        assert pacs.echoes == 1 and pacs.stored == []
    assert Verdict.BAD not in {finding.verdict for finding in found}
    said = " / ".join(finding.text for finding in found)
    assert "accepts Segmentation Storage (Explicit VR Little Endian)" in said
    assert "offers storage commitment" in said


def test_a_class_that_the_pacs_refuses_is_a_note_while_another_form_is_accepted() -> None:
    with fake_pacs(Behaviour(classes=(SEG, SR, "1.2.840.10008.5.1.4.1.1.88.22"))) as pacs:
        found = list(examine_destination(destination(pacs.port), "QCT-NODE"))
    notes = [finding.text for finding in found if finding.verdict is Verdict.NOTE]
    assert "does not accept Comprehensive 3D SR Storage" in notes
    assert Verdict.BAD not in {finding.verdict for finding in found}


def test_a_pacs_that_takes_no_form_of_an_object_is_a_fault() -> None:
    with fake_pacs(Behaviour(classes=(SR,))) as pacs:
        found = list(examine_destination(destination(pacs.port), "QCT-NODE"))
    faults = [finding.text for finding in found if finding.verdict is Verdict.BAD]
    assert "accepts no form of the segmentation (BINARY)" in faults


def test_a_pacs_that_is_away_or_does_not_know_us_is_a_fault_in_words() -> None:
    (away,) = examine_destination(destination(free_port()), "QCT-NODE")
    assert away.verdict is Verdict.BAD and "not reached" in away.text
    with fake_pacs(Behaviour(require_calling=("OTHER",))) as pacs:
        (unknown,) = examine_destination(destination(pacs.port), "QCT-NODE")
    assert unknown.verdict is Verdict.BAD and "calling AE title not recognized" in unknown.text


def test_required_commitment_that_is_not_offered_is_a_fault() -> None:
    with fake_pacs() as pacs:
        found = list(examine_destination(destination(pacs.port, commitment=CommitmentUse.REQUIRED), "QCT-NODE"))
    assert found[-1].verdict is Verdict.BAD


def test_an_allow_list_that_is_empty_is_a_fault() -> None:
    (empty,) = _examine_peers(Config())
    (filled,) = _examine_peers(Config(receiving=ReceiverSettings(peers=(ANY_PEER,))))
    assert (empty.verdict, filled.verdict) == (Verdict.BAD, Verdict.GOOD)


@pytest.mark.parametrize(("reserve_bytes", "verdict"), [(0, Verdict.GOOD), (2**60, Verdict.BAD)])
def test_a_disk_on_which_images_would_be_refused_is_a_fault(
    tmp_path: Path, reserve_bytes: int, verdict: Verdict
) -> None:
    limits = DiskLimits(reserve_bytes, 1.0, 0)
    (found,) = _examine_disk(Config(storage=StorageSettings(tmp_path / "not yet there"), disk=limits))
    assert found.verdict is verdict
    assert not (tmp_path / "not yet there").exists(), "the doctor writes nothing"


def test_a_database_that_is_damaged_is_a_fault_and_one_not_made_yet_is_none(tmp_path: Path) -> None:
    config = Config(storage=StorageSettings(tmp_path))
    (missing,) = _examine_database(config)
    with database(tmp_path):
        pass
    (sound,) = _examine_database(config)
    (tmp_path / "node.sqlite").write_bytes(b"damaged" * 1000)
    (damaged,) = _examine_database(config)
    assert [finding.verdict for finding in (missing, sound, damaged)] == [Verdict.NOTE, Verdict.GOOD, Verdict.BAD]
    assert "restore with" in damaged.text
