"""What was reported for each study, when, with which calibration, and what took its place.

A study may have several results: a late image opens a new version, a later phantom scan a new revision of the same
version. Only one is current; each older one names its successor. Rows are never changed but for that and for holds.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import ForeignKey, Select, String, UniqueConstraint, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from analysis.results import Reason
from storage.database import Base


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One encoded DICOM object on disk, complete and durable."""

    kind: str  # value of node.encoded.ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    path: Path


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """What one analysis gave. Several `objects` of one kind are forms of one content."""

    study_instance_uid: str
    version: int
    kind: str  # PHANTOM, PATIENT or OTHER
    status: str  # "reported", "refused", "accepted" or "rejected" (phantom), "ignored"
    series_instance_uid: str | None = None
    reasons: tuple[Reason, ...] = ()
    report_json: str = "{}"
    calibration_ids: tuple[str, ...] = ()  # that the result rests on, or that it made
    provisional: bool = False  # a later phantom scan may amend it
    objects: tuple[StoredObject, ...] = ()
    reanalyse: tuple[str, ...] = ()  # other studies whose result this one may amend


@dataclass(frozen=True, slots=True)
class StudyResult:
    """One row of the ledger."""

    id: int
    study_instance_uid: str
    version: int
    revision: int
    kind: str
    status: str
    series_instance_uid: str | None
    reasons: tuple[Reason, ...]
    report_json: str
    calibration_ids: tuple[str, ...]
    provisional: bool
    finished_at: datetime
    superseded_by: int | None
    hold_reason: str | None
    objects: tuple[StoredObject, ...] = field(default=(), repr=False)


class StudyResultRow(Base):
    __tablename__ = "study_results"
    __table_args__ = (UniqueConstraint("study_instance_uid", "version", "revision"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), index=True)
    version: Mapped[int]
    revision: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    series_instance_uid: Mapped[str | None] = mapped_column(String(64))
    reasons_json: Mapped[str]
    report_json: Mapped[str]
    provisional: Mapped[bool]
    finished_at: Mapped[datetime] = mapped_column(index=True)
    superseded_by: Mapped[int | None] = mapped_column(ForeignKey("study_results.id"), index=True)
    hold_reason: Mapped[str | None]
    calibrations: Mapped[list["ResultCalibrationRow"]] = relationship(order_by="ResultCalibrationRow.position")
    objects: Mapped[list["ResultObjectRow"]] = relationship(order_by="ResultObjectRow.id")

    def frozen(self) -> StudyResult:
        return StudyResult(
            self.id, self.study_instance_uid, self.version, self.revision, self.kind, self.status,
            self.series_instance_uid, tuple(Reason(*pair) for pair in json.loads(self.reasons_json)),
            self.report_json, tuple(row.calibration_id for row in self.calibrations), self.provisional,
            self.finished_at, self.superseded_by, self.hold_reason, tuple(row.frozen() for row in self.objects),
        )  # fmt: skip


class ResultCalibrationRow(Base):
    __tablename__ = "study_result_calibrations"

    result_id: Mapped[int] = mapped_column(ForeignKey("study_results.id"), primary_key=True)
    calibration_id: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    position: Mapped[int]


class ResultObjectRow(Base):
    __tablename__ = "study_result_objects"

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("study_results.id"), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), index=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    path: Mapped[str]

    def frozen(self) -> StoredObject:
        return StoredObject(self.kind, self.sop_class_uid, self.sop_instance_uid, self.series_instance_uid,
                            self.transfer_syntax_uid, Path(self.path))  # fmt: skip


def save_outcome(session: Session, outcome: StudyOutcome, now: datetime) -> tuple[StudyResult, bool]:
    """Write an outcome and make it the study's current result. False: the same objects were reported already."""
    earlier = _current_row(session, outcome.study_instance_uid)
    if earlier is not None and _same(earlier, outcome):
        earlier.provisional, earlier.report_json = outcome.provisional, outcome.report_json
        return earlier.frozen(), False
    row = _new_row(outcome, _next_revision(session, outcome), now)
    session.add(row)
    session.flush()
    session.execute(
        update(StudyResultRow)
        .where(StudyResultRow.study_instance_uid == outcome.study_instance_uid, StudyResultRow.id != row.id)
        .where(StudyResultRow.superseded_by.is_(None))
        .values(superseded_by=row.id)
    )
    return row.frozen(), True


def current_result(session: Session, study_instance_uid: str) -> StudyResult | None:
    """The result that stands for this study now."""
    row = _current_row(session, study_instance_uid)
    return row.frozen() if row else None


def results_of_study(session: Session, study_instance_uid: str) -> list[StudyResult]:
    """Every result of a study, oldest first."""
    return _frozen(
        session, select(StudyResultRow).where(StudyResultRow.study_instance_uid == study_instance_uid)
        .order_by(StudyResultRow.id)
    )  # fmt: skip


def recent_results(session: Session, limit: int = 50) -> list[StudyResult]:
    """The ledger, newest first, superseded results among them."""
    return _frozen(session, select(StudyResultRow).order_by(StudyResultRow.id.desc()).limit(limit))


def results_using(session: Session, calibration_ids: Iterable[str]) -> list[StudyResult]:
    """Current patient results that rest on any of these calibrations."""
    return _frozen(
        session,
        _current_patients()
        .join(ResultCalibrationRow, ResultCalibrationRow.result_id == StudyResultRow.id)
        .where(ResultCalibrationRow.calibration_id.in_(list(calibration_ids)))
        .distinct(),
    )


def provisional_results(session: Session) -> list[StudyResult]:
    """Current patient results that the next accepted phantom scan may amend."""
    return _frozen(session, _current_patients().where(StudyResultRow.provisional))


def hold_results(session: Session, result_ids: Iterable[int], reason: str) -> None:
    """Put results on the hold list: reported, but doubtful since a phantom scan failed."""
    session.execute(update(StudyResultRow).where(StudyResultRow.id.in_(list(result_ids))).values(hold_reason=reason))


def release_results(session: Session, result_ids: Iterable[int]) -> None:
    """Take results off the hold list."""
    session.execute(update(StudyResultRow).where(StudyResultRow.id.in_(list(result_ids))).values(hold_reason=None))


def held_results(session: Session) -> list[StudyResult]:
    """The hold list: current results on hold."""
    return _frozen(session, _current_patients().where(StudyResultRow.hold_reason.is_not(None)))


def _current_patients() -> Select[StudyResultRow]:
    return (
        select(StudyResultRow)
        .where(StudyResultRow.kind == "PATIENT", StudyResultRow.superseded_by.is_(None))
        .order_by(StudyResultRow.id)
    )


def _frozen(session: Session, query: Select[StudyResultRow]) -> list[StudyResult]:
    return [row.frozen() for row in session.scalars(query)]


def _current_row(session: Session, study_instance_uid: str) -> StudyResultRow | None:
    return session.scalars(
        select(StudyResultRow)
        .where(StudyResultRow.study_instance_uid == study_instance_uid, StudyResultRow.superseded_by.is_(None))
        .order_by(StudyResultRow.id.desc())
    ).first()


def _same(row: StudyResultRow, outcome: StudyOutcome) -> bool:
    """Same version, verdict and objects: a job that was run twice, or an amendment that changed nothing."""
    return (
        (row.version, row.status, row.kind) == (outcome.version, outcome.status, outcome.kind)
        and {o.sop_instance_uid for o in row.objects} == {o.sop_instance_uid for o in outcome.objects}
        and json.loads(row.reasons_json) == [[r.code, r.text] for r in outcome.reasons]
    )


def _next_revision(session: Session, outcome: StudyOutcome) -> int:
    latest = session.scalar(
        select(func.max(StudyResultRow.revision)).where(
            StudyResultRow.study_instance_uid == outcome.study_instance_uid, StudyResultRow.version == outcome.version
        )
    )
    return (latest or 0) + 1


def _new_row(outcome: StudyOutcome, revision: int, now: datetime) -> StudyResultRow:
    return StudyResultRow(
        study_instance_uid=outcome.study_instance_uid,
        version=outcome.version,
        revision=revision,
        kind=outcome.kind,
        status=outcome.status,
        series_instance_uid=outcome.series_instance_uid,
        reasons_json=json.dumps([[reason.code, reason.text] for reason in outcome.reasons]),
        report_json=outcome.report_json,
        provisional=outcome.provisional,
        finished_at=now,
        calibrations=[
            ResultCalibrationRow(calibration_id=id_, position=i)
            for i, id_ in enumerate(dict.fromkeys(outcome.calibration_ids))
        ],
        objects=[
            ResultObjectRow(
                kind=o.kind,
                sop_class_uid=o.sop_class_uid,
                sop_instance_uid=o.sop_instance_uid,
                series_instance_uid=o.series_instance_uid,
                transfer_syntax_uid=o.transfer_syntax_uid,
                path=str(o.path),
            )  # fmt: skip
            for o in outcome.objects
        ],
    )
