"""Gates against the unit's baseline and the last accepted scan: when they judge, what each of them catches."""

from dataclasses import replace

import pytest

from analysis.baseline_gates import judge_by_history
from analysis.calibration_state import CalibrationSeries, CommissioningLimits, judged
from analysis.qc import QcLimits
from analysis.results import Calibration
from tests.phantom_builders import BETA_REF, ROD_ERRORS_HU, SIGMA_REF, calibration, quiet_weeks

# So wide that the charts judge nothing: only the gates speak
WIDE = QcLimits(
    sd_floor_bmd_mg_cm3=1e3, sd_floor_hu=1e3, sd_floor_noise_fraction=1e3, max_trend_per_year=1e3
)
GATES = {
    "sigma_ref_change", "rod_sd_ratio_to_baseline", "see_change_hu", "max_residual_change_hu",
    "previous_shift_80_mg_cm3", "previous_shift_120_mg_cm3",
}  # fmt: skip


def steady(n: int = 12) -> CalibrationSeries:
    """A scanner that reads the same every week."""
    scans = tuple(calibration(week) for week in range(n))
    return CalibrationSeries(scans[0].key, scans)


def codes(new: Calibration, series: CalibrationSeries | None = None) -> set[str]:
    return {r.code for r in judged(new, series or steady(), WIDE).reasons}


def bent(change_hu: float, rod: int = 2) -> Calibration:
    """Week 12 with one rod moved."""
    errors = list(ROD_ERRORS_HU)
    errors[rod] += change_hu
    return calibration(12, rod_errors_hu=tuple(errors))


def test_every_gate_of_a_good_scan_is_kept_with_its_value_limits_and_verdict() -> None:
    quiet = judged(calibration(12), CalibrationSeries(calibration().key, quiet_weeks(12)))
    kept = {g.name: g for g in quiet.gates}
    assert set(kept) >= GATES and quiet.accepted
    assert all(kept[name].passed and kept[name].high is not None for name in GATES)
    assert kept["sigma_ref_change"].value == pytest.approx(0.0, abs=0.005)
    assert kept["rod_sd_ratio_to_baseline"].value == pytest.approx(1.0)


def test_a_slope_four_percent_off_the_baseline_is_rejected_however_slowly_it_came() -> None:
    """0.8 % a week: no scan moves far from the one before, the baseline sees it."""
    creeping = (*steady().calibrations, *(calibration(12 + i, SIGMA_REF * (1 + 0.008 * (i + 1))) for i in range(4)))
    series = CalibrationSeries(creeping[0].key, creeping)
    assert codes(calibration(16, SIGMA_REF * 1.039), series) == set()
    assert codes(calibration(16, SIGMA_REF * 1.042), series) == {"GATE_BASELINE_SIGMA"}


def test_a_rod_that_changed_is_found_while_the_line_still_passes_its_own_gates() -> None:
    """Moving rod C by d changes its own residual by about 0.8 d; SEE stays below its absolute limit of 8 HU."""
    own = bent(4.5)
    assert own.accepted
    assert "GATE_BASELINE_ROD" in codes(own)
    assert codes(bent(3.0)) == set()


def test_a_scatter_that_grew_is_found_while_it_is_still_below_the_absolute_limit() -> None:
    errors = tuple(2.6 * e for e in ROD_ERRORS_HU)
    own = calibration(12, rod_errors_hu=errors)
    assert own.accepted and own.line.see_hu < 8
    assert "GATE_BASELINE_SEE" in codes(own)


def test_a_rod_twice_as_noisy_as_in_the_baseline_is_rejected() -> None:
    one = calibration(12)
    rods = tuple(replace(rod, sd_hu=18.6 if rod.name == "C" else rod.sd_hu) for rod in one.measurement.rods)
    assert codes(replace(one, measurement=replace(one.measurement, rods=rods))) == {"GATE_BASELINE_SD"}


@pytest.mark.parametrize(("moved_mg", "expected"), [
    (1.9, set()), (2.2, {"QC_PREVIOUS"}), (2.9, {"QC_PREVIOUS"}), (3.1, {"QC_PREVIOUS", "GATE_PREVIOUS"}),
])  # fmt: skip
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_reading_may_move_by_two_and_warns_and_by_three_and_stops(
    moved_mg: float, expected: set[str], sign: int
) -> None:
    """An offset of beta moves the reading at every level by offset / sigma_CT."""
    sigma_ct = SIGMA_REF - 0.2174
    new = calibration(12, beta_ref=BETA_REF + sign * moved_mg * sigma_ct)
    verdict = judged(new, steady(), WIDE)
    assert {r.code for r in verdict.reasons} == expected
    assert verdict.accepted == ("GATE_PREVIOUS" not in expected)


def test_the_move_counts_from_the_last_accepted_scan_not_from_a_rejected_one() -> None:
    off = judged(calibration(12, beta_ref=BETA_REF + 6), steady(), WIDE)
    assert not off.accepted
    series = CalibrationSeries(off.key, (*steady().calibrations, off))
    assert codes(calibration(12.1), series) == set()


def test_a_repeat_that_confirms_the_move_is_accepted_since_the_scan_before_was_the_odd_one() -> None:
    odd = judged(calibration(12, beta_ref=BETA_REF + 3.6), steady(), WIDE)
    assert odd.accepted
    series = CalibrationSeries(odd.key, (*steady().calibrations, odd))
    back = judged(calibration(13, beta_ref=BETA_REF - 0.9), series, WIDE)
    assert {r.code for r in back.reasons} == {"GATE_PREVIOUS", "QC_PREVIOUS"}
    series = replace(series, calibrations=(*series.calibrations, back))
    assert judged(calibration(13.1, beta_ref=BETA_REF - 1.0), series, WIDE).accepted
    assert not judged(calibration(13.1, beta_ref=BETA_REF - 6.0), series, WIDE).accepted


def test_while_a_key_is_commissioned_moves_are_measured_and_said_but_reject_nothing() -> None:
    """Else a bad first scan would lock out all the good ones."""
    first = calibration(0, beta_ref=BETA_REF + 8)
    series = CalibrationSeries(first.key, (first,))
    second = judged(calibration(1), series, WIDE)
    assert second.accepted and {r.code for r in second.reasons} == {"QC_PREVIOUS"}
    (at_80, _) = (g for g in second.gates if g.name.startswith("previous_shift"))
    assert at_80.value == pytest.approx(8 / (SIGMA_REF - 0.2174), rel=1e-3) and at_80.high is None


def test_after_a_new_epoch_the_gates_compare_with_the_scans_of_that_epoch_only() -> None:
    new_tube = tuple(calibration(12 + i, SIGMA_REF * 1.06) for i in range(3))
    scans = (*steady().calibrations, *new_tube)
    series = CalibrationSeries(scans[0].key, scans, epochs=(calibration(11.5).acquired,))
    assert codes(calibration(15, SIGMA_REF * 1.06), series) == set()
    assert {"GATE_BASELINE_SIGMA", "GATE_PREVIOUS"} <= codes(calibration(15), series)
    assert codes(calibration(14.5, SIGMA_REF * 1.06), replace(series, calibrations=scans[:-2])) == set()


def test_a_declared_key_is_compared_with_its_baseline_from_three_scans_on() -> None:
    scans = tuple(calibration(week) for week in range(3))
    for n, expected in ((2, False), (3, True)):
        verdict = judge_by_history(calibration(3), scans[:n], in_service=True)
        assert ("sigma_ref_change" in {g.name for g in verdict.gates}) is expected


def test_a_site_sets_the_limits() -> None:
    loose = replace(WIDE, max_sigma_change=0.2, stop_previous_mg_cm3=20.0, warn_previous_mg_cm3=20.0)
    assert judged(calibration(12, SIGMA_REF * 1.06), steady(), loose).accepted
    fewer = CommissioningLimits(scans=3)
    off = judged(calibration(3, SIGMA_REF * 1.06), steady(3), WIDE, fewer)
    assert not off.accepted and judged(calibration(3, SIGMA_REF * 1.06), steady(3), WIDE).accepted
