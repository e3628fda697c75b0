"""One row per (study, version): the queue is the job table, so nothing is lost with the process.

    queued --take--> running --finish--> done | refused
      ^                 |---- worker died: one retry, then --> dead
      |                 |---- over its time or memory cap ---> dead
      |                 |---- lease ran out (node died) -----> queued again, a bounded number of times
      `-- put back ----'                                  dead --requeue--> queued
    queued --a newer version of the study arrives--> superseded

A running job is held by a lease that its owner renews. A study never runs twice at once.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, String, UniqueConstraint, exists, func, or_, select, update
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from storage.database import Base


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    DEAD = "dead"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How often a job is tried again."""

    worker_retries: int = 1  # after the worker process died under it
    orphan_retries: int = 5  # after the whole node died or was killed under it


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the rest of the program sees it; small and picklable."""

    id: int
    study_instance_uid: str
    version: int
    state: JobState
    worker_deaths: int
    orphaned: int
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    detail: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds a job, and until when."""

    owner: str
    until: datetime

    @classmethod
    def starting(cls, owner: str, now: datetime, lease_s: float) -> "Lease":
        return cls(owner, now + timedelta(seconds=lease_s))


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("study_instance_uid", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), index=True)
    worker_deaths: Mapped[int] = mapped_column(default=0)
    orphaned: Mapped[int] = mapped_column(default=0)
    queued_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[datetime | None]
    detail: Mapped[str] = mapped_column(default="")

    def frozen(self) -> Job:
        return Job(
            self.id,
            self.study_instance_uid,
            self.version,
            JobState(self.state),
            self.worker_deaths,
            self.orphaned,
            self.queued_at,
            self.started_at,
            self.finished_at,
            self.detail,
        )


def add_job(session: Session, study_instance_uid: str, version: int, now: datetime) -> bool:
    """Queue a version of a study once; older versions that still wait are superseded. False: it was known already."""
    if find_job(session, study_instance_uid, version) is not None:
        return False
    session.execute(
        update(JobRow)
        .where(JobRow.study_instance_uid == study_instance_uid, JobRow.version < version)
        .where(JobRow.state == JobState.QUEUED)
        .values(state=JobState.SUPERSEDED, finished_at=now, detail=f"version {version} arrived")
    )
    session.add(JobRow(study_instance_uid=study_instance_uid, version=version, state=JobState.QUEUED, queued_at=now))
    session.flush()
    return True


def take_job(session: Session, lease: Lease, now: datetime) -> Job | None:
    """The oldest queued job whose study is not being analysed already, now leased; None when there is none."""
    other = aliased(JobRow)
    same_study_runs = exists().where(
        other.study_instance_uid == JobRow.study_instance_uid, other.state == JobState.RUNNING
    )
    row = session.scalars(
        select(JobRow)
        .where(JobRow.state == JobState.QUEUED, ~same_study_runs)
        .order_by(JobRow.queued_at, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()
    if row is None:
        return None
    row.state, row.started_at, row.finished_at = JobState.RUNNING, now, None
    row.lease_owner, row.lease_until = lease.owner, lease.until
    session.flush()
    return row.frozen()


def renew_lease(session: Session, job_id: int, lease: Lease) -> bool:
    """Move the lease's end; False when the job is no longer this owner's, whose work is then void."""
    row = _held(session, job_id, lease.owner)
    if row is None:
        return False
    row.lease_until = lease.until
    return True


def finish_job(session: Session, job_id: int, owner: str, state: JobState, detail: str, now: datetime) -> bool:
    """End a job as DONE, REFUSED or DEAD. False: the lease was lost meanwhile, nothing is changed."""
    row = _held(session, job_id, owner)
    if row is None:
        return False
    _end(row, state, detail, now)
    return True


def worker_died(session: Session, job_id: int, owner: str, rules: RetryRules, now: datetime) -> JobState | None:
    """The worker process died under the job: queue it again, or put it aside. None: the lease was lost."""
    row = _held(session, job_id, owner)
    if row is None:
        return None
    row.worker_deaths += 1
    if row.worker_deaths > rules.worker_retries:
        _end(row, JobState.DEAD, f"the worker process died {row.worker_deaths} times in this analysis", now)
    else:
        _queue_again(row, "the worker process died; tried again")
    return JobState(row.state)


def put_back(session: Session, job_id: int, owner: str) -> bool:
    """Queue a running job again as if it had not been taken (the node is stopping)."""
    row = _held(session, job_id, owner)
    if row is None:
        return False
    _queue_again(row, "put back: the node was stopped")
    return True


def reclaim_orphans(session: Session, rules: RetryRules, now: datetime, *, owner: str | None = None) -> list[Job]:
    """Queue jobs whose lease ran out once more; with `owner`, also all that this owner held before it died."""
    lost: ColumnElement[bool] = JobRow.lease_until < now
    if owner is not None:
        lost = or_(lost, JobRow.lease_owner == owner)
    rows = session.scalars(select(JobRow).where(JobRow.state == JobState.RUNNING, lost)).all()
    for row in rows:
        row.orphaned += 1
        if row.orphaned > rules.orphan_retries:
            _end(row, JobState.DEAD, f"the node died {row.orphaned} times in this analysis", now)
        else:
            _queue_again(row, "the node died in this analysis; tried again")
    return [row.frozen() for row in rows]


def requeue(session: Session, study_instance_uid: str, now: datetime) -> Job | None:
    """Queue the newest version of a study again, whatever became of it, with fresh retries. None: unknown or active."""
    row = _newest(session, study_instance_uid)
    if row is None or row.state in (JobState.RUNNING, JobState.QUEUED):
        return None
    _queue_again(row, "requeued by the operator")
    row.worker_deaths = row.orphaned = 0
    row.queued_at = now
    return row.frozen()


def reanalyse(session: Session, study_instance_uid: str, why: str, now: datetime) -> Job | None:
    """Queue the newest version of a study again if it was reported; None: not reported, so nothing can be amended."""
    row = _newest(session, study_instance_uid)
    if row is None or row.state not in (JobState.DONE, JobState.REFUSED):
        return None
    _queue_again(row, why)
    row.worker_deaths = row.orphaned = 0
    row.queued_at = now
    return row.frozen()


def find_job(session: Session, study_instance_uid: str, version: int) -> Job | None:
    row = session.scalars(
        select(JobRow).where(JobRow.study_instance_uid == study_instance_uid, JobRow.version == version)
    ).first()
    return row.frozen() if row else None


def list_jobs(session: Session, *states: JobState, limit: int = 100) -> list[Job]:
    """The newest jobs, optionally only those in the given states."""
    query = select(JobRow).order_by(JobRow.queued_at.desc(), JobRow.id.desc()).limit(limit)
    if states:
        query = query.where(JobRow.state.in_(states))
    return [row.frozen() for row in session.scalars(query)]


def count_jobs(session: Session) -> dict[JobState, int]:
    """How many jobs are in each state; every state is present."""
    found = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
    return dict.fromkeys(JobState, 0) | {JobState(state): number for state, number in found}


def _newest(session: Session, study_instance_uid: str) -> JobRow | None:
    query = select(JobRow).where(JobRow.study_instance_uid == study_instance_uid).order_by(JobRow.version.desc())
    return session.scalars(query.limit(1)).first()


def _held(session: Session, job_id: int, owner: str) -> JobRow | None:
    return session.scalars(
        select(JobRow)
        .where(JobRow.id == job_id, JobRow.lease_owner == owner, JobRow.state == JobState.RUNNING)
        .with_for_update()
    ).first()


def _end(row: JobRow, state: JobState, detail: str, now: datetime) -> None:
    row.state, row.detail, row.finished_at = state, detail, now
    row.lease_owner = row.lease_until = None


def _queue_again(row: JobRow, detail: str) -> None:
    row.state, row.detail = JobState.QUEUED, detail
    row.started_at = row.finished_at = row.lease_owner = row.lease_until = None
