"""Training of the three-class radiomics model: nested cross-validation grouped by patient, then one locked model.

The patients are split once. On the fitting part the procedure is estimated (nested cross-validation), the temperature
is fitted to the out-of-fold answers, and the model is locked. The calibration part sees that model only once, and gives
its conformal quantiles: class by class, at least `conformal_level` of new patients with a confidence of
`conformal_confidence` (Vovk 2012). Out-of-fold answers of the fitting part would not do: they are not answers of the
locked model, so that no such statement holds for them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline

from analysis.classification_model import CLASS_NAMES, log_shares
from analysis.classification_statistics import (
    Interval,
    accuracy,
    conformal_quantile,
    macro_auc,
    repeated_class_auc,
)
from analysis.errors import ModelError
from analysis.feature_names import FEATURE_NAMES
from analysis.feature_selection import SelectionPlan, make_pipeline, selected_columns
from analysis.training.radiomics_table import Cohort

Progress = Callable[[str, int, int], None]  # what, done, of


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a model is made and judged.

    inner_folds : 0 leaves the inner search out and takes the selection plan as it stands
    calibration_share : of the patients, held out from the fit for the conformal quantiles; in tenths
    """

    selection: SelectionPlan = SelectionPlan()
    outer_folds: int = 5
    repeats: int = 5
    inner_folds: int = 3
    bootstraps: int = 100
    conformal_level: float = 0.9
    conformal_confidence: float = 0.9
    calibration_share: float = 0.5
    min_patients_per_class: int = 50
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class NestedEstimate:
    """Answers of models that never saw the patient: shares (studies, classes) for each repeat."""

    shares: tuple[NDArray[np.float64], ...]
    macro: Interval
    each_class: tuple[Interval, ...]
    accuracy: Interval


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """The locked pipeline with everything measured on the way.

    fitting, calibration : the studies that made it, and those that only gave the quantiles
    held_out : macro AUC of the locked model on the calibration part, none of which it had seen
    """

    plan: TrainingPlan
    fitting: Cohort
    calibration: Cohort
    pipeline: Pipeline
    columns: NDArray[np.intp]
    nested: NestedEstimate
    baseline: NestedEstimate  # mean HU alone
    held_out: Interval
    temperature: float
    quantiles: tuple[float, ...]
    n_calibration: tuple[int, ...]
    selection_frequency: tuple[tuple[str, float], ...]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(FEATURE_NAMES[k] for k in self.columns)


def _silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""


def train(cohort: Cohort, plan: TrainingPlan | None = None, progress: Progress = _silent) -> TrainedModel:
    """Split, estimate, lock, calibrate.

    Raises
    ------
    ModelError : too few patients in a class, or the nested estimate does not beat chance; with the numbers
    """
    plan = plan or TrainingPlan()
    check_numbers(cohort, plan.min_patients_per_class)
    fitting, calibration = split_patients(cohort, plan)
    nested = nested_estimate(fitting, plan, lambda done, total: progress("nested cross-validation", done, total))
    baseline_plan = replace(plan, selection=SelectionPlan("mean HU"))
    baseline = nested_estimate(fitting, baseline_plan, lambda done, total: progress("mean HU alone", done, total))
    check_beats_chance(nested)
    pipeline = fit(fitting, plan)
    frequency = selection_frequency(fitting, plan, lambda done, total: progress("bootstraps", done, total))
    temperature = fit_temperature(nested.shares[0], fitting.classes)
    shares = tempered(pipeline.predict_proba(calibration.values), temperature)
    quantiles, n = conformal_quantiles(shares, calibration, plan)
    return TrainedModel(
        plan, fitting, calibration, pipeline, selected_columns(pipeline), nested, baseline,
        macro_auc([shares], calibration.classes, calibration.patients), temperature, quantiles, n, frequency,
    )  # fmt: skip


def split_patients(cohort: Cohort, plan: TrainingPlan) -> tuple[Cohort, Cohort]:
    """The fitting part and the calibration part, the classes shared out evenly; a patient is on one side only."""
    tenths = StratifiedGroupKFold(10, shuffle=True, random_state=plan.seed)
    parts = [rows for _, rows in tenths.split(cohort.values, cohort.classes, groups=np.asarray(cohort.patients))]
    n = min(max(round(10 * plan.calibration_share), 1), 9)
    held_out, fitted = (np.sort(np.concatenate(some)) for some in (parts[:n], parts[n:]))
    return cohort.part(fitted), cohort.part(held_out)


def check_numbers(cohort: Cohort, at_least: int) -> None:
    """Refuse a cohort with too few patients in a class, with the numbers."""
    found = cohort.patients_per_class
    if min(found) < at_least:
        said = ", ".join(f"{name} {n}" for name, n in zip(CLASS_NAMES, found, strict=True))
        left = f"; {len(cohort.left_out)} studies could not be used" if cohort.left_out else ""
        raise ModelError(f"too few patients per class: {said}; at least {at_least} in each expected{left}")


def check_beats_chance(nested: NestedEstimate) -> None:
    """Refuse a model whose nested AUC may be that of a coin."""
    if nested.macro.low <= 0.5:
        raise ModelError(
            f"nested macro AUC {nested.macro}: its 95 % interval reaches 0.5, that is chance; no model was made"
        )


def fit(cohort: Cohort, plan: TrainingPlan) -> Pipeline:
    """Tune in an inner cross-validation, then fit on all given studies."""
    pipeline = make_pipeline(plan.selection, FEATURE_NAMES)
    if not plan.inner_folds:
        return pipeline.fit(cohort.values, cohort.classes)
    folds = StratifiedGroupKFold(plan.inner_folds, shuffle=True, random_state=plan.seed)
    search = GridSearchCV(pipeline, plan.selection.grid, scoring="neg_log_loss", cv=folds)
    search.fit(cohort.values, cohort.classes, groups=np.asarray(cohort.patients))
    return search.best_estimator_


def nested_estimate(
    cohort: Cohort, plan: TrainingPlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> NestedEstimate:
    """Cross-validate the whole procedure, selection and tuning included; a patient is never on both sides."""
    repeats = []
    total = plan.repeats * plan.outer_folds
    for repeat in range(plan.repeats):
        folds = StratifiedGroupKFold(plan.outer_folds, shuffle=True, random_state=plan.seed + 1000 + repeat)
        shares = np.zeros((len(cohort.classes), len(CLASS_NAMES)))
        splits = folds.split(cohort.values, cohort.classes, groups=np.asarray(cohort.patients))
        for k, (train_rows, test_rows) in enumerate(splits):
            pipeline = fit(cohort.part(train_rows), plan)
            shares[test_rows] = pipeline.predict_proba(cohort.values[test_rows])
            progress(repeat * plan.outer_folds + k + 1, total)
        repeats.append(shares)
    return _estimate(tuple(repeats), cohort)


def _estimate(repeats: tuple[NDArray[np.float64], ...], cohort: Cohort) -> NestedEstimate:
    each = [repeated_class_auc(repeats, cohort.classes, k, cohort.patients) for k in range(len(CLASS_NAMES))]
    return NestedEstimate(
        repeats,
        macro_auc(repeats, cohort.classes, cohort.patients),
        tuple(each),
        accuracy(repeats[0].argmax(axis=1), cohort.classes),
    )


def selection_frequency(
    cohort: Cohort, plan: TrainingPlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[tuple[str, float], ...]:
    """How often each feature is selected when patients are drawn with replacement; most frequent first.

    One selected set is one draw: correlated features replace each other from sample to sample.
    """
    if plan.selection.signature != "stepwise":
        return tuple((FEATURE_NAMES[k], 1.0) for k in selected_columns(fit(cohort, replace(plan, inner_folds=0))))
    rng, counts = np.random.default_rng(plan.seed), Counter[str]()
    people = np.asarray(cohort.patients)
    names, done = np.unique(people), 0
    rows_of = {name: np.flatnonzero(people == name) for name in names}
    while done < plan.bootstraps:
        rows = np.concatenate([rows_of[name] for name in rng.choice(names, len(names))])
        if min(np.bincount(cohort.classes[rows], minlength=len(CLASS_NAMES))) < 2:
            continue
        pipeline = fit(cohort.part(rows), replace(plan, inner_folds=0))
        counts.update(FEATURE_NAMES[k] for k in selected_columns(pipeline))
        done += 1
        progress(done, plan.bootstraps)
    return tuple((name, n / plan.bootstraps) for name, n in counts.most_common())


def fit_temperature(shares: NDArray[np.float64], classes: NDArray[np.intp]) -> float:
    """The one number by which logits are divided so that the log loss is smallest (Guo 2017)."""

    def loss(log_temperature: float) -> float:
        scaled = tempered(shares, float(np.exp(log_temperature)))
        return float(-log_shares(scaled[np.arange(len(classes)), classes]).mean())

    found: Any = minimize_scalar(loss, bounds=(np.log(0.2), np.log(5.0)), method="bounded")
    return float(np.exp(found.x))


def tempered(shares: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Class shares after division of their logits by the temperature."""
    logits = log_shares(shares) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def conformal_quantiles(
    shares: NDArray[np.float64], cohort: Cohort, plan: TrainingPlan
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The quantile of each class and how many it rests on, from the first study of each patient."""
    _, first = np.unique(np.asarray(cohort.patients), return_index=True)
    classes = cohort.classes[first]
    scores = 1 - shares[first, classes]
    each = [scores[classes == k] for k in range(len(CLASS_NAMES))]
    level, confidence = plan.conformal_level, plan.conformal_confidence
    return tuple(conformal_quantile(one, level, confidence) for one in each), tuple(len(one) for one in each)
