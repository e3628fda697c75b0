"""Selection inside validation: no leak, planted features found, the order of mRMR, the steps of the pipeline."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.classification_statistics import coverage
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
from analysis.training.radiomics import (
    TrainingPlan,
    nested_estimate,
    selection_frequency,
    split_patients,
    tempered,
    train,
)
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
    assert nested_estimate(_with_people(data, list(map(str, range(240)))), plan).macro.value > 0.85


def test_calibration_patients_have_no_part_in_the_fit_and_stand_on_one_side_only() -> None:
    data = _with_people(cohort(22, planted=1.0), [f"P{i // 2}" for i in range(240)])
    plan = replace(QUICK, selection=SelectionPlan("seed"), min_patients_per_class=20, bootstraps=0)
    fitting, calibration = split_patients(data, plan)
    assert not set(fitting.patients) & set(calibration.patients)
    assert len(fitting.classes) + len(calibration.classes) == 240 and abs(len(fitting.classes) - 120) < 12
    shares = [np.bincount(part.classes) / len(part.classes) for part in (fitting, calibration)]
    assert np.abs(shares[0] - shares[1]).max() < 0.1
    spoiled = data.vertebrae.copy()
    spoiled[np.isin(np.array(data.patients), calibration.patients)] += 50.0
    first, second = train(data, plan), train(_with_values(data, spoiled), plan)
    np.testing.assert_array_equal(*(one.pipeline.named_steps["classify"].coef_ for one in (first, second)))
    assert first.temperature == second.temperature and first.quantiles != second.quantiles


def test_the_sets_of_most_models_hold_nine_tenths_of_every_class_of_new_patients() -> None:
    """Twelve models of 200 patients each, asked about thousands of others: level and confidence are both 0.9."""
    data = cohort(23, n=6000, planted=0.0)
    for name in SIGNATURE_SEED[:3]:
        data.vertebrae[:, :, FEATURE_NAMES.index(name)] += 1.5 * data.classes[:, None]
    plan = replace(QUICK, selection=SelectionPlan("seed"), min_patients_per_class=44, bootstraps=0, outer_folds=3)
    held = []
    for k in range(12):
        own, others = data.part(np.arange(200 * k, 200 * (k + 1))), data.part(np.arange(2400, 6000))
        model = train(own, plan)
        shares = tempered(model.pipeline.predict_proba(others.values), model.temperature)
        held.append([one.value for one in coverage(shares, others.classes, model.quantiles)[1:]])
    assert (np.mean(held, axis=0) > 0.9).all() and (np.mean(held, axis=0) < 0.99).all()
    assert (np.array(held) >= 0.9).mean() > 0.8  # 36 classes of 36: 0.9 expected, four standard errors are 0.2


def _with_people(data: Cohort, people: list[str]) -> Cohort:
    return Cohort(tuple(people), *(getattr(data, n) for n in (
        "levels", "vertebrae", "n_voxels", "classes", "bmd_mg_cm3", "acquisitions")))  # fmt: skip


def test_named_columns_keep_their_place() -> None:
    kept = NamedColumns((2, 0)).fit(np.zeros((3, 4))).get_support()
    assert kept.tolist() == [True, False, True, False]
