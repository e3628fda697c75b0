"""From HU to BMD, its uncertainty with the shared line, classes at their limits, flags, refusals, fallback, change."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from analysis.bmd import (
    BmdLimits,
    BmdUncertainties,
    EarlierResult,
    SummaryContext,
    choose_levels,
    classify,
    combine,
    compare_with_earlier,
    line_uncertainty_mg_cm3,
    measure_vertebra,
    summarise,
    weighted_statistics,
)
from analysis.errors import AnalysisError, VoiError
from analysis.reference_data import find_reference
from analysis.refusals import reason
from analysis.results import Classification, Material, UncertaintyTerm, VertebraBmd, Voi
from analysis.volume import CtVolume, axial_affine
from tests.voi_builders import BETA, SIGMA, LineSpec, chosen_calibration

LIMITS = BmdLimits()
BEFORE = datetime(2025, 1, 1, tzinfo=UTC)


def voi_of(weights: np.ndarray, level: str = "L1") -> Voi:
    return Voi(
        level=level, weights=weights.astype(np.float32), start=(2, 3, 4), centre_lps_mm=(0.0, 0.0, 0.0),
        normal_lps=(0.0, 0.0, 1.0), semi_axes_mm=(15.0, 10.0), depth_mm=9.0, cancellous_fraction=0.62,
        volume_mm3=4000.0, excluded_fraction=0.0, rule_version="oval-3",
    )  # fmt: skip


def uniform_volume(hu: float, sd_hu: float = 0.0) -> CtVolume:
    noise = np.random.default_rng(0).normal(0.0, sd_hu, (12, 24, 24)) if sd_hu else 0.0
    return CtVolume(
        np.full((12, 24, 24), hu, dtype=np.float32) + np.float32(noise), axial_affine((1.25, 0.8, 0.8), (0, 0, 0))
    )


def vertebra(level: str, bmd: float) -> VertebraBmd:
    """A vertebra whose VOI reads exactly this density."""
    volume = uniform_volume(SIGMA * bmd + BETA)
    return measure_vertebra(volume, voi_of(np.ones((6, 12, 12)), level), chosen_calibration())


def context(**changes: object) -> SummaryContext:
    return replace(SummaryContext(chosen_calibration()), **changes)  # type: ignore[arg-type]


def test_the_mean_is_weighted_by_the_part_of_each_voxel_in_the_voi() -> None:
    volume = uniform_volume(100.0)
    volume.hu[2, 3, 4] = 200.0
    weights = np.zeros((1, 1, 2))
    weights[0, 0] = 0.25, 1.0
    mean, _, effective = weighted_statistics(volume, voi_of(weights))
    assert mean == pytest.approx((0.25 * 200 + 100) / 1.25)
    assert effective == pytest.approx(1.25**2 / (0.25**2 + 1))


def test_a_known_density_comes_back_through_the_line() -> None:
    for bmd in (-20.0, 40.0, 80.0, 120.0, 200.0):
        assert vertebra("L1", bmd).bmd_mg_cm3 == pytest.approx(bmd, abs=1e-3)


def test_what_the_voi_says_of_itself_travels_with_the_density() -> None:
    small = replace(voi_of(np.ones((6, 12, 12))), flags=(reason("VOI_SMALL", "covers 0.52"),))
    measured = measure_vertebra(uniform_volume(140.0), small, chosen_calibration())
    assert [flag.code for flag in measured.flags] == ["VOI_SMALL"]


def test_a_mean_that_no_trabecular_bone_has_is_no_bmd() -> None:
    for hu in (-120.0, 500.0):
        with pytest.raises(VoiError) as refusal:
            measure_vertebra(uniform_volume(hu), voi_of(np.ones((6, 12, 12))), chosen_calibration())
        assert refusal.value.code == "VOI_HU_RANGE"


def test_the_line_uncertainty_agrees_with_a_monte_carlo_draw_of_the_line() -> None:
    line = chosen_calibration().line
    draws = np.random.default_rng(1).multivariate_normal([line.sigma_ct, line.beta_ct], line.covariance, 200_000)
    for bmd in (50.0, 120.0):
        hu = line.sigma_ct * bmd + line.beta_ct
        spread = ((hu - draws[:, 1]) / draws[:, 0]).std()
        assert line_uncertainty_mg_cm3(line, bmd) == pytest.approx(spread, rel=0.02)


def test_the_mean_does_not_average_away_what_both_vertebrae_share() -> None:
    pair = [vertebra("L1", 100.0), vertebra("L2", 110.0)]
    summary = summarise(pair, context())
    shared = {term.name: term.u_mg_cm3 for term in summary.terms if term.shared}
    assert shared["calibration line"] == pytest.approx(line_uncertainty_mg_cm3(chosen_calibration().line, 105.0))
    assert shared["reproducibility"] == BmdUncertainties().reproducibility_mg_cm3
    own = next(term for term in summary.terms if term.name == "VOI placement").u_mg_cm3
    assert own == pytest.approx(0.012 * np.hypot(100.0, 110.0) / 2)
    draws = np.random.default_rng(2).multivariate_normal([SIGMA, BETA], chosen_calibration().line.covariance, 100_000)
    mean_of_two = sum((SIGMA * bmd + BETA - draws[:, 1]) / draws[:, 0] for bmd in (100.0, 110.0)) / 2
    assert shared["calibration line"] == pytest.approx(mean_of_two.std(), rel=0.02)


def test_the_budget_is_the_root_sum_of_squares_and_a_given_term_replaces_its_default() -> None:
    terms = (UncertaintyTerm("drift", 3.0, True), UncertaintyTerm("body size", 2.0, True))
    found = measure_vertebra(
        uniform_volume(52.5), voi_of(np.ones((6, 12, 12))), chosen_calibration(), extra_terms=terms
    )
    named = {term.name: term.u_mg_cm3 for term in found.terms}
    assert named["drift"] == 3.0
    assert named["body size"] == pytest.approx(1.0)  # given for 100 mg/cm3, measured 50
    assert found.u_bmd_mg_cm3 == pytest.approx(np.sqrt(sum(u**2 for u in named.values())))


def test_noise_in_correlated_small_voxels_is_not_averaged_as_if_they_were_independent() -> None:
    noisy = uniform_volume(140.0, 30.0)
    term = {
        t.name: t.u_mg_cm3 for t in measure_vertebra(noisy, voi_of(np.ones((6, 12, 12))), chosen_calibration()).terms
    }
    independent = 30.0 / SIGMA / np.sqrt(6 * 12 * 12)
    assert term["VOI noise"] > 1.4 * independent


@pytest.mark.parametrize(
    ("bmd", "expected"),
    [
        (79.999, Classification.OSTEOPOROSIS), (80.0, Classification.OSTEOPENIA), (120.0, Classification.OSTEOPENIA),
        (120.001, Classification.NORMAL),
    ],
)  # fmt: skip
def test_both_limits_themselves_are_osteopenia(bmd: float, expected: Classification) -> None:
    assert classify(bmd, LIMITS) is expected


def test_near_a_limit_the_class_is_borderline_and_far_from_it_is_not() -> None:
    for bmd, expected in ((82.0, True), (118.0, True), (100.0, False), (160.0, False), (40.0, False)):
        assert summarise([vertebra("L1", bmd), vertebra("L2", bmd)], context()).borderline is expected


def test_no_class_is_given_on_another_material_scale() -> None:
    chosen = chosen_calibration(LineSpec(material=Material.HA))
    summary = summarise([vertebra("L1", 60.0), vertebra("L2", 60.0)], context(chosen=chosen))
    assert summary.classification is None and not summary.borderline
    assert [flag.code for flag in summary.flags] == ["CALIBRATION_MATERIAL"]


def test_vertebrae_that_differ_are_flagged_and_then_refused() -> None:
    assert summarise([vertebra("L1", 100.0), vertebra("L2", 119.9)], context()).flags == ()
    flagged = summarise([vertebra("L1", 100.0), vertebra("L2", 125.0)], context())
    assert [flag.code for flag in flagged.flags] == ["LEVELS_DIFFER"]
    with pytest.raises(AnalysisError) as refusal:
        summarise([vertebra("L1", 100.0), vertebra("L2", 130.5)], context())
    assert refusal.value.code == "LEVELS_DISAGREE"


def test_a_cross_check_that_disagrees_is_a_flag_and_never_the_value() -> None:
    pair = [vertebra("L1", 100.0), vertebra("L2", 100.0)]
    summary = summarise(pair, context(internal_check_mg_cm3=125.0))
    assert [flag.code for flag in summary.flags] == ["INTERNAL_CHECK_DIFFERS"]
    assert summary.bmd_mg_cm3 == pytest.approx(100.0)
    assert summarise(pair, context(internal_check_mg_cm3=115.0)).flags == ()


def test_missing_or_rejected_levels_are_replaced_in_the_configured_order() -> None:
    everything = ("T11", "T12", "L1", "L2", "L3", "L4")
    assert choose_levels(everything, (), LIMITS) == ("L1", "L2")
    assert choose_levels(everything, ("L1",), LIMITS) == ("L2", "L3")
    assert choose_levels(everything, ("L1", "L3"), LIMITS) == ("L2", "T12")
    assert choose_levels(everything, ("L1", "L2"), LIMITS) == ("L3", "T12")
    without = replace(LIMITS, fallback_levels=(), minimum_vertebrae=1)
    assert choose_levels(everything, ("L2",), without) == ("L1",)


def test_one_vertebra_is_refused_by_default_and_none_always() -> None:
    with pytest.raises(AnalysisError) as few:
        choose_levels(("L1", "L2", "L3"), ("L2", "L3"), LIMITS)
    assert few.value.code == "TOO_FEW_VERTEBRAE"
    with pytest.raises(AnalysisError) as none:
        choose_levels(("L4",), (), replace(LIMITS, minimum_vertebrae=1))
    assert none.value.code == "NO_USABLE_VERTEBRA"


def test_a_single_vertebra_is_never_called_a_mean_and_a_fallback_is_said() -> None:
    single = summarise([vertebra("L1", 100.0)], context())
    assert single.levels == ("L1",) and [flag.code for flag in single.flags] == ["SINGLE_VERTEBRA"]
    replaced = summarise([vertebra("L2", 100.0), vertebra("L3", 100.0)], context())
    assert replaced.levels == ("L2", "L3") and [flag.code for flag in replaced.flags] == ["FALLBACK_LEVEL"]


def test_a_change_is_stated_only_beyond_its_least_significant_change() -> None:
    summary = summarise([vertebra("L1", 100.0), vertebra("L2", 100.0)], context())
    earlier = EarlierResult(BEFORE, ("L1", "L2"), 102.0, Material.K2HPO4, summary.terms, "oval-3")
    small = compare_with_earlier(summary, earlier)
    assert small is not None and not small.significant and small.change_mg_cm3 == pytest.approx(-2.0)
    large = compare_with_earlier(summary, replace(earlier, bmd_mg_cm3=112.0))
    assert large is not None and large.significant
    varying = [term for term in summary.terms if term.name not in ("calibration line", "body size")]
    assert large.least_significant_change_mg_cm3 == pytest.approx(1.96 * np.sqrt(2) * combine(varying))


def test_results_of_other_levels_material_or_voi_rule_are_not_compared() -> None:
    summary = summarise([vertebra("L1", 100.0), vertebra("L2", 100.0)], context())
    earlier = EarlierResult(BEFORE, ("L1", "L2"), 90.0, Material.K2HPO4, summary.terms, "oval-3")
    assert compare_with_earlier(summary, replace(earlier, levels=("L2", "L3"))) is None
    assert compare_with_earlier(summary, replace(earlier, material=Material.HA)) is None
    assert compare_with_earlier(summary, replace(earlier, voi_rule_version="oval-2")) is None
    assert compare_with_earlier(summary, earlier) is not None


def test_z_scores_come_from_a_sourced_group_of_the_same_scale_or_not_at_all() -> None:
    found = find_reference(140.5, Material.HA, "F", 60.0)
    assert found is not None and found.z_score == 0.0 and found.percentile == 50.0 and "Budoff" in found.source
    assert find_reference(140.5 - 22.8, Material.HA, "F", 64.9).percentile == pytest.approx(15.87, abs=0.01)  # type: ignore[union-attr]
    for sex, age in (("F", 80.0), ("O", 60.0), (None, 60.0), ("F", None)):
        assert find_reference(100.0, Material.HA, sex, age) is None
    assert find_reference(100.0, Material.K2HPO4, "F", 60.0) is None
