"""A trained pipeline as a model file: coefficients and trees as numbers, the domain of the training data, a summary."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from analysis.classification import log_features
from analysis.classification_model import (
    CLASS_NAMES,
    AcquisitionDomain,
    ClassificationModel,
    Classifier,
    ConformalRule,
    FeatureDomain,
    ForestClassifier,
    LogisticClassifier,
    TrainingSummary,
    Tree,
    seal,
)
from analysis.extraction_contract import ExtractionContract
from analysis.feature_names import FEATURE_NAMES
from analysis.training.radiomics import TrainedModel
from analysis.training.radiomics_table import Acquisition, Cohort
from analysis.version import SOFTWARE_VERSION

#: Watched beside the model's own features: level and spread of the CT numbers show metal, fat, wrong rescale.
GUARDS = ("firstorder_Mean", "firstorder_Variance", "firstorder_Minimum", "firstorder_Maximum")


@dataclass(frozen=True, slots=True)
class DomainRule:
    """How far beyond the training data the model may still be asked."""

    range_margin: float = 0.05  # of each feature's range
    tail: float = 0.005  # of a chi-squared law; the training data's own 99.5 % where that is farther
    voxel_margin: float = 0.15  # VOI size alone moves most texture features
    spacing_margin: float = 0.05
    kvp_margin: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What the model is called and where it comes from."""

    name: str
    source: str
    created: str
    demonstration: bool = False
    limits_mg_cm3: tuple[float, float] = (80.0, 120.0)


def export_model(
    trained: TrainedModel, cohort: Cohort, contract: ExtractionContract, identity: ModelIdentity,
    rule: DomainRule | None = None,
) -> ClassificationModel:
    """The model as data, sealed with its SHA-256."""
    rule = rule or DomainRule()
    scale = trained.pipeline.named_steps["scale"]
    stays = _scaled_columns(trained)
    domain_names = tuple(dict.fromkeys((*trained.features, *GUARDS)))
    return seal(
        ClassificationModel(
            name=identity.name,
            demonstration=identity.demonstration,
            classes=CLASS_NAMES,
            levels=cohort.levels,
            features=trained.features,
            contract=json.loads(json.dumps(asdict(contract))),  # as it comes back from the file
            contract_sha256=contract.sha256,
            mean=_numbers(scale.mean_[stays]),
            sd=_numbers(scale.scale_[stays]),
            kind=trained.plan.selection.classifier,
            classifier=_classifier(trained),
            temperature=trained.temperature,
            conformal=ConformalRule(
                trained.plan.conformal_level, trained.plan.conformal_confidence, trained.quantiles,
                trained.n_calibration,
            ),
            domain=feature_domain(cohort, domain_names, rule),
            acquisition=acquisition_domain(cohort.acquisitions, rule),
            limits_mg_cm3=identity.limits_mg_cm3,
            training=_summary(trained, cohort, identity),
        )
    )


def _scaled_columns(trained: TrainedModel) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The scaler's columns that reach the classifier; a fixed signature stands before it, stepwise selection after."""
    if trained.plan.selection.signature == "stepwise":
        return trained.columns
    return np.arange(len(trained.columns))


def _numbers(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _classifier(trained: TrainedModel) -> Classifier:
    fitted = trained.pipeline.named_steps["classify"]
    if isinstance(fitted, RandomForestClassifier):
        return ForestClassifier(tuple(_tree(one.tree_) for one in fitted.estimators_))
    assert isinstance(fitted, LogisticRegression)
    return LogisticClassifier(tuple(_numbers(row) for row in fitted.coef_), _numbers(fitted.intercept_))


def _tree(nodes: Any) -> Tree:
    """scikit-learn's tree is a set of arrays over its nodes already."""
    inner = nodes.children_left >= 0
    return Tree(
        tuple(int(f) if i else -1 for f, i in zip(nodes.feature, inner, strict=True)),
        tuple(float(t) if i else 0.0 for t, i in zip(nodes.threshold, inner, strict=True)),
        tuple(max(int(k), 0) for k in nodes.children_left),
        tuple(max(int(k), 0) for k in nodes.children_right),
        tuple(_numbers(row / row.sum()) for row in nodes.value[:, 0, :]),
    )


def feature_domain(cohort: Cohort, names: tuple[str, ...], rule: DomainRule) -> FeatureDomain:
    """Ranges and ellipsoid of single vertebrae, so that an artefact in one of them is not averaged away."""
    columns = [FEATURE_NAMES.index(name) for name in names]
    values = cohort.vertebrae[:, :, columns].reshape(-1, len(columns))
    low, high = values.min(axis=0), values.max(axis=0)
    margin = rule.range_margin * (high - low)
    scale = np.maximum(0.1 * np.median(np.abs(values), axis=0), 1e-9)
    logs = log_features(values, scale)
    fitted = LedoitWolf().fit(logs)
    distances2 = fitted.mahalanobis(logs)
    limit = max(float(chi2.ppf(1 - rule.tail, len(columns))), float(np.quantile(distances2, 1 - rule.tail)))
    voxels = (cohort.n_voxels.min() * (1 - rule.voxel_margin), cohort.n_voxels.max() * (1 + rule.voxel_margin))
    return FeatureDomain(
        names, _numbers(low - margin), _numbers(high + margin), _numbers(scale), _numbers(fitted.location_),
        tuple(_numbers(row) for row in fitted.precision_), limit, (float(voxels[0]), float(voxels[1])),
    )  # fmt: skip


def acquisition_domain(acquisitions: tuple[Acquisition, ...], rule: DomainRule) -> AcquisitionDomain:
    """What the training scans had in common; an attribute that any of them lacks is not checked."""

    def texts(read: Callable[[Acquisition], str | None]) -> tuple[str, ...]:
        found = [read(one) for one in acquisitions]
        known = [text.strip().upper() for text in found if text]
        return tuple(sorted(set(known))) if len(known) == len(found) else ()

    def limits(read: Callable[[Acquisition], float | None], margin: float) -> tuple[float, float] | None:
        found = [read(one) for one in acquisitions]
        known = [number for number in found if number is not None]
        return (min(known) - margin, max(known) + margin) if known and len(known) == len(found) else None

    return AcquisitionDomain(
        manufacturers=texts(lambda one: one.manufacturer),
        kernels=texts(lambda one: one.kernel),
        kvp=limits(lambda one: one.kvp, rule.kvp_margin),
        slice_thickness_mm=limits(lambda one: one.slice_thickness_mm, rule.spacing_margin),
        spacing_between_slices_mm=limits(lambda one: one.spacing_between_slices_mm, rule.spacing_margin),
        pixel_spacing_mm=limits(lambda one: one.pixel_spacing_mm, rule.spacing_margin),
    )


def _summary(trained: TrainedModel, cohort: Cohort, identity: ModelIdentity) -> TrainingSummary:
    return TrainingSummary(
        created=identity.created,
        software_version=SOFTWARE_VERSION,
        source=identity.source,
        n_patients=cohort.patients_per_class,
        signature=trained.plan.selection.signature,
        macro_auc=trained.nested.macro.numbers,
        class_auc=tuple(one.numbers for one in trained.nested.each_class),
        accuracy=trained.nested.accuracy.numbers,
        held_out_macro_auc=trained.held_out.numbers,
        baseline_macro_auc=trained.baseline.macro.numbers,
        selection_frequency=trained.selection_frequency[:20],
    )
