"""Which calibration a patient scan may use: keys, ages, brackets, breaks, soft differences."""

from dataclasses import replace
from datetime import timedelta

import pytest

from analysis.calibration_choice import choose_calibration, must_amend
from analysis.calibration_match import ChoiceLimits, key_differences
from analysis.calibration_state import (
    CalibrationSeries,
    CommissioningLimits,
    SeriesState,
    judged,
    key_state,
    largest_disagreement_mg_cm3,
)
from analysis.errors import NoValidCalibrationError
from analysis.refusals import REASONS
from analysis.results import PhantomSetup, Reason
from tests.phantom_builders import MONDAY, SIGMA_REF, calibration, header, in_service, quiet_weeks

DAY = 1.0 / 7.0


def refusal(
    *series: CalibrationSeries, week: float = 0.5, limits: ChoiceLimits | None = None, **changes: object
) -> str:
    with pytest.raises(NoValidCalibrationError) as caught:
        choose_calibration(header(week, **changes), series, limits)
    assert caught.value.code in REASONS
    return caught.value.code


def rejected(week: float, code: str = "GATE_SEE") -> object:
    return replace(calibration(week), accepted=False, reasons=(Reason(code, "a bad scan"),))


def test_the_nearest_accepted_scan_before_is_used_and_is_provisional() -> None:
    series = in_service(calibration(0), calibration(1, SIGMA_REF * 1.01))
    chosen = choose_calibration(header(1 + 3 * DAY), [series])
    assert chosen.calibration.id == series.calibrations[1].id
    assert chosen.line == series.calibrations[1].line
    assert chosen.age_days == pytest.approx(3.0)
    assert (chosen.state, chosen.provisional, chosen.bracketing_id) == ("normal", True, None)


def test_two_scans_that_bracket_the_patient_give_the_line_between_them() -> None:
    series = in_service(calibration(0, SIGMA_REF), calibration(1, SIGMA_REF * 1.02))
    chosen = choose_calibration(header(0.25), [series])
    assert chosen.interpolation_weight == pytest.approx(0.25)
    first, second = (c.line for c in series.calibrations)
    assert chosen.line.sigma_ref == pytest.approx(0.75 * first.sigma_ref + 0.25 * second.sigma_ref)
    assert chosen.line.beta_ct == pytest.approx(0.75 * first.beta_ct + 0.25 * second.beta_ct)
    assert not chosen.provisional
    assert chosen.bracketing_id == series.calibrations[1].id


@pytest.mark.parametrize(("days", "state"), [(6.9, "normal"), (7.0, "normal"), (7.1, "degraded"), (13.9, "degraded")])
def test_age_decides_between_normal_and_degraded(days: float, state: str) -> None:
    chosen = choose_calibration(header(days * DAY), [in_service(calibration(0))])
    assert chosen.state == state
    assert ("CALIBRATION_AGED" in {f.code for f in chosen.flags}) is (state == "degraded")


def test_a_calibration_older_than_two_weeks_is_refused_and_the_limit_is_configurable() -> None:
    series = in_service(calibration(0))
    assert refusal(series, week=14.1 * DAY) == "CALIBRATION_EXPIRED"
    assert choose_calibration(header(20 * DAY), [series], ChoiceLimits(max_days=30)).state == "degraded"


def test_an_older_calibration_costs_more_uncertainty() -> None:
    terms = [
        {t.name: t.u_mg_cm3 for t in choose_calibration(header(days * DAY), [in_service(calibration(0))]).terms}
        for days in (3, 10)
    ]
    assert terms[1]["drift"] > terms[0]["drift"] > 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kvp": 100.0}, "CALIBRATION_KEY_MISMATCH"),
        ({"convolution_kernel": "BONE"}, "CALIBRATION_KEY_MISMATCH"),
        ({"filter_type": "HEAD FILTER"}, "CALIBRATION_KEY_MISMATCH"),
        ({"data_collection_diameter_mm": 320.0}, "CALIBRATION_KEY_MISMATCH"),
        ({"device_serial_number": "CT2"}, "NO_CALIBRATION"),
        ({"manufacturer_model_name": "Other"}, "NO_CALIBRATION"),
        ({"software_versions": "2.0"}, "CALIBRATION_EPOCH"),
        ({"device_serial_number": None}, "CALIBRATION_KEY_MISSING"),
        ({"kvp": None}, "CALIBRATION_KEY_MISSING"),
        ({"convolution_kernel": None}, "CALIBRATION_KEY_MISSING"),
        ({"acquired": None}, "CALIBRATION_KEY_MISSING"),
    ],
)
def test_the_hard_key_must_match_and_be_complete(change: dict[str, object], code: str) -> None:
    assert refusal(in_service(calibration(0)), **change) == code


def test_without_any_phantom_scan_there_is_no_calibration() -> None:
    assert refusal() == "NO_CALIBRATION"
    assert refusal(in_service(calibration(1)), week=0.5) == "NO_CALIBRATION"


def test_spelling_of_the_kernel_and_of_the_voltage_does_not_matter() -> None:
    one = calibration(0).key
    assert not key_differences(replace(one, kvp=120.3), one)
    assert choose_calibration(header(0.5, convolution_kernel=" standard ", kvp=120.0), [in_service(calibration(0))])


def test_a_filter_that_only_one_side_states_is_used_with_a_flag() -> None:
    chosen = choose_calibration(header(0.5, filter_type=None), [in_service(calibration(0))])
    assert "CALIBRATION_UNKNOWN_SOFT" in {f.code for f in chosen.flags}
    assert "unknown: FilterType" in {t.name for t in chosen.terms}


@pytest.mark.parametrize(
    ("change", "term"),
    [
        ({"reconstruction_diameter_mm": 350.0}, "differs: ReconstructionDiameter"),
        ({"slice_thickness_mm": 5.0}, "differs: SliceThickness"),
        ({"spiral_pitch_factor": 1.37}, "differs: SpiralPitchFactor"),
        ({"date_of_last_calibration": "20260304"}, None),
    ],
)
def test_soft_differences_are_said_and_widen_the_uncertainty(change: dict[str, object], term: str | None) -> None:
    series = in_service(calibration(0, date_of_last_calibration="20260301"))
    plain = choose_calibration(header(0.5), [series])
    chosen = choose_calibration(header(0.5, **change), [series])
    assert len(chosen.flags) == len(plain.flags) + 1
    assert sum(t.u_mg_cm3**2 for t in chosen.terms) > sum(t.u_mg_cm3**2 for t in plain.terms)
    assert term is None or term in {t.name for t in chosen.terms}


def test_the_table_may_stand_20_mm_off_and_further_only_with_a_larger_term() -> None:
    series = in_service(calibration(0))
    near, far = (choose_calibration(header(0.5, table_height_mm=h), [series]) for h in (165.0, 190.0))
    position = [next(t.u_mg_cm3 for t in c.terms if t.name == "position") for c in (near, far)]
    assert position[1] > position[0]
    assert {f.code for f in far.flags} - {f.code for f in near.flags} == {"CALIBRATION_TABLE_HEIGHT"}
    assert refusal(series, table_height_mm=350.0) == "CALIBRATION_TABLE_HEIGHT"


def test_nothing_reaches_across_a_rejected_scan() -> None:
    good, bad, later = calibration(0), rejected(1), calibration(2)
    series = in_service(good, bad, later)  # type: ignore[arg-type]
    before = choose_calibration(header(0.5), [series])
    assert before.provisional and before.bracketing_id is None
    assert "CALIBRATION_REJECTED_SINCE" in {f.code for f in before.flags}
    assert refusal(series, week=1.5) == "CALIBRATION_REJECTED_SINCE"
    assert choose_calibration(header(2.5), [series]).calibration.id == later.id


def test_a_series_that_quality_control_stopped_gives_nothing() -> None:
    series = in_service(calibration(0), rejected(1, "QC_STOP"))  # type: ignore[arg-type]
    assert refusal(series, week=1.5) == "CALIBRATION_STOPPED"


def test_nothing_reaches_across_a_declared_epoch() -> None:
    tube = MONDAY + timedelta(days=3)
    series = in_service(calibration(0), calibration(1, SIGMA_REF * 1.02), epochs=(tube,))
    before = choose_calibration(header(2 * DAY), [series])
    assert before.bracketing_id is None and before.line == series.calibrations[0].line
    assert refusal(series, week=1.2) == "CALIBRATION_COMMISSIONING", "a declaration ends with its epoch"
    again = replace(series, declarations=(*series.declarations, tube + timedelta(days=1)))
    assert refusal(again, week=4 * DAY) == "NO_CALIBRATION"
    assert choose_calibration(header(1.2), [again]).calibration.id == series.calibrations[1].id


def test_an_epoch_of_a_key_that_never_was_in_service_does_not_shorten_its_commissioning() -> None:
    scans = quiet_weeks(8)
    epoch = MONDAY + timedelta(weeks=1.5)
    series = CalibrationSeries(scans[0].key, scans, epochs=(epoch,))
    assert key_state(series, MONDAY + timedelta(weeks=7.1)).needed_scans == 10
    corrected = CalibrationSeries(
        scans[0].key, quiet_weeks(16), epochs=(MONDAY + timedelta(weeks=10.5), MONDAY + timedelta(weeks=10.6))
    )
    assert key_state(corrected, MONDAY + timedelta(weeks=15.1)).needed_scans == 3, "also after an empty epoch"


def test_a_scanner_calibration_between_two_scans_forbids_interpolation() -> None:
    first = calibration(0, date_of_last_calibration="20260301")
    second = calibration(1, date_of_last_calibration="20260305")
    assert choose_calibration(header(0.5), [in_service(first, second)]).bracketing_id is None


def test_a_new_key_needs_ten_scans_unless_the_site_declares_it() -> None:
    scans = quiet_weeks(9)
    series = CalibrationSeries(scans[0].key, scans)
    assert refusal(series, week=8.5) == "CALIBRATION_COMMISSIONING"
    assert choose_calibration(header(8.5), [replace(series, declarations=(scans[0].acquired,))])
    assert choose_calibration(header(8.5), [replace(series, for_this_run=True)]).state == "commissioned for this run"
    ten = quiet_weeks(10)
    assert choose_calibration(header(9.5), [CalibrationSeries(ten[0].key, ten)])


def test_after_a_tube_change_three_scans_that_agree_suffice() -> None:
    scans = (*quiet_weeks(10), *(calibration(w, SIGMA_REF * (1.02 + 0.002 * (w - 11))) for w in (10, 11, 12)))
    epoch = MONDAY + timedelta(weeks=9.5)
    two = CalibrationSeries(scans[0].key, scans[:12], epochs=(epoch,))
    assert refusal(two, week=11.5) == "CALIBRATION_COMMISSIONING"
    assert choose_calibration(header(12.5), [replace(two, calibrations=scans)])
    apart = (*scans[:12], calibration(12, SIGMA_REF * 1.05))
    assert largest_disagreement_mg_cm3(apart[10:]) > 2.0
    assert refusal(replace(two, calibrations=apart), week=12.5) == "CALIBRATION_COMMISSIONING"


def test_scans_given_for_one_run_may_lie_after_the_patient() -> None:
    series = replace(in_service(calibration(1)), for_this_run=True)
    chosen = choose_calibration(header(0.9), [series])
    assert chosen.age_days == pytest.approx(-0.7)


def test_the_preferred_setup_is_chosen_and_the_other_size_is_handed_over() -> None:
    torso = in_service(calibration(0))
    alone = in_service(calibration(0, SIGMA_REF * 1.2, setup=PhantomSetup.ALONE, diameter_mm=105.0))
    chosen = choose_calibration(header(0.5), [alone, torso])
    assert chosen.calibration.key.setup is PhantomSetup.TORSO
    assert [diameter for diameter, _ in chosen.setup_diameters] == [105.0]
    assert choose_calibration(header(0.5), [alone]).calibration.key.setup is PhantomSetup.ALONE


def test_a_report_is_amended_only_when_bmd_moves_by_more_than_the_limit() -> None:
    first = calibration(0).line
    assert not must_amend(first, calibration(1, SIGMA_REF * 1.005).line, 100.0)
    assert must_amend(first, calibration(1, SIGMA_REF * 1.03).line, 100.0)


def test_state_and_due_date_follow_the_scans() -> None:
    scans = quiet_weeks(10)
    series = CalibrationSeries(scans[0].key, scans)
    last = scans[-1].acquired
    fresh = key_state(series, last + timedelta(days=2))
    assert (fresh.state, fresh.missed_week, fresh.missing) == (SeriesState.IN_SERVICE, False, "")
    assert fresh.next_due == last + timedelta(days=7)
    assert not key_state(series, last + timedelta(days=7.9)).missed_week
    late = key_state(series, last + timedelta(days=8))
    assert late.missed_week and "QC_MISSED_WEEK" in {r.code for r in late.reasons}
    young = key_state(replace(series, calibrations=scans[:4]), scans[3].acquired)
    assert young.state is SeriesState.COMMISSIONING and young.missing.startswith("6 more")
    few = key_state(replace(series, calibrations=scans[:4]), scans[3].acquired, CommissioningLimits(scans=4))
    assert few.state is SeriesState.IN_SERVICE


def test_a_scan_that_leaves_the_charts_is_rejected_when_it_is_judged() -> None:
    series = CalibrationSeries(calibration().key, quiet_weeks(12))
    assert judged(calibration(12), series).accepted
    off = judged(calibration(12, SIGMA_REF * 1.05), series)
    assert not off.accepted
    assert {"QC_STOP", "GATE_BASELINE_SIGMA", "GATE_PREVIOUS"} <= {r.code for r in off.reasons}
