"""Writes the rows of received instances, in groups, with few statements: this is the hot path of receiving.

A study has a version. Instances that arrive while the version is open belong to it; an instance that arrives after the
version was taken by a job opens the next version. An identical resend changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, Connection, Executable, Insert, bindparam, case, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from storage.arrival import Arrival, association_values, instance_values, series_values, study_values
from storage.received_tables import AssociationRow, InstanceRow, SeriesRow, StudyRow, StudySenderRow, table_of

TWO_PATIENTS = "two Patient IDs in one study"


class ArrivalOutcome(StrEnum):
    STORED = "stored"
    DUPLICATE = "duplicate"  # same UID, same bytes: no new work
    RESTORED = "restored"  # same bytes as an instance whose file was purged: the file is back, no new work
    CONFLICT = "conflict"  # same UID, other bytes: the first is kept


@dataclass(slots=True)
class KnownRows:
    """Rows that this process has committed and that are never removed; forget them after a failed transaction."""

    associations: set[str] = field(default_factory=set)
    series: set[tuple[str, str]] = field(default_factory=set)
    senders: set[tuple[str, str]] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.associations) + len(self.series) + len(self.senders)


def record_arrivals(
    connection: Connection, arrivals: Sequence[Arrival], rows: KnownRows | None = None
) -> tuple[ArrivalOutcome, ...]:
    """Write the rows of a batch in order, in one transaction that the caller commits; `rows` only saves time."""
    rows = KnownRows() if rows is None else rows  # an empty one is false
    known = _known_instances(connection, [a.header.sop_instance_uid for a in arrivals])
    outcomes = []
    for arrival in arrivals:
        outcomes.append(_outcome(known, arrival))
        known.setdefault(arrival.header.sop_instance_uid, (arrival.digest, False))
    by_outcome = list(zip(arrivals, outcomes, strict=True))
    for arrival in (a for a, outcome in by_outcome if outcome is ArrivalOutcome.RESTORED):
        _restore(connection, arrival)
    _note_associations(connection, arrivals, rows)
    _insert_fresh(connection, [a for a, outcome in by_outcome if outcome is ArrivalOutcome.STORED], rows)
    _note_senders(connection, [a for a, outcome in by_outcome if outcome is not ArrivalOutcome.CONFLICT], rows)
    return tuple(outcomes)


def _known_instances(connection: Connection, uids: list[str]) -> dict[str, tuple[str, bool]]:
    size = 1 << (len(uids) - 1).bit_length()
    padded = uids + uids[-1:] * (size - len(uids))
    rows = connection.execute(_select_known(size), {f"uid_{i}": uid for i, uid in enumerate(padded)})
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


def _note_associations(connection: Connection, arrivals: Sequence[Arrival], rows: KnownRows) -> None:
    new = {a.sender.association_id: a.sender for a in arrivals if a.sender.association_id not in rows.associations}
    if new:
        values = [association_values(sender) for sender in new.values()]
        connection.execute(_statements(connection.dialect.name).add_associations, values)
        rows.associations.update(new)


def _insert_fresh(connection: Connection, fresh: Sequence[Arrival], rows: KnownRows) -> None:
    """New instances: open their studies or move their clocks, then add series and instances."""
    if not fresh:
        return
    statements = _statements(connection.dialect.name)
    versions = {}
    for arrival in {(a.header.study_instance_uid, a.header.patient_id): a for a in fresh}.values():
        version = connection.execute(statements.touch_study, study_values(arrival)).scalar_one()
        versions[arrival.header.study_instance_uid] = int(version)
    series = {(a.header.study_instance_uid, a.header.series_instance_uid): a for a in fresh}
    if new := [series_values(a) for key, a in series.items() if key not in rows.series]:
        connection.execute(statements.add_series, new)
        rows.series.update(series)
    values = [instance_values(a, versions[a.header.study_instance_uid]) for a in fresh]
    connection.execute(statements.add_instances, values)


def _note_senders(connection: Connection, arrivals: Sequence[Arrival], rows: KnownRows) -> None:
    """Also for identical resends: while they run, the study is not due; once released, nothing was broken off."""
    pairs = {(a.header.study_instance_uid, a.sender.association_id) for a in arrivals} - rows.senders
    if pairs:
        values = [{"study_instance_uid": study, "association_id": sender} for study, sender in sorted(pairs)]
        connection.execute(_statements(connection.dialect.name).add_senders, values)
        rows.senders.update(pairs)


@dataclass(frozen=True, slots=True)
class _Statements:
    """Built once per dialect: building them costs more than running them."""

    add_associations: Insert
    touch_study: ReturningInsert[Any]
    add_series: Insert
    add_senders: Insert
    add_instances: Insert


@cache
def _select_known(size: int) -> Executable:
    """For groups of up to `size`: a list of one length is compiled once, one of any length at every run."""
    uids: list[BindParameter[Any]] = [bindparam(f"uid_{i}") for i in range(size)]
    return select(InstanceRow.sop_instance_uid, InstanceRow.digest, InstanceRow.purged_at).where(
        InstanceRow.sop_instance_uid.in_(uids)
    )


@cache
def _statements(dialect: str) -> _Statements:
    make = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return _Statements(
        add_associations=make(table_of(AssociationRow)).on_conflict_do_nothing(),
        touch_study=_touch_study(dialect),
        add_series=make(table_of(SeriesRow)).on_conflict_do_nothing(),
        add_senders=make(table_of(StudySenderRow)).on_conflict_do_nothing(),
        add_instances=make(table_of(InstanceRow)),
    )


def _touch_study(dialect: str) -> ReturningInsert[Any]:
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
