"""AUC with DeLong intervals, proportions, calibration, decision curve, conformal quantiles: against known numbers."""

import math

import numpy as np
import pytest

from analysis.classification_statistics import (
    accuracy,
    auc_interval,
    auc_parts,
    calibration_curve,
    class_aucs,
    conformal_quantile,
    confusion,
    coverage,
    log_loss,
    macro_auc,
    net_benefit,
    proportion,
)

SCORES = np.array([0.1, 0.4, 0.35, 0.8, 0.7, 0.4])
POSITIVE = np.array([False, False, True, True, True, False])


def pairwise_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    gaps = scores[positive][:, None] - scores[~positive][None, :]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_auc_counts_the_pairs_in_the_right_order_and_ties_by_half() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores, positive = rng.integers(0, 6, 40) / 6, rng.random(40) < 0.4
        assert auc_parts(scores, positive).value == pytest.approx(pairwise_auc(scores, positive), abs=1e-12)


def test_the_contributions_sum_to_delong_s_variance() -> None:
    """Against the definition: covariance of the placement values of both groups (DeLong 1988, equation 5)."""
    rng = np.random.default_rng(2)
    scores, positive = rng.normal(size=60), rng.random(60) < 0.4
    scores[positive] += 0.8
    order = (scores[positive][:, None] > scores[~positive][None, :]).astype(float)
    m, n = order.shape
    expected = order.mean(axis=1).var(ddof=1) / m + order.mean(axis=0).var(ddof=1) / n
    assert (auc_parts(scores, positive).contributions ** 2).sum() == pytest.approx(expected, rel=1e-12)


def test_one_of_the_groups_missing_is_an_error_and_not_a_number() -> None:
    with pytest.raises(ValueError, match="0 positive"):
        auc_parts(SCORES, np.zeros(6, bool))


def test_the_logit_interval_holds_the_true_auc_as_often_as_it_says() -> None:
    """True AUC 0.94 with 22 of 101 positives: the plain form covers 89 %, the logit form about 94 %."""
    rng, hits, n = np.random.default_rng(3), 0, 400
    shift = 1.5548 * math.sqrt(2)  # normal scores: AUC = Phi(shift / sqrt 2), Phi(1.5548) = 0.94
    positive = np.arange(101) < 22
    for _ in range(n):
        found = auc_interval([auc_parts(rng.normal(size=101) + shift * positive, positive)])
        hits += found.low <= 0.94 <= found.high
    assert 0.92 <= hits / n <= 0.98


def test_groups_wholly_apart_have_an_interval_all_the_same() -> None:
    found = auc_interval([auc_parts(np.arange(20.0), np.arange(20) >= 10)])
    assert found.value == 1.0 and 0.6 < found.low < 0.8 and found.high == pytest.approx(1)


def test_copies_of_one_patient_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(4)
    positive = np.arange(60) < 25
    scores = rng.normal(size=60) + positive
    single = auc_interval([auc_parts(scores, positive)])
    patients = [str(i % 60) for i in range(180)]
    parts = auc_parts(np.tile(scores, 3), np.tile(positive, 3))
    copied = auc_interval([parts], patients)
    careless = auc_interval([parts])
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.05)
    assert careless.high - careless.low < 0.7 * (single.high - single.low)


def test_the_macro_auc_is_the_mean_over_the_classes() -> None:
    rng = np.random.default_rng(5)
    classes = rng.integers(0, 3, 90)
    shares = rng.dirichlet([1, 1, 1], 90) + 0.4 * np.eye(3)[classes]
    each = class_aucs(shares, classes)
    found = macro_auc([shares], classes)
    assert found.value == pytest.approx(np.mean([one.value for one in each]))
    assert found.high - found.low < max(one.high - one.low for one in each)


def test_wilson_s_interval_of_a_proportion() -> None:
    found = proportion(74, 101)  # Newcombe 1998 style check: 0.733 (0.639-0.809)
    assert (round(found.value, 3), round(found.low, 3), round(found.high, 3)) == (0.733, 0.639, 0.809)
    assert proportion(0, 10).low == pytest.approx(0) and proportion(10, 10).high == pytest.approx(1)


def test_confusion_has_the_truth_in_its_rows() -> None:
    predicted, classes = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 1])
    assert confusion(predicted, classes).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert accuracy(predicted, classes).value == pytest.approx(0.6)


def test_the_net_benefit_of_treating_all_is_known() -> None:
    """prevalence - (1 - prevalence) * odds of the threshold (Vickers and Elkin 2006)."""
    happened = np.arange(100) < 30
    assert net_benefit(np.ones(100), happened, 0.2) == pytest.approx(0.3 - 0.7 * 0.25)
    assert net_benefit(np.zeros(100), happened, 0.2) == 0.0
    assert net_benefit(happened.astype(float), happened, 0.5) == pytest.approx(0.3)


def test_true_probabilities_lie_on_the_diagonal_of_the_calibration_curve() -> None:
    rng = np.random.default_rng(6)
    shares = rng.random(4000)
    points = calibration_curve(shares, rng.random(4000) < shares)
    assert all(abs(predicted - seen.value) < 0.06 for predicted, seen in points)
    squared = calibration_curve(shares**2, rng.random(4000) < shares)
    assert any(not seen.low <= predicted <= seen.high for predicted, seen in squared)


def test_log_loss_of_a_fair_guess() -> None:
    assert log_loss(np.full((5, 3), 1 / 3), np.array([0, 1, 2, 0, 1])) == pytest.approx(math.log(3))


def test_the_conformal_quantile_needs_22_patients_for_90_percent_with_90_percent_confidence() -> None:
    """0.9 ** 22 = 0.098: of 22 patients the largest score holds 90 % with that confidence, of 21 it does not."""
    assert conformal_quantile(np.arange(21) / 100, 0.9, 0.9) == 1.0
    assert conformal_quantile(np.arange(22) / 100, 0.9, 0.9) == 0.21
    assert conformal_quantile(np.arange(38) / 100, 0.9, 0.9) == 0.36  # 0.9 ** 38 + 38 * 0.1 * 0.9 ** 37 = 0.095
    assert conformal_quantile(np.arange(37) / 100, 0.9, 0.9) == 0.36


@pytest.mark.parametrize("n", [22, 60, 150])
def test_nine_calibrations_of_ten_hold_the_level_and_the_usual_rank_does_so_in_fewer(n: int) -> None:
    """Uniform scores: a quantile q holds exactly the share q of new cases."""
    draws = np.random.default_rng(7).random((2000, n))
    held = np.array([conformal_quantile(scores, 0.9, 0.9) for scores in draws])
    usual = np.sort(draws, axis=1)[:, math.ceil((n + 1) * 0.9) - 1]
    assert (held >= 0.9).mean() > 0.88 and (usual >= 0.9).mean() < 0.75
    assert held.mean() < 0.97  # and no more than that is given away


def test_coverage_counts_each_class_by_its_own_quantile() -> None:
    shares = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    found = coverage(shares, np.array([0, 0, 1, 2]), (0.5, 0.6, 0.2))
    assert [one.value for one in found] == [0.5, 0.5, 1.0, 0.0]
