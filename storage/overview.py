"""Counts and ages for monitoring, in few statements: nothing here names a patient or a study."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from storage.jobs import JobRow, JobState, count_jobs
from storage.outbox import OPEN, Delivery, OutboxRow, count_items
from storage.received_tables import QuarantineRow, StudyRow
from storage.study_results import StudyResultRow, held_results

STANDS = StudyResultRow.superseded_by.is_(None)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many wait, and since when the oldest of them does."""

    number: int
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole node as numbers. Results are the ones that stand: superseded ones are not counted."""

    receiving: Backlog  # studies that are not complete yet, since their first image
    jobs: dict[JobState, int]
    queued: Backlog
    results: dict[tuple[str, str], int]  # by kind (PATIENT, PHANTOM, OTHER) and status (reported, refused)
    refusals: dict[str, int]  # lately, by reason code; a result may have several
    on_hold: int
    outbox: dict[tuple[str, Delivery], int]  # by destination and state
    undelivered: dict[str, Backlog]  # by destination: what waits, or is sent without confirmation
    quarantine: Backlog


def read_overview(session: Session, refusals_since: datetime) -> Overview:
    """Count everything at one moment."""
    open_versions = select(func.count(), func.min(StudyRow.version_opened_at)).where(
        StudyRow.taken_version < StudyRow.version
    )
    queued = select(func.count(), func.min(JobRow.queued_at)).where(JobRow.state == JobState.QUEUED)
    return Overview(
        receiving=_backlog(session, open_versions),
        jobs=count_jobs(session),
        queued=_backlog(session, queued),
        results=_results(session),
        refusals=_refusals(session, refusals_since),
        on_hold=len(held_results(session)),
        outbox=count_items(session),
        undelivered=_undelivered(session),
        quarantine=_backlog(session, select(func.count(), func.min(QuarantineRow.arrived_at))),
    )


def _backlog(session: Session, query: Select[int, datetime]) -> Backlog:
    number, oldest_at = session.execute(query).one()
    return Backlog(number, oldest_at)


def _results(session: Session) -> dict[tuple[str, str], int]:
    query = select(StudyResultRow.kind, StudyResultRow.status, func.count()).where(STANDS)
    found = session.execute(query.group_by(StudyResultRow.kind, StudyResultRow.status))
    return {(kind, status): number for kind, status, number in found}


def _refusals(session: Session, since: datetime) -> dict[str, int]:
    query = select(StudyResultRow.reasons_json).where(STANDS, StudyResultRow.status == "refused")
    recent = session.scalars(query.where(StudyResultRow.finished_at >= since))
    return dict(Counter(code for reasons_json in recent for code, _ in json.loads(reasons_json)))


def _undelivered(session: Session) -> dict[str, Backlog]:
    query = select(OutboxRow.destination, func.count(), func.min(OutboxRow.queued_at))
    found = session.execute(query.where(OutboxRow.state.in_(OPEN)).group_by(OutboxRow.destination))
    return {destination: Backlog(number, oldest_at) for destination, number, oldest_at in found}
