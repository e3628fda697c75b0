"""Control charts: rules that stop, that ask for a repeat, that notify; average run lengths as published."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.qc import QcAction, QcLimits, check_qc, cusum, equivalent_bmd
from analysis.qc_charts import scan_chart, series_charts
from tests.phantom_builders import BETA_REF, MONDAY, SIGMA_REF, calibration, quiet_weeks

LIMITS = QcLimits()


def rules(report: object) -> set[str]:
    return {violation.rule for chart in report.charts for violation in chart.violations}  # type: ignore[attr-defined]


def test_a_scanner_in_control_passes() -> None:
    report = check_qc(quiet_weeks(20))
    assert report.passed, report.reasons
    assert [chart.quantity for chart in report.charts] == [
        "BMD at 80", "BMD at 120", "beta_CT", "rod A", "rod B", "rod C", "rod D", "rod E", "SEE", "noise",
    ]  # fmt: skip


def test_the_baseline_is_the_first_ten_scans_and_is_not_judged() -> None:
    series = (*quiet_weeks(9), calibration(9, SIGMA_REF * 1.05))
    assert check_qc(series).action is QcAction.NONE


def test_a_jump_of_three_percent_stops_the_series() -> None:
    report = check_qc((*quiet_weeks(12), calibration(12, SIGMA_REF * 1.03)))
    assert report.action is QcAction.STOP
    assert "1-3s" in rules(report)
    assert {r.code for r in report.reasons} >= {"QC_STOP"}


def test_a_small_lasting_shift_that_no_single_scan_shows_is_stopped_by_cusum() -> None:
    quiet = QcLimits(sd_floor_bmd_mg_cm3=0.1, sd_floor_hu=0.1)
    base = tuple(calibration(i, beta_ref=BETA_REF + (0.5 if i % 2 else -0.5)) for i in range(10))
    for n in range(1, 12):
        series = (*base, *(calibration(10 + i, beta_ref=BETA_REF + 0.9) for i in range(n)))
        report = check_qc(series, quiet)
        if report.action is QcAction.STOP:
            break
    assert "CUSUM" in rules(report) and "1-3s" not in rules(report)
    assert 3 < n < 11


def test_two_scans_beyond_two_sd_ask_for_a_repeat() -> None:
    base = tuple(calibration(i, beta_ref=BETA_REF + (1.0 if i % 2 else -1.0)) for i in range(10))
    one = calibration(10, beta_ref=BETA_REF + 2.4)
    two = calibration(11, beta_ref=BETA_REF + 2.4)
    assert check_qc((*base, one)).passed
    report = check_qc((*base, one, two))
    assert report.action is QcAction.REPEAT and "2-2s" in rules(report)
    assert "QC_REPEAT" in {r.code for r in report.reasons}
    other_side = calibration(11, beta_ref=BETA_REF - 2.4)
    assert "R-4s" in rules(check_qc((*base, one, other_side)))


def test_a_drift_of_three_percent_a_year_tells_the_physicist() -> None:
    noisy = QcLimits(sd_floor_bmd_mg_cm3=30.0, sd_floor_hu=60.0)  # so wide that only the trend speaks
    series = tuple(calibration(i, SIGMA_REF * (1 - 0.03 * i / 52)) for i in range(30))
    report = check_qc(series, noisy)
    assert report.action is QcAction.NOTIFY and {r.code for r in report.reasons} == {"QC_TREND"}
    assert report.charts[0].trend_per_year == pytest.approx(0.03, rel=0.25)  # steeper line, lower reading, and back


def test_more_noise_alone_asks_for_a_repeat_and_does_not_stop() -> None:
    one = calibration(12)
    noisy = tuple(replace(rod, sd_hu=20.0) for rod in one.measurement.rods)
    report = check_qc((*quiet_weeks(12), replace(one, measurement=replace(one.measurement, rods=noisy))))
    assert report.action is QcAction.REPEAT


def test_rejected_scans_stay_off_the_charts() -> None:
    bad = replace(calibration(12, SIGMA_REF * 1.2), accepted=False)
    series = (*quiet_weeks(12), bad, calibration(13))
    assert len(check_qc(series).charts[0].values) == 13


def test_the_equivalent_of_80_on_its_own_line_is_80() -> None:
    one = calibration()
    assert equivalent_bmd(one, (one.line.sigma_ct, one.line.beta_ct), 80.0) == pytest.approx(80.0)


@pytest.mark.parametrize(("shift_sd", "weeks"), [(1.0, 10.5), (2.0, 4.0)])
def test_cusum_finds_a_shift_after_the_published_number_of_weeks(shift_sd: float, weeks: float) -> None:
    """Average run length of k 0.5, h 5: 10.5 weeks for one SD, 4.0 for two (one-sided table: Montgomery)."""
    rng = np.random.default_rng(5)
    lengths = []
    for _ in range(400):
        high, low = cusum(np.concatenate([np.zeros(10), rng.normal(shift_sd, 1.0, 120)]), LIMITS)
        beyond = np.flatnonzero(np.maximum(high, low)[10:] > LIMITS.cusum_h)
        lengths.append(beyond[0] + 1)
    assert np.mean(lengths) == pytest.approx(weeks, rel=0.1)


def test_charts_are_png_pictures() -> None:
    series = (*quiet_weeks(14), replace(calibration(14, SIGMA_REF * 1.1), accepted=False), calibration(15))
    epoch = series[13].acquired
    for picture in (scan_chart(series[3]), scan_chart(series[-1], series), series_charts(series, (epoch, MONDAY))):
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
