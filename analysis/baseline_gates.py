"""Acceptance gates of a phantom scan that need the history of its key: the unit's baseline and the last accepted scan.

The absolute residuals of a unit are systematic (a published scan of unit 4541A has 5.2 HU about its line), therefore
the change of each rod against its own baseline is judged. The baseline is the mean of the first accepted scans of the
epoch. Until the key is in service nothing is rejected here: a bad first scan must not lock out the good ones.
A scan that moved too far from the last accepted one is to be repeated; a repeat that confirms it is accepted: the last
accepted one was the odd one. A level that is really new is for the baseline and the control charts to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.gates import JudgedGate, gate_of, reasons_of
from analysis.qc import QcLimits, equivalent_bmd
from analysis.refusals import reason
from analysis.results import Calibration, Gate, Reason


@dataclass(frozen=True, slots=True)
class HistoryVerdict:
    """Every gate with its number, the reasons of the failed ones, and findings that reject nothing."""

    gates: tuple[Gate, ...]
    reasons: tuple[Reason, ...]
    findings: tuple[Reason, ...]


def judge_by_history(
    new: Calibration, earlier: Sequence[Calibration], in_service: bool, limits: QcLimits | None = None
) -> HistoryVerdict:
    """Compare a scan with the accepted scans before it.

    Parameters
    ----------
    earlier : scans of the same key and epoch before `new`, in order of acquisition
    in_service : those scans complete the commissioning of the key
    """
    limits = limits or QcLimits()
    accepted = [c for c in earlier if c.accepted]
    judged: tuple[JudgedGate, ...] = ()
    if in_service and len(accepted) >= limits.min_baseline_scans:
        judged += _baseline_gates(new, accepted[: limits.baseline_scans], limits)
    if accepted:
        previous = min(_references(earlier), key=lambda c: max(abs(s) for _, s in _shifts_mg_cm3(new, c, limits)))
        judged += _previous_gates(new, previous, in_service, limits)
    findings = _moved(new, accepted[-1], limits) if accepted else ()
    return HistoryVerdict(tuple(gate for _, gate in judged), reasons_of(judged), findings)


def _references(earlier: Sequence[Calibration]) -> tuple[Calibration, ...]:
    """The last accepted scan, and the very last one where nothing but its distance from that one rejected it."""
    last_accepted = next(c for c in reversed(earlier) if c.accepted)
    failed = {r.code for r in earlier[-1].reasons if r.code.startswith("GATE_") or r.code == "QC_STOP"}
    return (last_accepted, earlier[-1]) if failed == {"GATE_PREVIOUS"} else (last_accepted,)


def _baseline_gates(new: Calibration, baseline: Sequence[Calibration], limits: QcLimits) -> tuple[JudgedGate, ...]:
    """Scatter and rods against the line need more rods than the line has parameters."""
    slope = new.line.sigma_ref / float(np.mean([c.line.sigma_ref for c in baseline])) - 1.0
    sds = _rod_sds_hu([new])[0] / np.maximum(_rod_sds_hu(baseline).mean(axis=0), 1.0)
    bound = limits.max_sigma_change
    gates = (
        gate_of("GATE_BASELINE_SIGMA", "sigma_ref_change", slope, (-bound, bound)),
        gate_of("GATE_BASELINE_SD", "rod_sd_ratio_to_baseline", float(sds.max()), (None, limits.max_rod_sd_ratio)),
    )
    return gates if new.line.degrees_of_freedom == 0 else (*gates, *_scatter_gates(new, baseline, limits))


def _scatter_gates(new: Calibration, baseline: Sequence[Calibration], limits: QcLimits) -> tuple[JudgedGate, ...]:
    see = new.line.see_hu - float(np.mean([c.line.see_hu for c in baseline]))
    change = np.array(new.line.residuals_hu) - np.mean([c.line.residuals_hu for c in baseline], axis=0)
    bound, largest = limits.max_see_change_hu, float(np.abs(change).max())
    return (
        gate_of("GATE_BASELINE_SEE", "see_change_hu", see, (-bound, bound)),
        gate_of("GATE_BASELINE_ROD", "max_residual_change_hu", largest, (None, limits.max_residual_change_hu)),
    )


def _rod_sds_hu(calibrations: Sequence[Calibration]) -> NDArray[np.float64]:
    """Voxel SD of every rod, (scans, rods)."""
    return np.array([[rod.sd_hu for rod in c.measurement.rods] for c in calibrations])


def _shifts_mg_cm3(new: Calibration, previous: Calibration, limits: QcLimits) -> tuple[tuple[float, float], ...]:
    """(level, how far the reading there moved), by the line of the previous scan."""
    line = previous.line.sigma_ct, previous.line.beta_ct
    return tuple((level, equivalent_bmd(new, line, level) - level) for level in limits.bmd_levels_mg_cm3)


def _previous_gates(
    new: Calibration, previous: Calibration, in_service: bool, limits: QcLimits
) -> tuple[JudgedGate, ...]:
    """While the key is being commissioned the number is kept, without a limit."""
    bound = limits.stop_previous_mg_cm3
    bounds = (-bound, bound) if in_service else (None, None)
    return tuple(
        gate_of("GATE_PREVIOUS", f"previous_shift_{level:.0f}_mg_cm3", shift, bounds)
        for level, shift in _shifts_mg_cm3(new, previous, limits)
    )


def _moved(new: Calibration, previous: Calibration, limits: QcLimits) -> tuple[Reason, ...]:
    """The warning below the stop: said, nothing rejected."""
    level, shift = max(_shifts_mg_cm3(new, previous, limits), key=lambda pair: abs(pair[1]))
    if abs(shift) <= limits.warn_previous_mg_cm3:
        return ()
    text = (
        f"reading at {level:.0f} moved by {shift:+.1f} mg/cm3 since the scan of {previous.acquired:%Y-%m-%d}, "
        f"expected within {limits.warn_previous_mg_cm3:.1f}"
    )
    return (reason("QC_PREVIOUS", text),)
