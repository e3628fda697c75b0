"""Control charts of a calibration series: Levey-Jennings limits, Westgard rules, CUSUM and trend. Pure arithmetic.

Rules (Westgard et al. 1981, Clin Chem 27:493; one point a week): 1-3s stops, CUSUM with k 0.5 and h 5 stops (average
run length 460 weeks in control, 10.5 for a shift of one SD), 2-2s and R-4s ask for a repeat, a regression slope over
26 weeks beyond the yearly limit and 10x tell the physicist. The baseline is the mean and SD of the first scans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from analysis.refusals import reason
from analysis.results import Calibration, Reason

DAYS_PER_YEAR = 365.25
# Noise follows the dose of the scan: it asks for a repeat, it never stops a series by itself
NOISE = "noise"


class QcAction(StrEnum):
    """What a broken rule asks for, from nothing to stopping the series."""

    NONE = "none"
    NOTIFY = "tell the physicist"
    REPEAT = "repeat the scan"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class QcLimits:
    """Limits of the charts; all set by the site."""

    baseline_scans: int = 10
    cusum_k: float = 0.5  # allowance, in SD
    cusum_h: float = 5.0  # decision limit, in SD
    sd_floor_bmd_mg_cm3: float = 0.4  # a quieter baseline than the method's precision is luck
    sd_floor_hu: float = 0.6
    sd_floor_noise_fraction: float = 0.05  # of the mean noise
    max_trend_per_year: float = 0.01  # of the baseline mean
    trend_days: float = 182.0
    bmd_levels_mg_cm3: tuple[float, float] = (80.0, 120.0)
    # against the baseline and the last accepted scan: `analysis.baseline_gates`
    min_baseline_scans: int = 3  # a key that the site declared commissioned is compared from here on
    max_see_change_hu: float = 3.0
    max_residual_change_hu: float = 3.0  # of any rod
    max_sigma_change: float = 0.04  # fraction of the baseline's sigma_ref
    max_rod_sd_ratio: float = 1.5  # of any rod's SD over its baseline
    warn_previous_mg_cm3: float = 2.0  # move of the reading since the last accepted scan
    stop_previous_mg_cm3: float = 3.0  # three SD of 0.6 to 1 mg/cm3 from week to week


@dataclass(frozen=True, slots=True)
class Baseline:
    mean: float
    sd: float
    n: int


@dataclass(frozen=True, slots=True)
class Violation:
    rule: str  # "1-3s", "2-2s", "R-4s", "CUSUM", "10x", "trend"
    quantity: str
    action: QcAction
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """One quantity over the scans of a series, in order of acquisition.

    z : (n,) distance from the baseline in SD; cusum_high, cusum_low : (n,) one-sided sums in SD
    """

    quantity: str
    unit: str
    acquired: tuple[datetime, ...]
    values: NDArray[np.float64]
    baseline: Baseline
    z: NDArray[np.float64]
    cusum_high: NDArray[np.float64]
    cusum_low: NDArray[np.float64]
    violations: tuple[Violation, ...]  # of the last point
    trend_per_year: float | None  # fraction of the baseline mean; None: too short


@dataclass(frozen=True, slots=True, eq=False)
class QcReport:
    """The charts of one series after its latest scan and the verdict."""

    charts: tuple[Chart, ...]
    action: QcAction
    reasons: tuple[Reason, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return self.action not in (QcAction.STOP, QcAction.REPEAT)


def check_qc(series: Sequence[Calibration], limits: QcLimits | None = None) -> QcReport:
    """Judge the latest scan of a series (one key, one epoch, measured scans in order of acquisition).

    Scans that their own gates rejected stay off the charts. With fewer scans than the baseline needs, or while it is
    being gathered, nothing is judged.
    """
    limits = limits or QcLimits()
    measured = [c for c in series if c.accepted]
    charts = tuple(chart_of(q, measured, limits) for q in _quantities(measured, limits))
    violations = [v for chart in charts for v in chart.violations] if len(measured) > limits.baseline_scans else []
    worst = max((v.action for v in violations), key=list(QcAction).index, default=QcAction.NONE)
    return QcReport(charts, worst, tuple(_reason(v) for v in violations))


_CODES = {QcAction.STOP: "QC_STOP", QcAction.REPEAT: "QC_REPEAT", QcAction.NOTIFY: "QC_TREND"}


def _reason(violation: Violation) -> Reason:
    return reason(_CODES[violation.action], f"{violation.quantity}: {violation.rule}, {violation.text}")


@dataclass(frozen=True, slots=True)
class _Quantity:
    name: str
    unit: str
    values: tuple[float, ...]
    sd_floor: float


def _quantities(series: Sequence[Calibration], limits: QcLimits) -> list[_Quantity]:
    """BMD-equivalents, beta_CT, each rod, SEE and noise of every scan."""
    if not series:
        return []
    reference = _reference_line(series, limits)
    noise = [float(np.median([r.sd_hu for r in c.measurement.rods])) for c in series]
    hu, bmd = limits.sd_floor_hu, limits.sd_floor_bmd_mg_cm3
    quantities = [
        _Quantity(f"BMD at {level:.0f}", "mg/cm3", tuple(equivalent_bmd(c, reference, level) for c in series), bmd)
        for level in limits.bmd_levels_mg_cm3
    ]
    quantities.append(_Quantity("beta_CT", "HU", tuple(c.line.beta_ct for c in series), hu))
    for index, rod in enumerate(series[0].measurement.rods):
        values = tuple(c.measurement.rods[index].hu for c in series)
        quantities.append(_Quantity(f"rod {rod.name}", "HU", values, max(hu, 0.003 * abs(float(np.mean(values))))))
    quantities.append(_Quantity("SEE", "HU", tuple(c.line.see_hu for c in series), hu))
    quantities.append(_Quantity(NOISE, "HU", tuple(noise), limits.sd_floor_noise_fraction * float(np.mean(noise))))
    return quantities


def _reference_line(series: Sequence[Calibration], limits: QcLimits) -> tuple[float, float]:
    """Mean sigma_CT and beta_CT of the baseline scans."""
    first = series[: limits.baseline_scans]
    return float(np.mean([c.line.sigma_ct for c in first])), float(np.mean([c.line.beta_ct for c in first]))


def equivalent_bmd(calibration: Calibration, reference: tuple[float, float], level_mg_cm3: float) -> float:
    """What this scan's line reads for the HU that the reference line (sigma, beta) gives `level_mg_cm3`."""
    return calibration.line.to_bmd_mg_cm3(reference[0] * level_mg_cm3 + reference[1])


def chart_of(quantity: _Quantity, series: Sequence[Calibration], limits: QcLimits) -> Chart:
    """The chart of one quantity with the rules that its last point breaks."""
    values = np.array(quantity.values, float)
    baseline = baseline_of(values, limits.baseline_scans, quantity.sd_floor)
    z = (values - baseline.mean) / baseline.sd
    high, low = cusum(z, limits)
    acquired = tuple(c.acquired for c in series)
    trend = trend_per_year(acquired, values, baseline, limits)
    violations = _violations(quantity, z, (high, low), limits)
    if trend is not None and abs(trend) > limits.max_trend_per_year and quantity.unit == "mg/cm3":
        text = f"{100 * trend:+.1f} % per year, expected within {100 * limits.max_trend_per_year:.1f} %"
        violations.append(Violation("trend", quantity.name, QcAction.NOTIFY, text))
    return Chart(quantity.name, quantity.unit, acquired, values, baseline, z, high, low, tuple(violations), trend)


def baseline_of(values: NDArray[np.float64], n_scans: int, sd_floor: float) -> Baseline:
    first = values[:n_scans]
    sd = float(first.std(ddof=1)) if len(first) > 1 else 0.0
    return Baseline(float(first.mean()), max(sd, sd_floor, 1e-9), len(first))


def cusum(z: NDArray[np.float64], limits: QcLimits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tabular CUSUM (Montgomery): S+ = max(0, S+ + z - k), S- = max(0, S- - z - k); starts after the baseline."""
    high, low = np.zeros(len(z)), np.zeros(len(z))
    for i in range(limits.baseline_scans, len(z)):
        before_high, before_low = (high[i - 1], low[i - 1]) if i else (0.0, 0.0)
        high[i] = max(0.0, before_high + z[i] - limits.cusum_k)
        low[i] = max(0.0, before_low - z[i] - limits.cusum_k)
    return high, low


def trend_per_year(
    acquired: Sequence[datetime], values: NDArray[np.float64], baseline: Baseline, limits: QcLimits
) -> float | None:
    """Regression slope over the last half year as a fraction of the mean per year; None below 8 points or 90 days.

    A slope within two of its standard errors of zero counts as none.
    """
    days = np.array([(a - acquired[-1]).total_seconds() / 86400.0 for a in acquired])
    recent = days >= -limits.trend_days
    x, y = days[recent], values[recent]
    if len(x) < 8 or np.ptp(x) < 90.0 or abs(baseline.mean) < 1e-9:
        return None
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred)))
    return slope * DAYS_PER_YEAR / baseline.mean if abs(slope) > 2 * error else 0.0


def _violations(
    quantity: _Quantity, z: NDArray[np.float64], sums: tuple[NDArray[np.float64], NDArray[np.float64]], limits: QcLimits
) -> list[Violation]:
    """The rules that the last point breaks; points of the baseline do not enter."""
    after = z[limits.baseline_scans :]
    found: list[tuple[str, QcAction, str]] = []
    if not after.size:
        return []
    last = float(after[-1])
    if abs(last) > 3.0:
        found.append(("1-3s", QcAction.STOP, f"{last:+.1f} SD from the baseline, expected within 3"))
    if max(sums[0][-1], sums[1][-1]) > limits.cusum_h:
        text = f"sum {max(sums[0][-1], sums[1][-1]):.1f} SD, expected below {limits.cusum_h:.1f}"
        found.append(("CUSUM", QcAction.STOP, text))
    if after.size >= 2 and min(after[-2:]) > 2.0 or after.size >= 2 and max(after[-2:]) < -2.0:
        found.append(("2-2s", QcAction.REPEAT, "two scans in a row beyond 2 SD on one side"))
    if after.size >= 2 and max(after[-2:]) > 2.0 and min(after[-2:]) < -2.0:
        found.append(("R-4s", QcAction.REPEAT, "two scans in a row beyond 2 SD on either side"))
    if after.size >= 10 and (min(after[-10:]) > 0 or max(after[-10:]) < 0):
        found.append(("10x", QcAction.NOTIFY, "ten scans in a row on one side of the baseline"))
    mildest = QcAction.REPEAT if quantity.name == NOISE else QcAction.STOP
    order = list(QcAction).index
    return [Violation(rule, quantity.name, min(action, mildest, key=order), text) for rule, action, text in found]
