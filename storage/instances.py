"""Rows of what was received: associations, studies, series, instances, and quarantined second copies.

Interfaces for the rest of the project:

    record_arrival(session, arrival) -> ArrivalOutcome            one instance; `record_arrivals` a batch
    series_of_study(session, study_instance_uid, version) -> tuple[ReceivedSeries, ...]
    study_facts(session, study_instance_uid) -> StudyFacts
    take_study(session, study_instance_uid, version) -> bool      a job was made for this version
    release_study(session, study_instance_uid)                    the operator: analyse it as it is, do not wait

`storage.retention.mark_delivered(session, study_instance_uid, version, now)` says that its results are delivered.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.orm import Session

from storage.arrival import Arrival
from storage.received_tables import (
    AssociationEnding,
    AssociationRow,
    InstanceRow,
    QuarantineRow,
    SeriesRow,
    StudyRow,
    table_of,
)
from storage.recording import ArrivalOutcome, record_arrivals


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    sop_instance_uid: str
    sop_class_uid: str
    path: str  # relative to the inbox root
    digest: str
    instance_number: int | None
    slice_position_mm: float | None
    arrived_at: datetime


@dataclass(frozen=True, slots=True)
class ReceivedSeries:
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    series_description: str
    calling_ae_title: str  # of the first instance
    instances: tuple[ReceivedInstance, ...]  # by position, then number


@dataclass(frozen=True, slots=True)
class StudyFacts:
    study_instance_uid: str
    version: int
    taken_version: int
    delivered_version: int
    first_arrival_at: datetime
    last_arrival_at: datetime
    conflict: str | None


def record_arrival(session: Session, arrival: Arrival) -> ArrivalOutcome:
    """Write the rows of one instance; the caller commits."""
    return record_arrivals(session.connection(), (arrival,))[0]


def record_quarantined(connection: Connection, arrival: Arrival, path: str, reason: str) -> None:
    """Tell the database of a file put aside; the caller commits."""
    connection.execute(
        insert(table_of(QuarantineRow)).values(
            path=path,
            sop_instance_uid=arrival.header.sop_instance_uid,
            digest=arrival.digest,
            calling_ae_title=arrival.sender.calling_ae_title,
            reason=reason,
            arrived_at=arrival.arrived_at,
        )
    )


def close_association(connection: Connection, association_id: str, ending: AssociationEnding, now: datetime) -> None:
    """Note how an association ended; nothing happens for one that sent no instance."""
    connection.execute(
        update(AssociationRow)
        .where(AssociationRow.id == association_id, AssociationRow.closed_at.is_(None))
        .values(closed_at=now, ending=ending.value)
    )


def recover_at_start(session: Session, now: datetime) -> int:
    """After a restart: open associations are lost ones; times ahead of the clock are pulled back to now.

    Returns the number of lost associations. The caller commits.
    """
    lost = session.execute(
        update(AssociationRow)
        .where(AssociationRow.closed_at.is_(None))
        .values(closed_at=now, ending=AssociationEnding.LOST.value)
    )
    for column in (StudyRow.last_arrival_at, StudyRow.version_opened_at):
        session.execute(update(StudyRow).where(column > now).values({column: now}))
    session.execute(update(AssociationRow).where(AssociationRow.closed_at > now).values(closed_at=now))
    return int(getattr(lost, "rowcount", 0))


def known_paths(session: Session) -> set[str]:
    """Paths of all files that have a row; a file without one was never acknowledged."""
    paths = set(session.scalars(select(InstanceRow.path).where(InstanceRow.purged_at.is_(None))))
    return paths | set(session.scalars(select(QuarantineRow.path)))


def series_of_study(
    session: Session, study_instance_uid: str, version: int | None = None
) -> tuple[ReceivedSeries, ...]:
    """All series of a study with their files, as of a version; instances whose file was purged are left out."""
    rows = session.scalars(
        select(SeriesRow)
        .where(SeriesRow.study_instance_uid == study_instance_uid)
        .order_by(SeriesRow.series_instance_uid)
    )
    found = (_received_series(session, row, version) for row in rows)
    return tuple(series for series in found if series.instances)


def _received_series(session: Session, row: SeriesRow, version: int | None) -> ReceivedSeries:
    query = (
        select(InstanceRow)
        .where(
            InstanceRow.study_instance_uid == row.study_instance_uid,
            InstanceRow.series_instance_uid == row.series_instance_uid,
            InstanceRow.purged_at.is_(None),
        )
        .order_by(InstanceRow.slice_position_mm, InstanceRow.instance_number, InstanceRow.sop_instance_uid)
    )
    if version is not None:
        query = query.where(InstanceRow.study_version <= version)
    return ReceivedSeries(
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        modality=row.modality,
        series_description=row.series_description,
        calling_ae_title=row.calling_ae_title,
        instances=tuple(_received_instance(instance) for instance in session.scalars(query)),
    )


def _received_instance(row: InstanceRow) -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        path=row.path,
        digest=row.digest,
        instance_number=row.instance_number,
        slice_position_mm=row.slice_position_mm,
        arrived_at=row.arrived_at,
    )


def study_facts(session: Session, study_instance_uid: str) -> StudyFacts | None:
    """Versions and times of a study; None when nothing of it was received."""
    row = session.get(StudyRow, study_instance_uid)
    if row is None:
        return None
    return StudyFacts(
        study_instance_uid=row.study_instance_uid,
        version=row.version,
        taken_version=row.taken_version,
        delivered_version=row.delivered_version,
        first_arrival_at=row.first_arrival_at,
        last_arrival_at=row.last_arrival_at,
        conflict=row.conflict,
    )


def take_study(session: Session, study_instance_uid: str, version: int) -> bool:
    """A job takes this version: it closes. False when it was taken before or a newer one has opened.

    Call it in the transaction that writes the job, so that both happen or neither.
    """
    taken = session.execute(
        update(StudyRow)
        .where(
            StudyRow.study_instance_uid == study_instance_uid,
            StudyRow.version == version,
            StudyRow.taken_version < version,
        )
        .values(taken_version=version)
    )
    return bool(getattr(taken, "rowcount", 0))


def release_study(session: Session, study_instance_uid: str) -> None:
    """The operator's word: the open version is due as it is, whatever it waits for."""
    session.execute(
        update(StudyRow)
        .where(StudyRow.study_instance_uid == study_instance_uid)
        .values(released_version=StudyRow.version)
    )
