"""Rows of what was received: associations, studies, series, instances, and quarantined second copies.

Interfaces for the rest of the project:

    record_arrival(session, arrival) -> ArrivalOutcome            one instance; `record_arrivals` a batch
    series_of_study(session, study_instance_uid, version) -> tuple[ReceivedSeries, ...]
    study_facts(session, study_instance_uid) -> StudyFacts
    take_study(session, study_instance_uid, version) -> bool      a job was made for this version
    release_study(session, study_instance_uid)                    the operator: analyse it as it is, do not wait

`storage.retention.mark_delivered(session, study_instance_uid, version, now)` says that its results are delivered.

A study has a version. Instances that arrive while the version is open belong to it; an instance that arrives after the
version was taken by a job opens the next version. An identical resend changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache

from sqlalchemy import Connection, Insert, Select, bindparam, case, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from storage.arrival import (
    Arrival,
    association_values,
    instance_values,
    series_values,
    study_values,
)
from storage.received_tables import (
    AssociationEnding,
    AssociationRow,
    InstanceRow,
    QuarantineRow,
    SeriesRow,
    StudyRow,
    StudySenderRow,
    table_of,
)

TWO_PATIENTS = "two Patient IDs in one study"


class ArrivalOutcome(StrEnum):
    STORED = "stored"
    DUPLICATE = "duplicate"  # same UID, same bytes: no new work
    RESTORED = "restored"  # same bytes as an instance whose file was purged: the file is back, no new work
    CONFLICT = "conflict"  # same UID, other bytes: the first is kept


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    sop_instance_uid: str
    sop_class_uid: str
    path: str  # relative to the inbox root
    digest: str
    instance_number: int | None
    slice_position_mm: float | None


@dataclass(frozen=True, slots=True)
class ReceivedSeries:
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    series_description: str
    calling_ae_title: str
    last_arrival_at: datetime
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


def record_arrivals(connection: Connection, arrivals: Sequence[Arrival]) -> tuple[ArrivalOutcome, ...]:
    """Write the rows of a batch in order, in one transaction that the caller commits."""
    known = _known_instances(connection, [a.header.sop_instance_uid for a in arrivals])
    outcomes = []
    for arrival in arrivals:
        outcomes.append(_outcome(known, arrival))
        known.setdefault(arrival.header.sop_instance_uid, (arrival.digest, False))
    by_outcome = list(zip(arrivals, outcomes, strict=True))
    for arrival in (a for a, outcome in by_outcome if outcome is ArrivalOutcome.RESTORED):
        _restore(connection, arrival)
    _note_associations(connection, arrivals)
    _insert_fresh(connection, [a for a, outcome in by_outcome if outcome is ArrivalOutcome.STORED])
    _note_senders(connection, [a for a, outcome in by_outcome if outcome is not ArrivalOutcome.CONFLICT])
    return tuple(outcomes)


def _known_instances(connection: Connection, uids: list[str]) -> dict[str, tuple[str, bool]]:
    rows = connection.execute(_statements(connection.dialect.name).known, {"uids": uids})
    return {uid: (digest, purged_at is not None) for uid, digest, purged_at in rows}


def _outcome(known: dict[str, tuple[str, bool]], arrival: Arrival) -> ArrivalOutcome:
    if arrival.header.sop_instance_uid not in known:
        return ArrivalOutcome.STORED
    digest, purged = known[arrival.header.sop_instance_uid]
    if digest != arrival.digest:
        return ArrivalOutcome.CONFLICT
    return ArrivalOutcome.RESTORED if purged else ArrivalOutcome.DUPLICATE


def _restore(connection: Connection, arrival: Arrival) -> None:
    connection.execute(
        update(InstanceRow)
        .where(InstanceRow.sop_instance_uid == arrival.header.sop_instance_uid)
        .values(purged_at=None, path=arrival.path)
    )


def _note_associations(connection: Connection, arrivals: Sequence[Arrival]) -> None:
    senders = {a.sender.association_id: a.sender for a in arrivals}
    rows = [association_values(sender) for sender in senders.values()]
    connection.execute(_statements(connection.dialect.name).add_associations, rows)


def _insert_fresh(connection: Connection, fresh: Sequence[Arrival]) -> None:
    """New instances: open their studies or move their clocks, then add series and instances."""
    if not fresh:
        return
    statements = _statements(connection.dialect.name)
    versions = {}
    for arrival in fresh:  # in order of arrival: the last one sets the study's clock
        row = connection.execute(statements.touch_study, study_values(arrival))
        versions[arrival.header.study_instance_uid] = int(row.scalar_one())
    series = {(a.header.study_instance_uid, a.header.series_instance_uid): a for a in fresh}
    connection.execute(statements.touch_series, [series_values(a) for a in series.values()])
    connection.execute(
        statements.add_instances, [instance_values(a, versions[a.header.study_instance_uid]) for a in fresh]
    )


def _note_senders(connection: Connection, arrivals: Sequence[Arrival]) -> None:
    """Also for identical resends: while they run, the study is not due; once released, nothing was broken off."""
    pairs = sorted({(a.header.study_instance_uid, a.sender.association_id) for a in arrivals})
    if pairs:
        rows = [{"study_instance_uid": study, "association_id": association} for study, association in pairs]
        connection.execute(_statements(connection.dialect.name).add_senders, rows)


@dataclass(frozen=True, slots=True)
class _Statements:
    """Built once per dialect: building them costs more than running them."""

    known: Select[tuple[str, str, datetime | None]]
    add_associations: Insert
    touch_study: ReturningInsert[tuple[int]]
    touch_series: Insert
    add_senders: Insert
    add_instances: Insert


@cache
def _statements(dialect: str) -> _Statements:
    make = postgresql.insert if dialect == "postgresql" else sqlite.insert
    series = make(table_of(SeriesRow))
    return _Statements(
        known=select(InstanceRow.sop_instance_uid, InstanceRow.digest, InstanceRow.purged_at).where(
            InstanceRow.sop_instance_uid.in_(bindparam("uids", expanding=True))
        ),
        add_associations=make(table_of(AssociationRow)).on_conflict_do_nothing(),
        touch_study=_touch_study(dialect),
        touch_series=series.on_conflict_do_update(
            index_elements=["study_instance_uid", "series_instance_uid"],
            set_={"last_arrival_at": series.excluded.last_arrival_at},
        ),
        add_senders=make(table_of(StudySenderRow)).on_conflict_do_nothing(),
        add_instances=make(table_of(InstanceRow)),
    )


def _touch_study(dialect: str) -> ReturningInsert[tuple[int]]:
    """Add the study, or move its clock; an arrival after the version was taken opens the next version."""
    study = table_of(StudyRow).c
    statement = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table_of(StudyRow))
    new = statement.excluded
    taken = study.taken_version == study.version
    return statement.on_conflict_do_update(
        index_elements=["study_instance_uid"],
        set_={
            "version": case((taken, study.version + 1), else_=study.version),
            "version_opened_at": case((taken, new.version_opened_at), else_=study.version_opened_at),
            "last_arrival_at": case(
                (new.last_arrival_at > study.last_arrival_at, new.last_arrival_at), else_=study.last_arrival_at
            ),
            "conflict": case((new.patient_id != study.patient_id, TWO_PATIENTS), else_=study.conflict),
        },
    ).returning(study.version)


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
        last_arrival_at=row.last_arrival_at,
        instances=tuple(
            ReceivedInstance(
                i.sop_instance_uid, i.sop_class_uid, i.path, i.digest, i.instance_number, i.slice_position_mm
            )
            for i in session.scalars(query)
        ),
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
