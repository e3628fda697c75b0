"""Pictures of the calibration: one scan's line, and a series' Levey-Jennings and CUSUM charts, as PNG bytes.

Drawn with matplotlib's object interface on the Agg canvas: no global state, no display.
"""

from collections.abc import Sequence
from datetime import datetime
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from analysis.phantom_types import PHANTOM_TYPES
from analysis.qc import Chart, QcLimits, check_qc
from analysis.results import Calibration

BLUE, RED, GREY, GREEN, ORANGE = "#1f4e9c", "#c0392b", "#8a8f98", "#2e7d4f", "#c77700"
DPI = 110


def scan_chart(calibration: Calibration, history: Sequence[Calibration] = (), limits: QcLimits | None = None) -> bytes:
    """One phantom scan: rods about their line, and its place in the series when there is one. PNG."""
    earlier = [c for c in history if c.id != calibration.id and c.acquired <= calibration.acquired]
    figure = Figure(figsize=(10.5, 4.4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_residuals(left, calibration)
    if earlier:
        _draw_series(right, [*earlier, calibration], limits or QcLimits())
    else:
        _draw_gates(right, calibration)
    verdict = "accepted" if calibration.accepted else "NOT accepted: " + ", ".join(r.code for r in calibration.reasons)
    figure.suptitle(
        f"{calibration.phantom_type} {calibration.phantom_serial}, {calibration.acquired:%Y-%m-%d %H:%M} UTC, "
        f"{calibration.key.kvp:g} kV: {verdict}",
        fontsize=11,
        color=GREEN if calibration.accepted else RED,
    )
    return _png(figure)


def series_charts(
    history: Sequence[Calibration], epochs: Sequence[datetime] = (), limits: QcLimits | None = None
) -> bytes:
    """Levey-Jennings and CUSUM charts of every charted quantity, with limits, rejected scans and epochs. PNG."""
    limits = limits or QcLimits()
    last_epoch = max((e for e in epochs if history and e <= history[-1].acquired), default=None)
    report = check_qc([c for c in history if last_epoch is None or c.acquired >= last_epoch], limits)
    before = [c for c in history if last_epoch is not None and c.acquired < last_epoch and c.accepted]
    figure = Figure(figsize=(13, 2.5 * max(len(report.charts), 1)), dpi=DPI, layout="constrained")
    axes = figure.subplots(max(len(report.charts), 1), 2, squeeze=False, width_ratios=[2, 1])
    earlier = check_qc(before, limits).charts if before else ()
    for (left, right), chart in zip(axes, report.charts, strict=False):
        previous = next((c for c in earlier if c.quantity == chart.quantity), None)
        draw_levey_jennings(left, chart, previous)
        _mark(left, [c.acquired for c in history if not c.accepted], epochs)
        draw_cusum(right, chart, limits)
    if history:
        key = history[-1].key
        figure.suptitle(
            f"{key.manufacturer} {key.manufacturer_model_name} {key.device_serial_number}, {key.kvp:g} kV, "
            f"kernel {key.convolution_kernel}, phantom {key.phantom_serial} {key.setup}", fontsize=11
        )  # fmt: skip
    return _png(figure)


def draw_levey_jennings(axes: Axes, chart: Chart, previous: Chart | None = None) -> None:
    """Values against time with the baseline and its 2 and 3 SD limits; an earlier epoch's values in grey."""
    mean, sd = chart.baseline.mean, chart.baseline.sd
    axes.axhspan(mean - 2 * sd, mean + 2 * sd, color=GREEN, alpha=0.10, lw=0)
    axes.axhline(mean, color=GREEN, lw=1)
    for factor in (-3, 3):
        axes.axhline(mean + factor * sd, color=RED, lw=0.9, ls="--")
    if previous is not None:
        axes.plot(_dates(previous.acquired), previous.values, "o-", color=GREY, ms=3, lw=0.7)
    axes.plot(_dates(chart.acquired), chart.values, "o-", color=BLUE, ms=3.5, lw=0.9)
    beyond = np.abs(chart.z) > 3
    axes.plot(_dates(chart.acquired)[beyond], chart.values[beyond], "o", color=RED, ms=5)
    axes.set_ylabel(f"{chart.quantity}\n{chart.unit}", fontsize=8)
    _date_axis(axes)


def draw_cusum(axes: Axes, chart: Chart, limits: QcLimits) -> None:
    """Upper and lower one-sided sums in SD with the decision limit."""
    dates = _dates(chart.acquired)
    axes.plot(dates, chart.cusum_high, color=BLUE, lw=1, label="up")
    axes.plot(dates, -chart.cusum_low, color=ORANGE, lw=1, label="down")
    for side in (-1, 1):
        axes.axhline(side * limits.cusum_h, color=RED, lw=0.9, ls="--")
    reach = 1.2 * max(limits.cusum_h, float(chart.cusum_high.max(initial=0)), float(chart.cusum_low.max(initial=0)))
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("CUSUM, SD", fontsize=8)
    axes.legend(fontsize=7, loc="upper left", ncols=2, frameon=False)
    _date_axis(axes)


def _mark(axes: Axes, rejected: Sequence[datetime], epochs: Sequence[datetime]) -> None:
    for when in epochs:
        axes.axvline(_dates([when])[0], color=ORANGE, lw=1.2, ls="-.")
        axes.annotate(
            "epoch", (_dates([when])[0], 0.97), xycoords=("data", "axes fraction"), fontsize=7, color=ORANGE, va="top"
        )
    if rejected:
        low = axes.get_ylim()[0]
        axes.plot(_dates(rejected), np.full(len(rejected), low), "x", color=RED, ms=7, mew=1.6, clip_on=False, zorder=5)


def _dates(moments: Sequence[datetime]) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
    return np.array([m.replace(tzinfo=None) for m in moments], dtype="datetime64[s]")


def _date_axis(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, lw=0.5)


def _draw_residuals(axes: Axes, calibration: Calibration) -> None:
    line, rods = calibration.line, calibration.measurement.rods
    certified = PHANTOM_TYPES.get(calibration.phantom_type)
    densities = [r.density_mg_cm3 for r in certified.rods] if certified and len(certified.rods) == len(rods) else None
    x = np.array(densities if densities else range(len(rods)), float)
    axes.axhspan(-3, 3, color=GREEN, alpha=0.10, lw=0)
    axes.axhline(0, color=GREY, lw=1)
    axes.errorbar(
        x, line.residuals_hu, yerr=[2 * r.standard_error_hu for r in rods], fmt="o", color=BLUE, ms=5, capsize=3
    )
    for rod, at, residual in zip(rods, x, line.residuals_hu, strict=True):
        axes.annotate(
            f"{rod.name} {rod.hu:.0f} HU", (at, residual), xytext=(5, 6), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel(f"{line.material} mg/cm3" if densities else "rod", fontsize=9)
    axes.set_ylabel("rod less line, HU", fontsize=9)
    axes.set_title(
        f"sigma_CT {line.sigma_ct:.4f} HU per mg/cm3, beta_CT {line.beta_ct:.1f} HU, SEE {line.see_hu:.1f} HU",
        fontsize=9,
    )
    axes.margins(x=0.15, y=0.25)
    axes.grid(alpha=0.25, lw=0.5)


def _draw_gates(axes: Axes, calibration: Calibration) -> None:
    axes.axis("off")
    axes.set_title("acceptance gates", fontsize=9)
    step = 1.0 / (len(calibration.gates) + 1)
    for index, gate in enumerate(calibration.gates):
        bounds = " to ".join(f"{b:.4g}" for b in (gate.low, gate.high) if b is not None)
        colour = GREEN if gate.passed else RED
        y = 1.0 - (index + 0.7) * step
        axes.text(0.02, y, gate.name.replace("_", " "), fontsize=8, transform=axes.transAxes)
        axes.text(0.62, y, f"{gate.value:.5g}", fontsize=8, color=colour, transform=axes.transAxes)
        axes.text(0.80, y, bounds, fontsize=8, color=GREY, transform=axes.transAxes)


def _draw_series(axes: Axes, series: Sequence[Calibration], limits: QcLimits) -> None:
    accepted = [c for c in series if c.accepted]
    charts = check_qc(accepted, limits).charts
    if charts:
        draw_levey_jennings(axes, charts[0])
    _mark(axes, [c.acquired for c in series if not c.accepted], ())
    axes.set_title(f"{len(accepted)} accepted scans; limits from the first {limits.baseline_scans}", fontsize=9)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
