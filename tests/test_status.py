"""`qct-node status` as its readers meet it: an administrator at a terminal, and a monitoring system."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from analysis.errors import QctError
from node.config import Config
from node.status import requeue_work, show_status
from storage.database import SessionFactory
from storage.instances import record_arrival
from storage.jobs import JobState, Lease, add_job, find_job, finish_job, take_job
from storage.outbox import Wanted, due_items, explain_waiting, group_items, mark_dead
from tests.database_builders import NOW, SEG, outcome, report, stored
from tests.test_completeness import STUDY, arrival

PACS = Wanted("pacs", frozenset({"segmentation"}), (SEG,))


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> Config:
    return Config(storage=replace(Config().storage, folder=tmp_path, database_url=database_url))


@pytest.fixture
def troubled(sessions: SessionFactory) -> SessionFactory:
    """A study that waits, an analysis that failed, one object refused for good, one whose PACS is away for hours."""
    earlier = NOW - timedelta(hours=5)
    report(sessions, outcome("1.1", objects=(stored("segmentation", SEG, "1.1.9"),)), PACS, now=earlier)
    report(sessions, outcome("1.2", objects=(stored("segmentation", SEG, "1.2.9"),)), PACS, now=NOW)
    with sessions.begin() as session:
        mark_dead(session, due_items(session, "pacs", earlier, 1)[0].id, "0xA900 data set does not match")
        explain_waiting(session, "pacs", "pacs: connection refused")
        record_arrival(session, arrival(0, 0, patient_id="SECRET-7"))
        add_job(session, "1.9", 1, NOW)
        job = take_job(session, Lease.starting("node", NOW, 60), NOW)
        assert job is not None
        finish_job(session, job.id, "node", JobState.DEAD, "ValueError: pixels of Doe^Jane", NOW)
    return sessions


def shown(config: Config, capsys: pytest.CaptureFixture[str], *, as_json: bool) -> str:
    show_status(config, as_json)
    return capsys.readouterr().out


def test_what_needs_a_person_stands_first(
    config: Config, troubled: SessionFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    first = shown(config, capsys, as_json=False).split("disk:")[0]
    assert "1 studies were put aside" in first
    assert "1 result objects were put aside" in first
    assert re.search(r"1 result objects for pacs are not delivered, the oldest for \d+ h", first)


def test_each_trouble_comes_with_its_reason_and_the_command_that_mends_it(
    config: Config, troubled: SessionFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(config, capsys, as_json=False)
    for words in ("pacs: connection refused", "0xA900", "requeue outbox", "requeue STUDY", "not complete yet"):
        assert words in text, words
    assert "SECRET-7" not in text


def test_where_all_is_well_it_says_so_and_empty_sections_take_a_line(
    config: Config, sessions: SessionFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in shown(config, capsys, as_json=False).splitlines() if line]
    assert lines[0] == "nothing needs attention"
    assert len(lines) <= 10, lines


def test_the_json_is_one_document_without_patient_data(
    config: Config, troubled: SessionFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(config, capsys, as_json=True)
    found = json.loads(text)
    assert len(found["attention"]) >= 3
    assert found["summary"]["studies"]["dead"] == 1
    assert found["waiting"][0]["study"] == STUDY and "as soon as the node runs" in found["waiting"][0]["why"]
    assert "Doe" not in text and "SECRET-7" not in text


def test_objects_are_grouped_by_state_and_by_what_was_answered_last(troubled: SessionFactory) -> None:
    with troubled.begin() as session:
        groups = {(g.state, g.detail): g.number for g in group_items(session)}
    assert groups == {("dead", "0xA900 data set does not match"): 1, ("waiting", "pacs: connection refused"): 1}


def test_requeue_brings_back_what_status_shows(config: Config, troubled: SessionFactory) -> None:
    assert "queued again" in requeue_work(config, "1.9")
    with troubled.begin() as session:
        job = find_job(session, "1.9", 1)
    assert job is not None and job.state is JobState.QUEUED
    assert requeue_work(config, "outbox").startswith("1 objects")
    assert "as it is" in requeue_work(config, STUDY)
    with pytest.raises(QctError, match=r"no study 9\.9"):
        requeue_work(config, "9.9")
