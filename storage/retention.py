"""How long received files stay: only those of delivered studies are ever removed, and only after the configured days.

Rows stay; a file that is sent again later is taken back without new work. Quarantined copies have days of their own.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from storage.database import SessionFactory
from storage.inbox import Inbox
from storage.received_tables import InstanceRow, QuarantineRow, StudyRow

LOGGER = logging.getLogger(__name__)

PURGE_BATCH = 500  # files per transaction


def purge_delivered(sessions: SessionFactory, inbox: Inbox, retention_days: float, now: datetime) -> int:
    """Remove the files of studies delivered longer ago than the retention; returns the bytes freed."""
    freed = 0
    while True:
        with sessions.begin() as session:
            paths = purgeable_paths(session, now - timedelta(days=retention_days), PURGE_BATCH)
            mark_purged(session, paths, now)
        if not paths:
            return freed
        freed += inbox.remove(paths)


def purge_quarantined(sessions: SessionFactory, inbox: Inbox, retention_days: float, now: datetime) -> int:
    """Remove second copies that came longer ago than the retention, of studies whose results are delivered.

    The file goes first: after a crash in between the row is still there, and the next round takes it.
    """
    with sessions.begin() as session:
        old = session.execute(_purgeable_quarantine(now - timedelta(days=retention_days))).all()
    for path, sop_instance_uid, arrived_at in old:
        inbox.remove_quarantined(path)
        with sessions.begin() as session:
            session.execute(delete(QuarantineRow).where(QuarantineRow.path == path))
        LOGGER.info("quarantined file deleted file=%s instance=%s arrived=%s", path, sop_instance_uid,
                    arrived_at.isoformat(timespec="seconds"))  # fmt: skip
    return len(old)


def _purgeable_quarantine(arrived_before: datetime) -> Select[str, str, datetime]:
    """By way of the copy that was kept: what its study still waits for may need the operator to look at both."""
    return (
        select(QuarantineRow.path, QuarantineRow.sop_instance_uid, QuarantineRow.arrived_at)
        .join(InstanceRow, InstanceRow.sop_instance_uid == QuarantineRow.sop_instance_uid)
        .join(StudyRow, StudyRow.study_instance_uid == InstanceRow.study_instance_uid)
        .where(StudyRow.delivered_version == StudyRow.version, QuarantineRow.arrived_at < arrived_before)
        .order_by(QuarantineRow.arrived_at)
        .limit(PURGE_BATCH)
    )


def mark_delivered(session: Session, study_instance_uid: str, version: int, now: datetime) -> None:
    """The results of this version are delivered; retention counts from here, unless a newer version is open."""
    session.execute(
        update(StudyRow)
        .where(StudyRow.study_instance_uid == study_instance_uid, StudyRow.delivered_version < version)
        .values(delivered_version=version, delivered_at=now)
    )


def purgeable_paths(session: Session, delivered_before: datetime, limit: int) -> tuple[str, ...]:
    """Files of studies whose newest version was delivered before the moment; nothing undelivered is ever among them."""
    return tuple(
        session.scalars(
            select(InstanceRow.path)
            .join(StudyRow, StudyRow.study_instance_uid == InstanceRow.study_instance_uid)
            .where(
                StudyRow.delivered_version == StudyRow.version,
                StudyRow.delivered_at < delivered_before,
                InstanceRow.purged_at.is_(None),
            )
            .limit(limit)
        )
    )


def mark_purged(session: Session, paths: Sequence[str], now: datetime) -> None:
    """The files of these instances are about to be removed; commit before removing them."""
    session.execute(update(InstanceRow).where(InstanceRow.path.in_(paths)).values(purged_at=now))
