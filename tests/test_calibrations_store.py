"""The store of calibrations: what is kept, what supersedes what, holds, amendments, declarations, the registry."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from analysis.calibration_state import CommissioningLimits, SeriesState
from analysis.errors import NoValidCalibrationError, PhantomUnusableError
from analysis.phantom_types import phantom_spec
from analysis.results import Reason, RodSpec
from storage import calibrations as store
from storage.calibration_declarations import NewEpoch, declarations, declare_commissioned, declare_epoch
from storage.calibration_tables import CalibrationGateRow, CalibrationRodRow, CalibrationRow
from storage.phantom_registry import failed_scans, phantom_for, register_phantom, save_failed_scan
from storage.study_results import StudyOutcome, current_result, save_outcome
from tests.phantom_builders import MODEL_3, MONDAY, SIGMA_REF, calibration, header, quiet_weeks

NOW = MONDAY + timedelta(weeks=60)


def reported(session: Session, study: str, calibration_id: str, age_days: float = 3.0, bmd: float = 100.0) -> None:
    """A provisional patient result that rests on a calibration."""
    report = {"calibration": {"age_days": age_days}, "vertebrae": [{"bmd_mg_cm3": bmd}, {"bmd_mg_cm3": bmd + 4}]}
    outcome = StudyOutcome(
        study,
        1,
        "PATIENT",
        "reported",
        report_json=json.dumps(report),
        calibration_ids=(calibration_id,),
        provisional=True,
    )
    save_outcome(session, outcome, NOW)


def test_a_calibration_comes_back_as_it_was_saved_with_its_rods_and_gates_in_tables(session: Session) -> None:
    one = calibration()
    assert store.save_calibration(session, one, NOW) == ()
    assert store.history(session, one.key) == (one,)
    assert session.query(CalibrationRodRow).count() == 5
    assert session.query(CalibrationGateRow).count() == len(one.gates)


def test_saving_the_same_scan_twice_keeps_one_row(session: Session) -> None:
    one = calibration()
    store.save_calibration(session, one, NOW)
    store.save_calibration(session, one, NOW + timedelta(hours=1))
    assert session.query(CalibrationRow).count() == 1


def test_a_newer_softwares_measurement_of_the_same_series_supersedes_and_the_old_row_stays(session: Session) -> None:
    one = calibration()
    newer = replace(one, id="measured-again", software_version="9.9")
    store.save_calibration(session, one, NOW)
    store.save_calibration(session, newer, NOW)
    assert store.history(session, one.key) == (newer,)
    assert session.get(CalibrationRow, one.id).superseded_by == "measured-again"  # type: ignore[union-attr]


def test_a_rejected_scan_is_stored_with_its_reasons(session: Session) -> None:
    bad = calibration(rod_errors_hu=(2.0, -2.5, 30.0, 3.0, -1.0))
    store.save_calibration(session, bad, NOW)
    (kept,) = store.history(session, bad.key)
    assert not kept.accepted and kept.reasons == bad.reasons


def test_a_scan_off_the_charts_is_stored_as_stopped_and_puts_the_weeks_reports_on_hold(session: Session) -> None:
    good = quiet_weeks(12)
    for one in good:
        store.save_calibration(session, one, NOW)
    reported(session, "1.2.3", good[-1].id)
    off = calibration(12, SIGMA_REF * 1.06)
    assert store.judge(session, off).accepted is False
    store.save_calibration(session, off, NOW)
    (state,) = store.key_states(session, off.acquired)
    assert state.state is SeriesState.STOPPED
    (held,) = store.hold_list(session)
    assert held.study_instance_uid == "1.2.3" and "QC_STOP" in (held.hold_reason or "")
    with pytest.raises(NoValidCalibrationError) as caught:
        store.choose(session, header(12.3))
    assert caught.value.code == "CALIBRATION_STOPPED"


def test_a_good_repeat_after_the_bad_scan_takes_the_reports_off_the_hold_list(session: Session) -> None:
    good = quiet_weeks(12)
    for one in (*good, calibration(12, SIGMA_REF * 1.06)):
        store.save_calibration(session, one, NOW)
    reported(session, "1.2.3", good[-1].id)
    store.save_calibration(session, calibration(12.01), NOW)
    assert store.hold_list(session) == []
    assert store.choose(session, header(12.3)).calibration.acquired == calibration(12.01).acquired


def test_the_next_scan_makes_a_report_final_or_asks_for_an_amendment(session: Session) -> None:
    scans = [calibration(0), calibration(1, SIGMA_REF * 1.005), calibration(2, SIGMA_REF * 1.06)]
    store.save_calibration(session, scans[0], NOW)
    reported(session, "1.2.3", scans[0].id)
    assert store.save_calibration(session, scans[1], NOW) == ()
    first = current_result(session, "1.2.3")
    assert first is not None and not first.provisional
    reported(session, "4.5.6", scans[1].id)
    assert store.save_calibration(session, scans[2], NOW) == ("4.5.6",)


def test_a_site_may_declare_a_key_commissioned_with_a_reason_that_is_kept(session: Session) -> None:
    one = calibration()
    store.save_calibration(session, one, NOW)
    with pytest.raises(NoValidCalibrationError) as caught:
        store.choose(session, header(0.5))
    assert caught.value.code == "CALIBRATION_COMMISSIONING"
    with pytest.raises(ValueError, match="reason"):
        declare_commissioned(session, one.key, " ", "physicist", NOW)
    declare_commissioned(session, one.key, "baseline taken over from the old workstation", "physicist", NOW)
    assert store.choose(session, header(0.5)).calibration == one
    with pytest.raises(ValueError, match="no phantom scan"):
        declare_commissioned(session, replace(one.key, kvp=80.0), "hurry", "physicist", NOW)


def test_new_software_needs_three_scans_where_the_scanner_was_in_service(session: Session) -> None:
    for one in quiet_weeks(10):
        store.save_calibration(session, one, NOW)
    for week in (10, 11, 12):
        store.save_calibration(session, calibration(week, SIGMA_REF * 1.02, software_versions="2.0"), NOW)
    states = {s.key.software_epoch: s for s in store.key_states(session, MONDAY + timedelta(weeks=12.2))}
    assert (states["2.0"].needed_scans, states["2.0"].state) == (3, SeriesState.IN_SERVICE)
    assert states["1.0"].missed_week
    assert store.choose(session, header(10.5)).calibration.key.software_epoch == "1.0"
    assert store.choose(session, header(10.5, software_versions="2.0")).calibration.key.software_epoch == "2.0"


def test_a_declared_epoch_ends_the_use_of_earlier_scans(session: Session) -> None:
    for one in quiet_weeks(10):
        store.save_calibration(session, one, NOW)
    declare_epoch(session, NewEpoch("CT1", MONDAY + timedelta(weeks=9.2), "tube replaced", "engineer"), NOW)
    with pytest.raises(NoValidCalibrationError) as caught:
        store.choose(session, header(9.5))
    assert caught.value.code in {"CALIBRATION_EPOCH", "CALIBRATION_COMMISSIONING"}
    (state,) = store.key_states(session, MONDAY + timedelta(weeks=9.5), CommissioningLimits())
    assert state.needed_scans == 3 and state.accepted_scans == 0


def test_what_the_site_declares_stays_in_the_audit_trail(session: Session) -> None:
    one = calibration()
    store.save_calibration(session, one, NOW)
    declare_commissioned(session, one.key, "baseline of the old workstation", "physicist", NOW)
    start = MONDAY + timedelta(weeks=1)
    declare_epoch(session, NewEpoch("ct1", start, "tube replaced", "engineer"), NOW + timedelta(hours=1))
    first, second = declarations(session)
    assert (first.what, first.reason, first.declared_by, first.declared_at) == (
        "commissioned", "baseline of the old workstation", "physicist", NOW,
    )  # fmt: skip
    assert (second.what, second.about, second.starts_at) == ("new epoch", "scanner CT1", start)
    assert second.declared_at == NOW + timedelta(hours=1)
    for epoch, why in (
        (NewEpoch("CT1", start, " ", "engineer"), "reason"), (NewEpoch("CT1", NOW, "tube", "e"), "later than now"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            declare_epoch(session, epoch, start)


def test_reports_resume_after_three_scans_that_agree_also_where_the_key_had_been_declared(session: Session) -> None:
    """Three scans within 2 mg/cm3 (section 9e); the declaration of the old tube does not count for the new one."""
    for one in quiet_weeks(3):
        store.save_calibration(session, one, NOW)
    declare_commissioned(session, calibration().key, "baseline taken over", "physicist", MONDAY + timedelta(weeks=2.1))
    declare_epoch(session, NewEpoch("CT1", MONDAY + timedelta(weeks=2.5), "tube replaced", "engineer"), NOW)
    new_tube = [calibration(3 + i / 7, SIGMA_REF * s) for i, s in enumerate((1.00, 1.03, 1.028, 1.032))]
    for scan, ready in zip(new_tube, (False, False, False, True), strict=True):
        store.save_calibration(session, scan, NOW)
        (state,) = store.key_states(session, scan.acquired)
        assert (state.state is SeriesState.IN_SERVICE) is ready, state.missing


def test_a_report_whose_phantom_scan_lies_across_a_declared_epoch_goes_on_hold(session: Session) -> None:
    one = calibration()
    store.save_calibration(session, one, NOW)
    reported(session, "1.2.3", one.id, age_days=2.0)
    reported(session, "4.5.6", one.id, age_days=5.0)
    epoch = NewEpoch("CT1", MONDAY + timedelta(days=3), "tube replaced", "engineer")
    assert declare_epoch(session, epoch, NOW) == ("4.5.6",)
    (held,) = store.hold_list(session)
    assert held.study_instance_uid == "4.5.6" and "tube replaced" in (held.hold_reason or "")
    store.save_calibration(session, calibration(1, SIGMA_REF * 1.02), NOW)
    assert [h.study_instance_uid for h in store.hold_list(session)] == ["4.5.6"], "another tube's scan settles nothing"


def test_the_registry_answers_with_the_certificate_of_the_day_and_never_guesses(session: Session) -> None:
    first = replace(MODEL_3, valid_from=MONDAY)
    own = (RodSpec("A", -50.0, 1010.0), *MODEL_3.rods[1:])
    second = phantom_spec("4541A", "Mindways Model 3 CT", own, MONDAY + timedelta(weeks=10))
    for spec in (first, first, second):
        register_phantom(session, spec)
    assert phantom_for(session, "4541A", MONDAY + timedelta(weeks=5)) == first
    assert phantom_for(session, "4541A", MONDAY + timedelta(weeks=11)) == second
    for serial, week in (("4541", 5), ("", 5), ("4541A", -1)):
        with pytest.raises(PhantomUnusableError) as caught:
            phantom_for(session, serial, MONDAY + timedelta(weeks=week))
        assert caught.value.code == "UNKNOWN_PHANTOM_SERIAL"
    with pytest.raises(ValueError, match="later date"):
        register_phantom(session, replace(second, valid_from=MONDAY))


def test_a_scan_that_could_not_be_measured_is_remembered(session: Session) -> None:
    why = Reason("RODS_OUTSIDE_FOV", "2 of 5 rods")
    save_failed_scan(session, header(3), "4541A", why, NOW)
    assert failed_scans(session, NOW - timedelta(days=1)) == ((header(3).series_instance_uid, why),)
