"""What a monitoring system reads: counts and ages as JSON and as Prometheus text, without any patient."""

import json
import re
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from analysis.results import Reason
from node.config import Config
from node.monitoring import NodeState, as_json, prometheus_text, read_state, write_prometheus_file
from storage.calibrations import save_calibration
from storage.database import SessionFactory
from storage.instances import record_arrival, record_quarantined
from storage.jobs import add_job
from storage.outbox import Wanted, due_items, mark_dead
from storage.study_results import hold_results
from tests.database_builders import NOW, SEG, outcome, report, stored
from tests.phantom_builders import calibration
from tests.test_completeness import arrival

PACS = Wanted("pacs", frozenset({"segmentation"}), (SEG,))
SAMPLE = re.compile(r'qct_[a-z_]+(\{[a-z_]+="[^"\n]*"(,[a-z_]+="[^"\n]*")*\})? -?[0-9.e+-]+')


def read(sessions: SessionFactory, folder: Path, now=NOW) -> NodeState:
    config = Config(storage=replace(Config().storage, folder=folder))
    with sessions.begin() as session:
        return read_state(session, config, now)


@pytest.fixture
def busy(sessions: SessionFactory) -> SessionFactory:
    """One study receiving, two queued, one reported, two refused, one of two objects dead, one copy put aside."""
    report(sessions, outcome("1.1", objects=(stored("segmentation", SEG, "1.1.9"),)), PACS, now=NOW)
    report(sessions, outcome("1.2", objects=(stored("segmentation", SEG, "1.2.9"),)), PACS, now=NOW)
    for study in ("1.3", "1.4"):
        refused = outcome(study, status="refused", reasons=(Reason("CONTRAST_TAG", "agent of Doe^Jane"),))
        report(sessions, refused, now=NOW)
    with sessions.begin() as session:
        add_job(session, "1.5", 1, NOW - timedelta(minutes=5))
        add_job(session, "1.6", 1, NOW)
        mark_dead(session, due_items(session, "pacs", NOW, 1)[0].id, "refused for good")
        first = replace(arrival(0, 0, patient_id="SECRET-7", study_description="DOE"), arrived_at=NOW)
        record_arrival(session, first)
        record_quarantined(session.connection(), first, "quarantine/a.dcm", "other bytes")
        save_calibration(session, calibration(), NOW)
        hold_results(session, [1], "phantom scan failed")
    return sessions


def test_the_numbers_are_those_of_the_database(busy: SessionFactory, tmp_path: Path) -> None:
    found = as_json(read(busy, tmp_path, NOW + timedelta(minutes=1)))
    assert found["studies"]["receiving"] == 1 and found["studies"]["oldest_receiving_s"] == 60.0
    assert found["studies"]["queued"] == 2 and found["studies"]["oldest_queued_s"] == 360.0
    assert {"kind": "PATIENT", "status": "reported", "studies": 2} in found["results"]
    assert {"kind": "PATIENT", "status": "refused", "studies": 2} in found["results"]
    assert found["refusals_last_7_days"] == {"CONTRAST_TAG": 2}
    assert found["results_on_hold"] == 1
    (pacs,) = found["outbox"]
    assert (pacs["waiting"], pacs["dead"], pacs["oldest_undelivered_s"]) == (1, 1, 60.0)
    assert found["quarantine"] == {"files": 1, "oldest_s": 60.0}
    assert len(found["calibrations"]) == 1 and found["calibrations"][0]["state"] == "commissioning"
    assert 0.0 <= found["disk"]["used_fraction"] <= 1.0
    json.dumps(found)


def test_old_refusals_are_no_longer_counted_as_recent(busy: SessionFactory, tmp_path: Path) -> None:
    assert as_json(read(busy, tmp_path, NOW + timedelta(days=8)))["refusals_last_7_days"] == {}


def test_a_superseded_result_is_not_counted(sessions: SessionFactory, tmp_path: Path) -> None:
    report(sessions, outcome("1.1"), now=NOW)
    report(sessions, outcome("1.1", 2, status="refused", reasons=(Reason("SLICE_GAP", ""),)), now=NOW)
    assert as_json(read(sessions, tmp_path))["results"] == [{"kind": "PATIENT", "status": "refused", "studies": 1}]


def test_an_empty_node_has_zeros_not_gaps(sessions: SessionFactory, tmp_path: Path) -> None:
    lines = prometheus_text(read(sessions, tmp_path)).splitlines()
    for line in ("studies_receiving 0", 'jobs{state="dead"} 0', "oldest_queued_seconds 0", "in_order 1"):
        assert f"qct_{line}" in lines


def test_each_line_is_in_the_exposition_format_and_each_family_has_its_meaning(
    busy: SessionFactory, tmp_path: Path
) -> None:
    lines = prometheus_text(read(busy, tmp_path), ["database"]).splitlines()
    assert 'qct_fault{part="database"} 1' in lines and "qct_in_order 0" in lines
    for line in lines:
        assert line.startswith(("# HELP qct_", "# TYPE qct_")) or SAMPLE.fullmatch(line), line
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families)), "a family must stand in one block"


def test_no_patient_is_in_any_of_it(busy: SessionFactory, tmp_path: Path) -> None:
    state = read(busy, tmp_path)
    for text in (json.dumps(as_json(state)), prometheus_text(state)):
        assert not re.search(r"SECRET|DOE|Jane|1\.2\.3", text), text


def test_the_file_is_replaced_whole_and_readable_by_the_collector(tmp_path: Path) -> None:
    path = tmp_path / "qct-node.prom"
    for text in ("qct_in_order 1\n", "qct_in_order 0\n"):
        write_prometheus_file(path, text)
        assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]
