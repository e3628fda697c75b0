"""Selection inside validation: no leak, planted features found, the order of mRMR, the steps of the pipeline."""

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.feature_names import FEATURE_NAMES, SIGNATURE_SEED
from analysis.feature_selection import (
    Mrmr,
    NamedColumns,
    OrdinalLasso,
    SelectionPlan,
    make_pipeline,
    mrmr_order,
    selected_columns,
)
from analysis.training.radiomics import TrainingPlan, nested_estimate, selection_frequency
from analysis.training.radiomics_table import Acquisition, Cohort

#: Computed once with mrmr-selection 0.2.8, `mrmr_classif(frame, classes, K=12)`, on `golden_data(seed)`.
GOLDEN_ORDER = {
    0: [16, 6, 20, 7, 23, 18, 27, 8, 25, 9, 21, 4],
    1: [28, 12, 17, 8, 26, 1, 10, 3, 4, 19, 5, 25],
    2: [21, 14, 15, 4, 23, 3, 5, 16, 27, 1, 9, 26],
}
QUICK = TrainingPlan(outer_folds=5, repeats=1, inner_folds=0, bootstraps=8)
PLANTED = ("glcm_Imc1", "gldm_DependenceEntropy", "glrlm_RunVariance")


def golden_data(seed: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((120, 6))
    values = latent @ rng.standard_normal((6, 30)) + 0.7 * rng.standard_normal((120, 30))
    return values, np.digitize(latent[:, 0] + 0.5 * rng.standard_normal(120), [-0.5, 0.5])


def cohort(seed: int, n: int = 240, planted: float = 0.0) -> Cohort:
    """93 correlated features; `planted` is the strength with which three of them follow the class."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 12))
    values = latent @ rng.standard_normal((12, 93)) * 0.5 + rng.standard_normal((n, 93))
    classes = rng.integers(0, 3, n)
    for name in PLANTED:
        values[:, FEATURE_NAMES.index(name)] += planted * classes
    return Cohort(
        patients=tuple(f"P{i}" for i in range(n)), levels=("L1", "L2"), vertebrae=np.stack([values, values], axis=1),
        n_voxels=np.full((n, 2), 4000.0), classes=classes, bmd_mg_cm3=np.full(n, np.nan),
        acquisitions=(Acquisition(),) * n,
    )  # fmt: skip


@pytest.mark.parametrize("seed", GOLDEN_ORDER)
def test_mrmr_gives_the_order_of_the_reference_package(seed: int) -> None:
    assert mrmr_order(*golden_data(seed), 12).tolist() == GOLDEN_ORDER[seed]


def test_mrmr_leaves_a_constant_column_for_last() -> None:
    values, classes = golden_data(1)
    values[:, 4] = 7.0
    assert mrmr_order(values, classes, 30)[-1] == 4


def test_lasso_keeps_the_column_that_follows_the_order_of_the_classes() -> None:
    rng = np.random.default_rng(8)
    classes = rng.integers(0, 3, 150)
    values = rng.standard_normal((150, 10))
    values[:, 7] += classes
    kept = OrdinalLasso(3).fit(values, classes).get_support(indices=True)
    assert 7 in kept and len(kept) <= 3


def test_lasso_keeps_one_column_when_nothing_explains_the_classes() -> None:
    values = np.zeros((60, 4))
    values[:, 2] = np.random.default_rng(9).standard_normal(60)
    assert OrdinalLasso(3).fit(values, np.arange(60) % 3).get_support().sum() >= 1


def test_the_seed_signature_reads_the_published_six_and_nothing_else() -> None:
    data = cohort(1)
    pipeline = make_pipeline(SelectionPlan("seed"), FEATURE_NAMES).fit(data.values, data.classes)
    assert {FEATURE_NAMES[k] for k in selected_columns(pipeline)} == set(SIGNATURE_SEED)
    spoiled = data.values.copy()
    spoiled[:, [k for k, name in enumerate(FEATURE_NAMES) if name not in SIGNATURE_SEED]] = 1e9
    np.testing.assert_array_equal(pipeline.predict_proba(spoiled), pipeline.predict_proba(data.values))


def test_the_steps_stand_in_the_published_order_and_each_keeps_fewer() -> None:
    data = cohort(2, planted=0.8)
    pipeline = make_pipeline(SelectionPlan(), FEATURE_NAMES).fit(data.values, data.classes)
    assert list(pipeline.named_steps) == ["scale", "rfe", "mrmr", "lasso", "classify"]
    kept = [pipeline.named_steps[step].get_support().sum() for step in ("rfe", "mrmr", "lasso")]
    assert kept[:2] == [40, 15] and 1 <= kept[2] <= 6
    assert len(selected_columns(pipeline)) == kept[2]


def test_permuted_labels_give_a_nested_auc_of_one_half() -> None:
    """Features correlated as texture is, labels that know nothing of them: the whole selection must find nothing."""
    found = [nested_estimate(cohort(seed), QUICK).macro.value for seed in range(10, 14)]
    assert abs(np.mean(found) - 0.5) < 0.05


def test_selection_outside_validation_would_show_in_the_same_test() -> None:
    """The counter-example: the same data, features chosen on all of it, then cross-validated."""
    leaked = []
    for seed in range(10, 13):
        data = cohort(seed)
        chosen = Mrmr(6).fit(data.values, data.classes).get_support(indices=True)
        only = data.vertebrae * np.isin(np.arange(93), chosen)
        leaked.append(nested_estimate(_with_values(data, only), QUICK).macro.value)
    assert np.mean(leaked) > 0.53


def _with_values(data: Cohort, vertebrae: NDArray[np.float64]) -> Cohort:
    return Cohort(data.patients, data.levels, vertebrae, data.n_voxels, data.classes, data.bmd_mg_cm3,
                  data.acquisitions)  # fmt: skip


def test_planted_features_are_found_and_reported_most_often() -> None:
    data = cohort(20, planted=1.6)
    nested = nested_estimate(data, QUICK)
    assert nested.macro.low > 0.7
    frequency = dict(selection_frequency(data, QUICK))
    assert set(list(frequency)[:3]) == set(PLANTED) and min(frequency[name] for name in PLANTED) >= 0.75


def test_a_patient_is_never_on_both_sides_of_a_split() -> None:
    """Each patient has a fingerprint and a random class: only a split through patients could learn the class."""
    rng = np.random.default_rng(21)
    people, studies = 40, 6
    values = np.repeat(rng.standard_normal((people, 93)), studies, axis=0) + 0.01 * rng.standard_normal((240, 93))
    classes = np.repeat(rng.integers(0, 3, people), studies)
    base = cohort(21)
    data = Cohort(
        tuple(f"P{i // studies}" for i in range(240)), base.levels, np.stack([values, values], axis=1), base.n_voxels,
        classes, base.bmd_mg_cm3, base.acquisitions,
    )  # fmt: skip
    plan = TrainingPlan(SelectionPlan("stepwise", after_lasso=15), outer_folds=4, repeats=1, inner_folds=0)
    assert nested_estimate(data, plan).macro.value < 0.68
    alone = Cohort(tuple(map(str, range(240))), *(getattr(data, n) for n in (
        "levels", "vertebrae", "n_voxels", "classes", "bmd_mg_cm3", "acquisitions")))  # fmt: skip
    assert nested_estimate(alone, plan).macro.value > 0.85


def test_named_columns_keep_their_place() -> None:
    kept = NamedColumns((2, 0)).fit(np.zeros((3, 4))).get_support()
    assert kept.tolist() == [True, False, True, False]
