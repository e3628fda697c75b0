"""The outbox: one row per encoded object and destination, kept until the destination has it.

waiting --C-STORE success--> sent --commitment--> delivered      (without commitment: waiting --> delivered)
   |  ^-- refused for now: later again     `-- not committed --> waiting
   |-- refused for good --> dead --requeue--> waiting
   |-- class not accepted, another form is in reserve --> replaced   (reserve --> waiting)
   `-- a newer result of the study --> superseded
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from sqlalchemy import ForeignKey, Select, String, UniqueConstraint, case, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from storage.database import Base
from storage.study_results import ResultObjectRow, StudyResult, StudyResultRow


class Delivery(StrEnum):
    WAITING = "waiting"
    RESERVE = "reserve"  # another form of an object that waits; sent only if the first form is not accepted
    SENT = "sent"  # stored by the destination, commitment not confirmed yet
    DELIVERED = "delivered"
    DEAD = "dead"
    REPLACED = "replaced"
    SUPERSEDED = "superseded"


OPEN = (Delivery.WAITING, Delivery.SENT)


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """One object for one destination, as the sender sees it."""

    id: int
    destination: str
    state: Delivery
    study_instance_uid: str
    series_instance_uid: str
    version: int
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    attempts: int
    queued_at: datetime
    due_at: datetime
    detail: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one destination wants of a result: kinds of object, and SOP classes in order of preference."""

    destination: str
    kinds: frozenset[str]
    preferred_classes: tuple[str, ...] = ()

    def rank(self, sop_class_uid: str) -> int | None:
        """0 is the best form; None: this form is not wanted. A class outside the list has one form only."""
        return self.preferred_classes.index(sop_class_uid) if sop_class_uid in self.preferred_classes else None


class OutboxRow(Base):
    __tablename__ = "outbox"
    __table_args__ = (UniqueConstraint("object_id", "destination"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    object_id: Mapped[int] = mapped_column(ForeignKey("study_result_objects.id"), index=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("study_results.id"), index=True)
    destination: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    preference: Mapped[int]
    attempts: Mapped[int] = mapped_column(default=0)
    queued_at: Mapped[datetime]
    due_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    transaction_uid: Mapped[str | None] = mapped_column(String(64), index=True)
    detail: Mapped[str] = mapped_column(default="")
    object: Mapped[ResultObjectRow] = relationship(lazy="joined")
    result: Mapped[StudyResultRow] = relationship(lazy="joined")

    def frozen(self) -> OutboxItem:
        o = self.object
        return OutboxItem(
            self.id, self.destination, Delivery(self.state), self.result.study_instance_uid, o.series_instance_uid,
            self.result.version, o.kind, o.sop_class_uid, o.sop_instance_uid, o.transfer_syntax_uid, Path(o.path),
            self.attempts, self.queued_at, self.due_at, self.detail,
        )  # fmt: skip


def queue_result(session: Session, result: StudyResult, wanted: Sequence[Wanted], now: datetime) -> int:
    """Queue a result's objects for every destination; what still waits of the study's older results is superseded."""
    _supersede_older(session, result, now)
    objects = session.scalars(select(ResultObjectRow).where(ResultObjectRow.result_id == result.id)).all()
    rows = [row for one in wanted for row in _rows_for(one, objects, now)]
    session.add_all(rows)
    session.flush()
    return len(rows)


def due_items(session: Session, destination: str, now: datetime, limit: int) -> list[OutboxItem]:
    """What this destination should be sent now, oldest first."""
    return _frozen(
        session,
        select(OutboxRow)
        .where(OutboxRow.destination == destination, OutboxRow.state == Delivery.WAITING, OutboxRow.due_at <= now)
        .order_by(OutboxRow.queued_at, OutboxRow.id)
        .limit(limit),
    )


def mark_sent(session: Session, item_id: int, detail: str, now: datetime) -> None:
    """The destination answered success; its commitment is still to be asked for."""
    _set(session, item_id, state=Delivery.SENT, sent_at=now, detail=detail, transaction_uid=None)


def mark_delivered(session: Session, item_ids: Iterable[int], detail: str, now: datetime) -> None:
    """The destination has the objects: committed, or stored where it offers no commitment."""
    session.execute(
        update(OutboxRow).where(OutboxRow.id.in_(list(item_ids)))
        .values(state=Delivery.DELIVERED, delivered_at=now, detail=detail)
        .values(sent_at=func.coalesce(OutboxRow.sent_at, now))
    )  # fmt: skip


def mark_refused_for_now(session: Session, item_id: int, detail: str, due_at: datetime) -> None:
    """Try this object again at `due_at`."""
    _set(session, item_id, state=Delivery.WAITING, attempts=OutboxRow.attempts + 1, detail=detail, due_at=due_at,
         transaction_uid=None)  # fmt: skip


def mark_dead(session: Session, item_id: int, detail: str) -> None:
    """Put the object aside; an operator may requeue it."""
    _set(session, item_id, state=Delivery.DEAD, attempts=OutboxRow.attempts + 1, detail=detail)


def use_other_form(session: Session, item_id: int, detail: str, now: datetime) -> list[OutboxItem]:
    """Replace the objects of a kind whose class is not accepted by the next form of them; empty: there is none."""
    row = session.get_one(OutboxRow, item_id)
    of_kind = session.scalars(
        select(OutboxRow).join(ResultObjectRow, OutboxRow.object_id == ResultObjectRow.id)
        .where(OutboxRow.result_id == row.result_id, OutboxRow.destination == row.destination)
        .where(ResultObjectRow.kind == row.object.kind).order_by(OutboxRow.preference)
    ).all()  # fmt: skip
    reserve = [other for other in of_kind if other.state == Delivery.RESERVE]
    if not reserve:
        return []
    for other in of_kind:
        if other.preference == row.preference and other.state in (Delivery.WAITING, Delivery.DEAD):
            other.state, other.detail = Delivery.REPLACED, detail
    chosen = [other for other in reserve if other.preference == reserve[0].preference]
    for other in chosen:
        other.state, other.due_at = Delivery.WAITING, now
    session.flush()
    return [other.frozen() for other in chosen]


def requeue_dead(session: Session, now: datetime, destination: str | None = None) -> int:
    """Queue every object that was put aside once more, optionally of one destination only."""
    query = update(OutboxRow).where(OutboxRow.state == Delivery.DEAD)
    if destination is not None:
        query = query.where(OutboxRow.destination == destination)
    done = session.execute(
        query.values(state=Delivery.WAITING, due_at=now, queued_at=now, attempts=0, detail="requeued by the operator")
    )
    return int(done.rowcount)  # type: ignore[attr-defined]


def list_items(session: Session, *states: Delivery, limit: int = 100) -> list[OutboxItem]:
    """The newest rows, optionally only those in the given states."""
    query = select(OutboxRow).order_by(OutboxRow.id.desc()).limit(limit)
    return _frozen(session, query.where(OutboxRow.state.in_(states)) if states else query)


def items_of_result(session: Session, result_id: int) -> list[OutboxItem]:
    return _frozen(session, select(OutboxRow).where(OutboxRow.result_id == result_id).order_by(OutboxRow.id))


def states_of(session: Session, item_ids: Iterable[int]) -> set[Delivery]:
    """The states that these rows are in."""
    found = session.scalars(select(OutboxRow.state).where(OutboxRow.id.in_(list(item_ids))))
    return {Delivery(state) for state in found}


def count_items(session: Session) -> dict[tuple[str, Delivery], int]:
    """How many objects of each destination are in each state."""
    found = session.execute(
        select(OutboxRow.destination, OutboxRow.state, func.count()).group_by(OutboxRow.destination, OutboxRow.state)
    )
    return {(destination, Delivery(state)): number for destination, state, number in found}


@dataclass(frozen=True, slots=True)
class OutboxGroup:
    """Objects of one destination in one state; what is not at its end is told apart by the last answer."""

    destination: str
    state: Delivery
    number: int
    oldest_at: datetime
    detail: str


def group_items(session: Session) -> list[OutboxGroup]:
    """What each destination has, waits for, or will not get; forms that are not needed are left out."""
    detail = case((OutboxRow.state == Delivery.DELIVERED, ""), else_=OutboxRow.detail)
    found = session.execute(
        select(OutboxRow.destination, OutboxRow.state, func.count(), func.min(OutboxRow.queued_at), detail)
        .where(OutboxRow.state.in_((*OPEN, Delivery.DELIVERED, Delivery.DEAD)))
        .group_by(OutboxRow.destination, OutboxRow.state, detail)
        .order_by(OutboxRow.destination, OutboxRow.state)
    )
    return [OutboxGroup(destination, Delivery(state), *rest) for destination, state, *rest in found]


def explain_waiting(session: Session, destination: str, detail: str) -> None:
    """Say at everything that waits for a destination why it does: nothing of it was tried one by one."""
    session.execute(
        update(OutboxRow).where(OutboxRow.destination == destination, OutboxRow.state == Delivery.WAITING)
        .where(OutboxRow.attempts == 0).values(detail=detail)
    )  # fmt: skip


def fully_delivered(session: Session, study_instance_uid: str, version: int) -> bool:
    """True when nothing of this version waits, is unconfirmed or was put aside, and something was delivered."""
    states = set(
        session.scalars(
            select(OutboxRow.state).join(StudyResultRow, OutboxRow.result_id == StudyResultRow.id)
            .where(StudyResultRow.study_instance_uid == study_instance_uid, StudyResultRow.version == version)
        )
    )  # fmt: skip
    return Delivery.DELIVERED in states and not states & {*OPEN, Delivery.DEAD}


def _rows_for(wanted: Wanted, objects: Sequence[ResultObjectRow], now: datetime) -> list[OutboxRow]:
    """One row per wanted object; the best form of each kind waits, the other forms are in reserve."""
    rows = []
    for kind in sorted(wanted.kinds):
        of_kind = [o for o in objects if o.kind == kind]
        ranked = [(rank, o) for o in of_kind if (rank := wanted.rank(o.sop_class_uid)) is not None]
        forms = ranked or [(0, o) for o in of_kind]
        best = min((rank for rank, _ in forms), default=0)
        rows += [
            OutboxRow(object_id=o.id, result_id=o.result_id, destination=wanted.destination, preference=rank,
                      state=Delivery.WAITING if rank == best else Delivery.RESERVE, queued_at=now, due_at=now)
            for rank, o in forms
        ]  # fmt: skip
    return rows


def _supersede_older(session: Session, result: StudyResult, now: datetime) -> None:
    older = select(StudyResultRow.id).where(
        StudyResultRow.study_instance_uid == result.study_instance_uid, StudyResultRow.id < result.id
    )
    session.execute(
        update(OutboxRow).where(OutboxRow.result_id.in_(older))
        .where(OutboxRow.state.in_((Delivery.WAITING, Delivery.RESERVE, Delivery.DEAD)))
        .values(state=Delivery.SUPERSEDED, detail=f"result {result.version}.{result.revision} took its place at {now}")
    )  # fmt: skip


def _set(session: Session, item_id: int, **values: object) -> None:
    session.execute(update(OutboxRow).where(OutboxRow.id == item_id).values(**values))


def _frozen(session: Session, query: Select[OutboxRow]) -> list[OutboxItem]:
    return [row.frozen() for row in session.scalars(query)]
