"""When is a study due: read from the database, with the reason in words while it waits.

    due_studies(session, now, rules) -> tuple[DueStudy, ...]
    waiting(session, now, rules) -> tuple[WaitingStudy, ...]

A version of a study is due when nothing arrived for the quiet time, no association that sent it is open, and the slice
positions of its series are contiguous. An abort or a gap waits longer. At the hard cap the configured action is taken.
DICOM has no message that says "complete" (PS3.4 leaves it to the application), so every rule here is a wait.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Literal

from pydicom.uid import CTImageStorage
from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.received_tables import AssociationEnding, AssociationRow, InstanceRow, StudyRow, StudySenderRow

SAME_POSITION_MM = 0.01  # positions nearer than this are one: several reconstructions or a repeated scan
GAP_FACTOR = 1.5  # of the usual spacing: one missing slice makes 2
MIN_SLICES_FOR_SPACING = 3
MAX_GAPS_NAMED = 3


@dataclass(frozen=True, slots=True)
class CompletenessRules:
    """How long to wait for the rest of a study."""

    quiet_s: float = 60.0  # without a new image
    quiet_after_abort_s: float = 300.0  # ... when an association that sent it was aborted or lost
    quiet_with_gap_s: float = 600.0  # ... when slices are missing between others
    hard_cap_s: float = 3600.0  # from the first image of a version; then the action is taken
    at_hard_cap: Literal["analyse", "hold"] = "analyse"  # hold: wait for the operator (`qct-node requeue`)


@dataclass(frozen=True, slots=True)
class DueStudy:
    """A version of a study that may be analysed, and why now."""

    study_instance_uid: str
    version: int
    reason: str
    complete: bool  # False: taken in spite of a gap, an abort or the cap


@dataclass(frozen=True, slots=True)
class WaitingStudy:
    """A version of a study that is not due yet."""

    study_instance_uid: str
    version: int
    reason: str  # for example "gap at z = -312.5 mm"
    due_at: datetime | None  # when it will be due if nothing arrives; None: nobody knows


@dataclass(frozen=True, slots=True)
class _Doubts:
    """What speaks against completeness."""

    open_senders: tuple[str, ...]  # calling AE titles
    broken_off: str | None  # how the last association ended, when not by release
    gaps: tuple[str, ...]


def due_studies(session: Session, now: datetime, rules: CompletenessRules) -> tuple[DueStudy, ...]:
    """Versions that no job has taken and that are due, those that have waited longest first."""
    return tuple(verdict for verdict in _judge_open(session, now, rules) if isinstance(verdict, DueStudy))


def waiting(session: Session, now: datetime, rules: CompletenessRules) -> tuple[WaitingStudy, ...]:
    """Versions that wait, each with its reason."""
    return tuple(verdict for verdict in _judge_open(session, now, rules) if isinstance(verdict, WaitingStudy))


def _judge_open(session: Session, now: datetime, rules: CompletenessRules) -> Iterator[DueStudy | WaitingStudy]:
    query = select(StudyRow).where(StudyRow.taken_version < StudyRow.version).order_by(StudyRow.last_arrival_at)
    for study in session.scalars(query):
        yield _judge(session, study, now, rules)


def _judge(session: Session, study: StudyRow, now: datetime, rules: CompletenessRules) -> DueStudy | WaitingStudy:
    uid, version = study.study_instance_uid, study.version
    if study.released_version == version:
        return DueStudy(uid, version, "released by the operator", complete=False)
    doubts = _doubts(session, study)
    reason, wait_s = _reason_to_wait(doubts, rules)
    due_at = None if wait_s is None else study.last_arrival_at + timedelta(seconds=wait_s)
    capped_at = study.version_opened_at + timedelta(seconds=rules.hard_cap_s)
    if due_at is not None and now >= due_at:
        because = f"; {reason}" if _is_doubtful(doubts) else ""
        return DueStudy(uid, version, f"quiet for {wait_s:g} s{because}", complete=not _is_doubtful(doubts))
    if now < capped_at:
        return WaitingStudy(uid, version, reason, _earliest(due_at, capped_at, rules))
    if rules.at_hard_cap == "hold":
        return WaitingStudy(
            uid, version, f"on hold after {rules.hard_cap_s:g} s: {reason}; requeue to analyse it", None
        )
    return DueStudy(uid, version, f"hard cap of {rules.hard_cap_s:g} s reached: {reason}", complete=False)


def _earliest(due_at: datetime | None, capped_at: datetime, rules: CompletenessRules) -> datetime | None:
    if rules.at_hard_cap == "hold":
        return due_at
    return min(due_at or capped_at, capped_at)


def _is_doubtful(doubts: _Doubts) -> bool:
    return bool(doubts.broken_off or doubts.gaps)


def _reason_to_wait(doubts: _Doubts, rules: CompletenessRules) -> tuple[str, float | None]:
    """Why the study waits and how long it must be quiet; None: as long as it takes."""
    if doubts.open_senders:
        return f"association of {', '.join(doubts.open_senders)} is open", None
    reasons = [f"gap at {gap}" for gap in doubts.gaps]
    wait_s = rules.quiet_with_gap_s if doubts.gaps else rules.quiet_s
    if doubts.broken_off:
        reasons.append(f"last association {doubts.broken_off}")
        wait_s = max(wait_s, rules.quiet_after_abort_s)
    return "; ".join(reasons) or "more images may come", wait_s


def _doubts(session: Session, study: StudyRow) -> _Doubts:
    senders = session.execute(
        select(AssociationRow.calling_ae_title, AssociationRow.ending)
        .join(StudySenderRow, StudySenderRow.association_id == AssociationRow.id)
        .where(StudySenderRow.study_instance_uid == study.study_instance_uid)
        .order_by(AssociationRow.opened_at)
    ).all()
    last_ending = senders[-1].ending if senders else None
    broken_off = last_ending if last_ending in (AssociationEnding.ABORTED, AssociationEnding.LOST) else None
    return _Doubts(
        open_senders=tuple(sorted({title for title, ending in senders if ending is None})),
        broken_off=broken_off,
        gaps=_gaps_of_study(session, study.study_instance_uid),
    )


def _gaps_of_study(session: Session, study_instance_uid: str) -> tuple[str, ...]:
    """Gaps of every stack of parallel single-frame CT slices; localizers have no stack."""
    rows = session.execute(
        select(
            InstanceRow.series_instance_uid,
            InstanceRow.orientation,
            InstanceRow.image_type,
            InstanceRow.slice_position_mm,
        ).where(
            InstanceRow.study_instance_uid == study_instance_uid,
            InstanceRow.sop_class_uid == CTImageStorage,
            InstanceRow.slice_position_mm.is_not(None),
        )
    )
    stacks: dict[tuple[str, str | None], list[float]] = {}
    for series_uid, orientation, image_type, position_mm in rows:
        if "LOCALIZER" not in image_type and position_mm is not None:
            stacks.setdefault((series_uid, orientation), []).append(position_mm)
    named = [f"z = {position_mm:.1f} mm" for positions in stacks.values() for position_mm in find_gaps(positions)]
    return tuple(named[:MAX_GAPS_NAMED])


def find_gaps(positions_mm: Sequence[float]) -> tuple[float, ...]:
    """Where slices are missing: the first missing position of each gap, in mm along the slice normal.

    A gap is a step of more than 1.5 times the usual (median) step; fewer than three slices have no usual step.
    """
    distinct = tuple(_distinct(sorted(positions_mm)))
    if len(distinct) < MIN_SLICES_FOR_SPACING:
        return ()
    usual_mm = median(above - below for below, above in pairwise(distinct))
    return tuple(below + usual_mm for below, above in pairwise(distinct) if above - below > GAP_FACTOR * usual_mm)


def _distinct(ascending_mm: Iterable[float]) -> Iterator[float]:
    previous = None
    for position_mm in ascending_mm:
        if previous is None or position_mm - previous > SAME_POSITION_MM:
            yield position_mm
            previous = position_mm
