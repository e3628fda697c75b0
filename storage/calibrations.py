"""Phantom scans with their verdicts, and which of them a patient scan may use.

Functions take a session and answer with values of `analysis.results`; `now` is a parameter. Saving is repeatable: the
same series measured by the same software version is one row; a newer version's measurement supersedes the older one.
"""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from pydantic import TypeAdapter
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from analysis.calibration_choice import ChoiceLimits, choose_calibration, interpolated, must_amend
from analysis.calibration_state import (
    CalibrationSeries,
    CommissioningLimits,
    KeyState,
    commissioning_gap,
    judged,
    key_state,
)
from analysis.qc import QcLimits
from analysis.results import Calibration, CalibrationKey, ChosenCalibration, SeriesHeader
from storage.calibration_tables import (
    CalibrationGateRow,
    CalibrationReasonRow,
    CalibrationRodRow,
    CalibrationRow,
    CommissioningRow,
    EpochRow,
)
from storage.phantom_registry import failed_scans as failed_scans
from storage.phantom_registry import phantom_for as phantom_for
from storage.phantom_registry import register_phantom as register_phantom
from storage.phantom_registry import save_failed_scan as save_failed_scan
from storage.study_results import (
    StudyResult,
    StudyResultRow,
    held_results,
    hold_results,
    provisional_results,
    release_results,
    results_using,
)

_CALIBRATION = TypeAdapter(Calibration)


@dataclass(frozen=True, slots=True)
class SaveLimits:
    """What judges a scan when it is saved, and what it changes for reports already made."""

    qc: QcLimits = QcLimits()
    choice: ChoiceLimits = ChoiceLimits()


def save_calibration(
    session: Session, calibration: Calibration, now: datetime, limits: SaveLimits | None = None
) -> tuple[str, ...]:
    """Judge the scan on the control charts, store it, and follow it up.

    A rejected scan puts the reports that rest on the last accepted one of its epoch on hold. An accepted scan makes
    their lines final: the answer names the studies whose BMD moves by more than the limit and must be analysed again.
    """
    limits = limits or SaveLimits()
    if session.get(CalibrationRow, calibration.id) is not None:
        return ()
    verdict = judge(session, calibration, limits)
    before = _last_accepted_before(_series(session, verdict.key), verdict.acquired)
    _insert(session, verdict, now)
    if before is None:
        return ()
    if not verdict.accepted:
        _hold(session, before, verdict)
        return ()
    return _settle(session, before, verdict, limits.choice)


def judge(session: Session, calibration: Calibration, limits: SaveLimits | None = None) -> Calibration:
    """The calibration with the verdict of its key's baseline and control charts; what `save_calibration` stores."""
    limits = limits or SaveLimits()
    stored = session.get(CalibrationRow, calibration.id)
    if stored is not None:
        return _CALIBRATION.validate_json(stored.payload_json)
    commissioning = limits.choice.commissioning
    series = _series(session, calibration.key)
    if not series.calibrations:
        return calibration
    every = all_series(session, commissioning)
    return judged(calibration, next(s for s in every if s.key == series.key), limits.qc, commissioning)


def state_before(
    session: Session, calibration: Calibration, limits: CommissioningLimits | None = None
) -> KeyState | None:
    """The state in which a phantom scan finds the series of its key; None when it is the first of its key."""
    limits = limits or CommissioningLimits()
    for series in all_series(session, limits):
        earlier = tuple(c for c in series.calibrations if c.acquired < calibration.acquired)
        if series.key == calibration.key and earlier:
            return key_state(replace(series, calibrations=earlier), calibration.acquired, limits)
    return None


def history(session: Session, key: CalibrationKey) -> tuple[Calibration, ...]:
    """Every scan of a key that no newer measurement of the same series supersedes, in order of acquisition."""
    rows = session.scalars(
        select(CalibrationRow)
        .where(CalibrationRow.key_json == key_text(key), CalibrationRow.superseded_by.is_(None))
        .order_by(CalibrationRow.acquired_at)
    )
    return tuple(_CALIBRATION.validate_json(row.payload_json) for row in rows)


def all_keys(session: Session) -> tuple[CalibrationKey, ...]:
    texts = session.scalars(select(CalibrationRow.key_json).distinct().order_by(CalibrationRow.key_json))
    return tuple(TypeAdapter(CalibrationKey).validate_json(text) for text in texts)


def all_series(session: Session, limits: CommissioningLimits | None = None) -> tuple[CalibrationSeries, ...]:
    """Every key's scans with its epochs and declarations."""
    series = [_series(session, key) for key in all_keys(session)]
    limits = limits or CommissioningLimits()
    return tuple(replace(s, served_before=_served_before(s, series, limits)) for s in series)


def choose(session: Session, header: SeriesHeader, limits: ChoiceLimits | None = None) -> ChosenCalibration:
    """The calibration that a patient scan with this header may use.

    Raises
    ------
    NoValidCalibrationError : none, with the code that says why
    """
    limits = limits or ChoiceLimits()
    return choose_calibration(header, all_series(session, limits.commissioning), limits)


def key_states(session: Session, now: datetime, limits: CommissioningLimits | None = None) -> tuple[KeyState, ...]:
    """One line per key for `qct-node calibrations`."""
    return tuple(key_state(series, now, limits) for series in all_series(session, limits))


def epochs_of(session: Session, device_serial_number: str) -> tuple[tuple[datetime, str], ...]:
    """(start, reason) of the declared epochs of a scanner."""
    rows = session.scalars(
        select(EpochRow).where(EpochRow.device_serial_number == device_serial_number).order_by(EpochRow.starts_at)
    )
    return tuple((row.starts_at, row.reason) for row in rows)


def hold_list(session: Session) -> list[StudyResult]:
    """Reports made since the last good phantom scan of a series whose latest scan failed."""
    return held_results(session)


def key_text(key: CalibrationKey) -> str:
    """The key as it stands in the database: JSON with sorted names."""
    return json.dumps(asdict(key), sort_keys=True)


def describe_key(key: CalibrationKey) -> str:
    """The key for people."""
    return (
        f"{key.manufacturer} {key.manufacturer_model_name} {key.device_serial_number}, "
        f"software {key.software_epoch or '-'}, {key.kvp:g} kV, filter {key.filter_type}, "
        f"kernel {key.convolution_kernel}, phantom {key.phantom_serial} {key.setup}"
    )


def _series(session: Session, key: CalibrationKey) -> CalibrationSeries:
    starts = tuple(start for start, _ in epochs_of(session, key.device_serial_number))
    declared = session.scalars(select(CommissioningRow.declared_at).where(CommissioningRow.key_json == key_text(key)))
    return CalibrationSeries(key, history(session, key), starts, tuple(declared))


def _served_before(one: CalibrationSeries, every: list[CalibrationSeries], limits: CommissioningLimits) -> bool:
    """Was the same scanner and protocol in service with earlier software?"""
    first = min(c.acquired for c in one.calibrations)
    return any(
        other.key != one.key
        and _without_epoch(other.key) == _without_epoch(one.key)
        and other.calibrations[0].acquired < first
        and not commissioning_gap(other, other.calibrations[-1].acquired, limits)
        for other in every
    )


def _without_epoch(key: CalibrationKey) -> tuple[object, ...]:
    return tuple(value for name, value in asdict(key).items() if name != "software_epoch")


def _last_accepted_before(series: CalibrationSeries, at: datetime) -> Calibration | None:
    return next((c for c in reversed(series.in_epoch(at)) if c.accepted and c.acquired < at), None)


def _insert(session: Session, calibration: Calibration, now: datetime) -> None:
    session.add(_row(calibration, now))
    session.flush()
    session.execute(
        update(CalibrationRow)
        .where(
            CalibrationRow.series_instance_uid == calibration.series_instance_uid,
            CalibrationRow.id != calibration.id,
            CalibrationRow.superseded_by.is_(None),
        )
        .values(superseded_by=calibration.id)
    )


def _row(calibration: Calibration, now: datetime) -> CalibrationRow:
    line = calibration.line
    return CalibrationRow(
        id=calibration.id,
        series_instance_uid=calibration.series_instance_uid,
        key_json=key_text(calibration.key),
        device_serial_number=calibration.key.device_serial_number,
        phantom_serial=calibration.phantom_serial,
        acquired_at=calibration.acquired,
        saved_at=now,
        accepted=calibration.accepted,
        sigma_ref=line.sigma_ref,
        beta_ref=line.beta_ref,
        sigma_ct_hu_per_mg_cm3=line.sigma_ct,
        beta_ct_hu=line.beta_ct,
        r2=line.r2,
        see_hu=line.see_hu,
        software_version=calibration.software_version,
        payload_json=_CALIBRATION.dump_json(calibration).decode(),
        rods=[
            CalibrationRodRow(
                position=i,
                name=r.name,
                hu=r.hu,
                sd_hu=r.sd_hu,
                n_voxels=r.n_voxels,
                standard_error_hu=r.standard_error_hu,
            )
            for i, r in enumerate(calibration.measurement.rods)
        ],
        gates=[
            CalibrationGateRow(position=i, name=g.name, value=g.value, low=g.low, high=g.high, passed=g.passed)
            for i, g in enumerate(calibration.gates)
        ],
        reasons=[CalibrationReasonRow(position=i, code=r.code, text=r.text) for i, r in enumerate(calibration.reasons)],
    )


def _hold(session: Session, last_good: Calibration, failed: Calibration) -> None:
    codes = ", ".join(sorted({r.code for r in failed.reasons}))
    text = f"phantom scan of {failed.acquired:%Y-%m-%d} failed ({codes}); last good one {last_good.acquired:%Y-%m-%d}"
    hold_results(session, [r.id for r in results_using(session, [last_good.id])], text)


def _settle(session: Session, before: Calibration, after: Calibration, limits: ChoiceLimits) -> tuple[str, ...]:
    """Reports of the week become final; those whose BMD moves too far are named for a new analysis."""
    week = [r for r in provisional_results(session) if before.id in r.calibration_ids]
    released = [r.id for r in held_results(session) if before.id in r.calibration_ids]
    release_results(session, released)
    amended = [r for r in week if _moves(r, before, after, limits)]
    settled = [r.id for r in week if r not in amended]
    session.execute(update(StudyResultRow).where(StudyResultRow.id.in_(settled)).values(provisional=False))
    return tuple(r.study_instance_uid for r in amended)


def _moves(result: StudyResult, before: Calibration, after: Calibration, limits: ChoiceLimits) -> bool:
    report = json.loads(result.report_json)
    age_days = (report.get("calibration") or {}).get("age_days", 0.0)
    span = (after.acquired - before.acquired) / timedelta(days=1)
    weight = min(max(age_days / span, 0.0), 1.0) if span > 0 else 0.0
    final = interpolated(before.line, after.line, weight)
    values = [v["bmd_mg_cm3"] for v in report.get("vertebrae") or ()]
    return any(must_amend(before.line, final, bmd, limits) for bmd in values)
