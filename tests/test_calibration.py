"""The line through the rods: the published vector, the gates, the uncertainty."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.bmd import line_uncertainty_mg_cm3
from analysis.calibration import (
    CalibrationLimits,
    build_calibration,
    fit_calibration,
    fit_line,
    largest_leave_one_out_shift_mg_cm3,
)
from analysis.calibration_report import calibration_report
from analysis.errors import PhantomUnusableError
from analysis.phantom_types import PHANTOM_TYPES, phantom_spec
from analysis.results import Material, PhantomSetup, RodMeasurement, RodSpec
from analysis.rod_fit import assignment_of, best_assignment
from tests.phantom_builders import GOLDEN, GOLDEN_HU, MODEL_3, SIGMA_REF, calibration, header, measurement, rods_hu

GOLDEN_ARRAY = np.array(GOLDEN_HU)


def codes(fitted: object) -> set[str]:
    return {reason.code for reason in fitted.reasons}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_published_vector_is_reproduced_to_its_last_digit(name: str) -> None:
    line = fit_line(MODEL_3.rods, GOLDEN_ARRAY, Material.K2HPO4)
    assert getattr(line, name) == pytest.approx(GOLDEN[name], abs=1e-8)


def test_the_published_vector_has_the_known_scatter_and_passes_every_gate() -> None:
    fitted = fit_calibration(measurement(GOLDEN_HU), MODEL_3, 120.0)
    assert fitted.line.see_hu == pytest.approx(5.18, abs=0.005)
    assert np.sqrt(fitted.line.covariance[0][0]) == pytest.approx(0.0145, abs=5e-5)
    assert np.sqrt(fitted.line.covariance[1][1]) == pytest.approx(2.71, abs=0.005)
    assert fitted.accepted, fitted.reasons


def test_leaving_out_one_rod_moves_the_published_vector_as_computed_by_hand() -> None:
    line = fit_line(MODEL_3.rods, GOLDEN_ARRAY, Material.K2HPO4)
    shifts = [largest_leave_one_out_shift_mg_cm3(MODEL_3, GOLDEN_ARRAY, line, level) for level in (80.0, 120.0)]
    assert shifts == pytest.approx([1.2, 1.9], abs=0.06)


def test_swapped_rods_a_and_b_are_seen_though_r2_stays_high() -> None:
    swapped = GOLDEN_ARRAY[[1, 0, 2, 3, 4]]
    line = fit_line(MODEL_3.rods, swapped, Material.K2HPO4)
    assert line.r2 > 0.98
    assert line.see_hu == pytest.approx(31.5, abs=0.1)
    assert best_assignment(MODEL_3.rods, swapped).order == (1, 0, 2, 3, 4)
    assert assignment_of((0, 1, 2, 3, 4), MODEL_3.rods, GOLDEN_ARRAY).ratio_to_next == pytest.approx(
        31.5 / 5.18, rel=0.01
    )


def test_hydroxyapatite_phantoms_are_fitted_without_the_water_of_solutions() -> None:
    spec = phantom_spec("BDC-71", "QRM-BDC/3")
    line = fit_line(spec.rods, np.array([1.4 * rod.density_mg_cm3 + 3.0 for rod in spec.rods]), spec.material)
    assert (line.sigma_ct, line.beta_ct) == pytest.approx((1.4, 3.0))
    assert line.material is Material.HA


def test_inverse_prediction_finds_the_density_that_made_the_hu() -> None:
    line = fit_line(MODEL_3.rods, np.array(rods_hu(1.5, -1001.0)), Material.K2HPO4)
    assert line.to_bmd_mg_cm3(line.sigma_ct * 100.0 + line.beta_ct) == pytest.approx(100.0)
    assert line.sigma_ct == pytest.approx(1.5 - 0.2174)


@pytest.mark.parametrize(
    ("kvp", "setup", "sigma_ref", "passes"),
    [
        (120.0, PhantomSetup.TORSO, 1.467, True),
        (120.0, PhantomSetup.TORSO, 2.02, False),  # really 80 kVp behind 30 cm of water
        (80.0, PhantomSetup.TORSO, 2.02, True),
        (80.0, PhantomSetup.TORSO, 1.55, False),  # really 120 kVp
        (120.0, PhantomSetup.ALONE, 1.92, True),  # 120 kVp through the pad alone: less beam hardening
        (120.0, PhantomSetup.TORSO, 1.92, False),
        (110.0, PhantomSetup.TORSO, 1.43, True),  # between two voltages the limits are interpolated
    ],
)
def test_the_slope_must_be_possible_at_the_stated_voltage(
    kvp: float, setup: PhantomSetup, sigma_ref: float, passes: bool
) -> None:
    fitted = fit_calibration(measurement(rods_hu(sigma_ref), setup), MODEL_3, kvp)
    assert ("GATE_SIGMA" not in codes(fitted)) is passes


def test_one_rod_that_reads_15_hu_high_is_measured_but_not_accepted() -> None:
    hu = np.array(rods_hu()) + np.array([0, 0, 15.0, 0, 0])
    fitted = fit_calibration(measurement(hu), MODEL_3, 120.0)
    assert {"GATE_RESIDUAL"} <= codes(fitted)
    assert not fitted.accepted


def test_water_that_reads_40_hu_is_not_accepted() -> None:
    assert codes(fit_calibration(measurement(rods_hu(1.5, -959.0)), MODEL_3, 120.0)) == {"GATE_BETA"}


def test_two_rods_are_accepted_without_fit_diagnostics_and_with_a_stated_uncertainty() -> None:
    """No residual is left: R2 = 1 and SEE = 0 would say nothing, the uncertainty of the line is the stated one."""
    spec = phantom_spec("O-1", "Siemens OSTEO")
    rods = tuple(
        RodMeasurement(rod.name, 1.3 * rod.density_mg_cm3 + 4.0, 12.0, 4000, (0.0, 0.0, 0.0), 0.0, 0.3, 0.005)
        for rod in spec.rods
    )
    fitted = fit_calibration(replace(measurement(GOLDEN_HU), rods=rods), spec, 120.0)
    assert fitted.accepted and codes(fitted) == {"NO_FIT_DIAGNOSTICS"}
    assert not {"r2", "see_hu", "max_residual_hu"} & {gate.name for gate in fitted.gates}
    assert fitted.line.to_bmd_mg_cm3(134.0) == pytest.approx(100.0)
    halfway = line_uncertainty_mg_cm3(fitted.line, 100.0)
    assert halfway == pytest.approx(5.2 / np.sqrt(2) / 1.3), "the mean of two rods of 5.2 HU each"
    swapped = replace(measurement(GOLDEN_HU), rods=(replace(rods[0], name="B"), replace(rods[1], name="A")))
    assert "GATE_SIGMA" in codes(fit_calibration(swapped, spec, 120.0))


def test_noise_counts_by_what_it_does_to_a_reading() -> None:
    """Five rods with 2.8 HU each give 0.96 mg/cm3 at 100 mg/cm3 of a slope of 1.33; the same on a flat slope more."""
    noisy = replace(
        measurement(rods_hu()), rods=tuple(replace(r, standard_error_hu=2.8) for r in measurement(rods_hu()).rods)
    )
    at_80 = next(g for g in fit_calibration(noisy, MODEL_3, 120.0).gates if g.name == "noise_80_mg_cm3")
    draws = np.random.default_rng(1).normal(rods_hu(), 2.8, (4000, 5))
    hu = 80.0 * (SIGMA_REF - 0.2174)
    readings = [fit_line(MODEL_3.rods, d, Material.K2HPO4).to_bmd_mg_cm3(hu) for d in draws]
    assert at_80.value == pytest.approx(np.std(readings), rel=0.05)
    assert at_80.passed


def test_every_gate_carries_its_number_its_limits_and_its_verdict() -> None:
    fitted = fit_calibration(measurement(GOLDEN_HU), MODEL_3, 120.0, CalibrationLimits(max_see_hu=3.0))
    see = next(gate for gate in fitted.gates if gate.name == "see_hu")
    assert (see.low, see.high, see.passed) == (None, 3.0, False)
    assert see.value == pytest.approx(5.18, abs=0.005)
    assert "3" in fitted.reasons[0].text


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"n_voxels": 90}, "GATE_VOXELS"),
        ({"sd_hu": 40.0}, "GATE_ROD_SD"),
        ({"axial_slope_hu_per_mm": 0.3}, "GATE_AXIAL_SLOPE"),
        ({"standard_error_hu": 9.0}, "GATE_STANDARD_ERROR"),
    ],
)
def test_a_badly_measured_rod_fails_its_own_gate(change: dict[str, float], code: str) -> None:
    good = measurement(GOLDEN_HU)
    bad = replace(good, rods=(replace(good.rods[0], **change), *good.rods[1:]))  # type: ignore[arg-type]
    assert codes(fit_calibration(bad, MODEL_3, 120.0)) == {code}


def test_a_measurement_of_other_rods_is_a_fault_of_the_caller() -> None:
    spec = replace(MODEL_3, rods=(*MODEL_3.rods[:4], RodSpec("X", 375.83, 923.2)))
    with pytest.raises(ValueError, match="certificate"):
        fit_calibration(measurement(GOLDEN_HU), spec, 120.0)


def test_a_phantom_scan_without_tube_voltage_cannot_be_filed() -> None:
    with pytest.raises(PhantomUnusableError, match="KVP") as caught:
        build_calibration(header(kvp=None), MODEL_3, measurement(GOLDEN_HU))
    assert caught.value.code == "CALIBRATION_KEY_MISSING"


def test_the_same_series_gives_the_same_calibration_id() -> None:
    assert calibration(3).id == calibration(3).id != calibration(4).id


def test_the_report_holds_what_the_interface_promises() -> None:
    report = calibration_report(calibration())
    promised = {
        "rods",
        "sigma_ref",
        "beta_ref",
        "sigma_ct",
        "beta_ct",
        "r2",
        "see_hu",
        "covariance",
        "gates",
        "accepted",
        "reasons",
    }
    assert promised <= set(report)
    assert all({"name", "hu", "sd_hu", "n_voxels", "centre_lps_mm"} <= set(rod) for rod in report["rods"])  # type: ignore[union-attr,arg-type]
    assert [rod["name"] for rod in report["rods"]] == list("ABCDE")  # type: ignore[union-attr,index,call-overload]


def test_published_phantoms_are_shipped_and_model_4_asks_for_its_certificate() -> None:
    assert len(PHANTOM_TYPES) == 8
    with pytest.raises(ValueError, match="certificate"):
        phantom_spec("M4-1", "Mindways Model 4")
    own = phantom_spec("M4-1", "Mindways Model 4", (RodSpec("A", 10.0, 990.0), RodSpec("B", 100.0, 980.0)))
    assert len(own.rods) == 2
    with pytest.raises(ValueError, match="not one of"):
        phantom_spec("1", "M")
