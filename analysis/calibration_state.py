"""The state of a calibration series: being commissioned, in service, repeat requested or stopped, and what it lacks.

A series holds the phantom scans of one key. An epoch begins with a new software version (another key) or where the
site declares one (tube, service); scans on either side are never compared or interpolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

import numpy as np

from analysis.baseline_gates import judge_by_history
from analysis.qc import QcAction, QcLimits, check_qc
from analysis.refusals import reason
from analysis.results import Calibration, CalibrationKey, Reason


class SeriesState(StrEnum):
    COMMISSIONING = "commissioning"
    IN_SERVICE = "in service"
    REPEAT_REQUESTED = "repeat requested"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class CommissioningLimits:
    """How many accepted scans a key needs before its reports, and when the next one is due."""

    scans: int = 10
    scans_after_epoch: int = 3  # of a key that was in service before the tube or software changed
    agreement_mg_cm3: float = 2.0  # of those scans with each other at the two class limits
    due_days: float = 7.0
    missed_days: float = 8.0


@dataclass(frozen=True, slots=True)
class CalibrationSeries:
    """All measured phantom scans of one key in order of acquisition, rejected ones among them.

    epochs : moments from which earlier scans no longer count
    declarations : when the site declared the key commissioned, each for the epoch it lies in
    for_this_run : the scans given are all there is
    served_before : the same scanner and protocol was in service in an earlier epoch
    """

    key: CalibrationKey
    calibrations: tuple[Calibration, ...]
    epochs: tuple[datetime, ...] = ()
    declarations: tuple[datetime, ...] = ()
    for_this_run: bool = False
    served_before: bool = False

    def epoch_start(self, at: datetime) -> datetime | None:
        return max((e for e in self.epochs if e <= at), default=None)

    def in_epoch(self, at: datetime) -> tuple[Calibration, ...]:
        """The scans of the epoch that `at` lies in."""
        return tuple(c for c in self.calibrations if self.same_epoch(c.acquired, at))

    def same_epoch(self, one: datetime, other: datetime) -> bool:
        return self.epoch_start(one) == self.epoch_start(other)

    def declared_at(self, at: datetime) -> bool:
        """Did the site declare the key commissioned in the epoch that `at` lies in?"""
        return any(self.same_epoch(declared, at) for declared in self.declarations)


@dataclass(frozen=True, slots=True)
class KeyState:
    """What an operator sees of one key."""

    key: CalibrationKey
    state: SeriesState
    accepted_scans: int
    needed_scans: int
    missing: str  # what commissioning waits for; "" when complete
    last_accepted: datetime | None
    last_scan: datetime | None
    age_days: float | None  # of the last accepted scan
    next_due: datetime | None
    missed_week: bool
    reasons: tuple[Reason, ...]


def needed_scans(series: CalibrationSeries, at: datetime, limits: CommissioningLimits) -> int:
    """Accepted scans that the epoch at `at` needs; one when the site declared the key or gave scans for one run."""
    if series.declared_at(at) or series.for_this_run:
        return 1
    served = series.served_before or _served_in_earlier_epoch(series, at, limits)
    return min(limits.scans, limits.scans_after_epoch) if served else limits.scans


def _served_in_earlier_epoch(series: CalibrationSeries, at: datetime, limits: CommissioningLimits) -> bool:
    start = series.epoch_start(at)
    if start is None:
        return False
    before = start - timedelta(microseconds=1)
    return not commissioning_gap(series, before, limits) or _served_in_earlier_epoch(series, before, limits)


def commissioning_gap(series: CalibrationSeries, at: datetime, limits: CommissioningLimits) -> str:
    """What the series still lacks to be in service; "" when nothing."""
    accepted = [c for c in series.in_epoch(at) if c.accepted]
    needed = needed_scans(series, at, limits)
    if len(accepted) < needed:
        return f"{needed - len(accepted)} more accepted phantom scans ({len(accepted)} of {needed})"
    if not 1 < needed < limits.scans:
        return ""
    windows = [accepted[i : i + needed] for i in range(len(accepted) - needed + 1)]
    spread = min(largest_disagreement_mg_cm3(window) for window in windows)
    if spread > limits.agreement_mg_cm3:
        return f"{needed} scans in a row within {limits.agreement_mg_cm3:.1f} mg/cm3; they differ by {spread:.1f}"
    return ""


def largest_disagreement_mg_cm3(calibrations: Sequence[Calibration]) -> float:
    """Largest difference between scans of what they read at 80 and 120 mg/cm3 of the first one's line."""
    if len(calibrations) < 2:
        return 0.0
    first = calibrations[0].line
    readings = [
        [c.line.to_bmd_mg_cm3(first.sigma_ct * level + first.beta_ct) for level in (80.0, 120.0)] for c in calibrations
    ]
    return float(np.ptp(readings, axis=0).max())


def state_at(
    series: CalibrationSeries, at: datetime, limits: CommissioningLimits
) -> tuple[SeriesState, tuple[Reason, ...]]:
    """The state that the scans up to `at` leave the series in, with the reasons of the last one."""
    before = [c for c in series.in_epoch(at) if c.acquired <= at]
    last = before[-1] if before else None
    if last is not None and not last.accepted:
        stopped = any(r.code == "QC_STOP" for r in last.reasons)
        return (SeriesState.STOPPED if stopped else SeriesState.REPEAT_REQUESTED), last.reasons
    gap = commissioning_gap(series, at, limits)
    if gap:
        return SeriesState.COMMISSIONING, (reason("CALIBRATION_COMMISSIONING", f"waits for {gap}"),)
    repeat = [r for r in last.reasons if r.code == "QC_REPEAT"] if last else []
    return (SeriesState.REPEAT_REQUESTED if repeat else SeriesState.IN_SERVICE), tuple(last.reasons if last else ())


def key_state(series: CalibrationSeries, now: datetime, limits: CommissioningLimits | None = None) -> KeyState:
    """The line of `qct-node calibrations` for one key."""
    limits = limits or CommissioningLimits()
    scans = series.in_epoch(now)
    accepted = [c for c in scans if c.accepted]
    last = accepted[-1].acquired if accepted else None
    age = (now - last).total_seconds() / 86400.0 if last else None
    missed = age is not None and age >= limits.missed_days
    state, reasons = state_at(series, now, limits)
    if missed:
        text = f"last accepted phantom scan {age:.0f} days ago, one is due every {limits.due_days:.0f} days"
        reasons = (*reasons, reason("QC_MISSED_WEEK", text))
    return KeyState(
        key=series.key,
        state=state,
        accepted_scans=len(accepted),
        needed_scans=needed_scans(series, now, limits),
        missing=commissioning_gap(series, now, limits),
        last_accepted=last,
        last_scan=scans[-1].acquired if scans else None,
        age_days=age,
        next_due=last + timedelta(days=limits.due_days) if last else None,
        missed_week=missed,
        reasons=reasons,
    )


def judged(
    new: Calibration,
    series: CalibrationSeries,
    limits: QcLimits | None = None,
    commissioning: CommissioningLimits | None = None,
) -> Calibration:
    """The new scan with the verdict of its key's history.

    A failed gate or a stop of the control charts rejects it; a repeat, a trend or a move stays a finding. The charts
    judge every scan that its own gates accepted, so that a jump both fails its gate and stops the series.
    """
    before = replace(series, calibrations=tuple(c for c in series.calibrations if c.acquired < new.acquired))
    earlier = before.in_epoch(new.acquired)
    in_service = not commissioning_gap(before, new.acquired, commissioning or CommissioningLimits())
    history = judge_by_history(new, earlier, in_service, limits)
    charts = check_qc([*earlier, new], limits) if new.accepted else None
    stopped = charts is not None and charts.action is QcAction.STOP
    found = (*history.reasons, *history.findings, *(charts.reasons if charts else ()))
    return replace(
        new,
        gates=(*new.gates, *history.gates),
        accepted=new.accepted and not history.reasons and not stopped,
        reasons=(*new.reasons, *found),
    )
