"""Storage commitment requests: which objects were asked for under which Transaction UID, kept until answered.

A destination may answer on another association, hours later or after a restart of this node; the rows here are what
the answer is matched with.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import String, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from storage.database import Base
from storage.outbox import Delivery, OutboxItem, OutboxRow


class CommitmentRow(Base):
    __tablename__ = "commitments"

    transaction_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    destination: Mapped[str] = mapped_column(String(64), index=True)
    requested_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    n_objects: Mapped[int]


@dataclass(frozen=True, slots=True)
class CommitmentResult:
    """An answer matched with what was asked."""

    transaction_uid: str
    destination: str
    committed: tuple[OutboxItem, ...]
    failed: tuple[tuple[OutboxItem, int], ...]  # with the Failure Reason
    unmentioned: tuple[OutboxItem, ...]


def unconfirmed_items(session: Session, destination: str, asked_before: datetime, limit: int) -> list[OutboxItem]:
    """Objects sent to this destination whose commitment was never asked for, or was asked before the given time."""
    query = (
        select(OutboxRow)
        .outerjoin(CommitmentRow, OutboxRow.transaction_uid == CommitmentRow.transaction_uid)
        .where(OutboxRow.destination == destination, OutboxRow.state == Delivery.SENT)
        .where(or_(OutboxRow.transaction_uid.is_(None), CommitmentRow.requested_at < asked_before))
        .order_by(OutboxRow.id)
        .limit(limit)
    )
    return [row.frozen() for row in session.scalars(query)]


def explain_unconfirmed(session: Session, destination: str, detail: str) -> None:
    """Say at everything that a destination stored, and was not asked about, why it is not confirmed."""
    session.execute(
        update(OutboxRow).where(OutboxRow.destination == destination, OutboxRow.state == Delivery.SENT)
        .where(OutboxRow.transaction_uid.is_(None)).values(detail=detail)
    )  # fmt: skip


def open_commitment(session: Session, uid: str, destination: str, item_ids: Iterable[int], now: datetime) -> None:
    """Note a request before it is sent, so that even an instant answer finds it."""
    ids = list(item_ids)
    session.add(CommitmentRow(transaction_uid=uid, destination=destination, requested_at=now, n_objects=len(ids)))
    session.flush()
    session.execute(update(OutboxRow).where(OutboxRow.id.in_(ids)).values(transaction_uid=uid))


def withdraw_commitment(session: Session, uid: str) -> None:
    """The destination refused the request: its objects may be asked for again."""
    session.execute(update(OutboxRow).where(OutboxRow.transaction_uid == uid).values(transaction_uid=None))
    row = session.get(CommitmentRow, uid)
    if row is not None:
        session.delete(row)


def close_commitment(
    session: Session, uid: str, committed: Iterable[str], failed: Mapping[str, int], now: datetime
) -> CommitmentResult | None:
    """Match an answer with its request; None: no such request. The caller decides what becomes of each object.

    committed : SOP Instance UIDs; failed : SOP Instance UID -> Failure Reason
    """
    request = session.get(CommitmentRow, uid)
    if request is None:
        return None
    request.answered_at = now
    rows = session.scalars(
        select(OutboxRow).where(OutboxRow.transaction_uid == uid, OutboxRow.state == Delivery.SENT)
    ).all()
    kept, items = set(committed), [row.frozen() for row in rows]
    return CommitmentResult(
        uid,
        request.destination,
        tuple(i for i in items if i.sop_instance_uid in kept),
        tuple((i, failed[i.sop_instance_uid]) for i in items if i.sop_instance_uid in failed),
        tuple(i for i in items if i.sop_instance_uid not in kept and i.sop_instance_uid not in failed),
    )
