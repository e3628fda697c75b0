"""Quarantined copies go after their days, each with a line in the log; nothing that is still needed ever does."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from storage.database import SessionFactory
from storage.inbox import Inbox
from storage.instances import known_paths, record_arrival, record_quarantined, take_study
from storage.retention import mark_delivered, purge_quarantined
from tests.test_completeness import START, STUDY, arrival

DAYS = 365.0
FILE = "quarantine/second.dcm"
LATER = START + timedelta(days=DAYS + 1)


@pytest.fixture
def inbox(sessions: SessionFactory, tmp_path: Path) -> Inbox:
    """One instance, and a second, different copy of it put aside."""
    found = Inbox(tmp_path / "inbox")
    (found.root / FILE).write_bytes(b"other bytes")
    with sessions.begin() as session:
        record_arrival(session, arrival(0, 0))
        record_quarantined(session.connection(), arrival(0, 1), FILE, "other bytes")
    return found


def deliver(sessions: SessionFactory) -> None:
    with sessions.begin() as session:
        mark_delivered(session, STUDY, 1, START)


def test_an_old_copy_goes_with_its_row_and_a_line_that_names_it(
    sessions: SessionFactory, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deliver(sessions)
    assert purge_quarantined(sessions, inbox, DAYS, LATER) == 1
    assert not (inbox.root / FILE).exists() and inbox.quarantined.is_dir()
    with sessions.begin() as session:
        assert FILE not in known_paths(session)
    assert caplog.text.count("quarantined file deleted") == 1 and FILE in caplog.text and "1.2.3.4.1" in caplog.text


def test_a_copy_stays_for_its_days(sessions: SessionFactory, inbox: Inbox) -> None:
    deliver(sessions)
    assert purge_quarantined(sessions, inbox, DAYS, START + timedelta(days=DAYS - 1)) == 0
    assert (inbox.root / FILE).exists()


def test_a_copy_stays_while_the_results_of_its_study_are_not_delivered(sessions: SessionFactory, inbox: Inbox) -> None:
    assert purge_quarantined(sessions, inbox, DAYS, LATER) == 0
    assert (inbox.root / FILE).exists()


def test_a_copy_stays_while_a_newer_version_of_its_study_is_open(sessions: SessionFactory, inbox: Inbox) -> None:
    deliver(sessions)
    with sessions.begin() as session:
        take_study(session, STUDY, 1)
        record_arrival(session, arrival(1, 2))
    assert purge_quarantined(sessions, inbox, DAYS, LATER) == 0


def test_a_crash_between_file_and_row_is_made_good_by_the_next_round(sessions: SessionFactory, inbox: Inbox) -> None:
    deliver(sessions)
    (inbox.root / FILE).unlink()
    assert purge_quarantined(sessions, inbox, DAYS, LATER) == 1
    with sessions.begin() as session:
        assert FILE not in known_paths(session)
