"""A three-class radiomics model as data: JSON with a SHA-256 over its content. No pickle, nothing that can run code.

The file holds everything that an answer rests on: features and their extraction contract, scaler, classifier,
temperature, conformal quantiles, the domain of the training data, and a summary of the training.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.errors import ModelError

SCHEMA = "qct-node/radiomics-model/2"
CLASS_NAMES = ("osteoporosis", "osteopenia", "normal")  # in the order of rising density


@dataclass(frozen=True, slots=True)
class LogisticClassifier:
    """Multinomial logistic regression on standardised features: (classes, features) and (classes,)."""

    coefficients: tuple[tuple[float, ...], ...]
    intercepts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """One decision tree as arrays over its nodes; `feature` -1 marks a leaf, `shares` are its class probabilities."""

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ForestClassifier:
    """Random forest: the mean of its trees' class probabilities."""

    trees: tuple[Tree, ...]


Classifier = LogisticClassifier | ForestClassifier


@dataclass(frozen=True, slots=True)
class FeatureDomain:
    """Where the vertebrae of the training lay: a range for each feature, and an ellipsoid of their logarithms.

    log_scale : a value's logarithm is sign(x) log(1 + |x| / scale), defined for values of either sign
    precision : inverse covariance of the logarithms (Ledoit and Wolf 2004)
    max_distance2 : largest squared Mahalanobis distance
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log_scale: tuple[float, ...]
    log_mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    max_distance2: float
    voxels: tuple[float, float]  # fewest and most voxels of the VOI


@dataclass(frozen=True, slots=True)
class AcquisitionDomain:
    """How the training data was acquired; an empty entry was unknown then and is not checked."""

    manufacturers: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    kvp: tuple[float, float] | None = None
    slice_thickness_mm: tuple[float, float] | None = None
    spacing_between_slices_mm: tuple[float, float] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ConformalRule:
    """Mondrian conformal sets: class k belongs to the set when 1 - p_k is at most its own quantile (Vovk 2005).

    Of each class at least `level` of new patients are held, with `confidence` over the draw of the calibration patients
    (Vovk 2012), none of whom the model was fitted to.
    """

    level: float
    confidence: float
    quantiles: tuple[float, ...]
    n_calibration: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What was measured when the model was made; intervals are 95 %."""

    created: str  # ISO time
    software_version: str
    source: str
    n_patients: tuple[int, ...]  # per class; those of the fit and of the calibration
    signature: str
    macro_auc: tuple[float, float, float]  # nested estimate, low, high
    class_auc: tuple[tuple[float, float, float], ...]
    accuracy: tuple[float, float, float]
    held_out_macro_auc: tuple[float, float, float]  # of the model itself, on the calibration patients
    baseline_macro_auc: tuple[float, float, float]  # mean HU alone, the same nested validation
    selection_frequency: tuple[tuple[str, float], ...]  # over bootstraps, most frequent first


@dataclass(frozen=True, slots=True)
class ClassificationModel:
    """One model, complete: what it reads, how it answers, where it may be asked, and what it rests on."""

    name: str
    demonstration: bool  # trained on simulated spines: never a finding
    classes: tuple[str, ...]
    levels: tuple[str, ...]  # the features are the mean over these vertebrae
    features: tuple[str, ...]
    contract: Mapping[str, Any]
    contract_sha256: str
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    kind: Literal["logistic", "forest"]
    classifier: Classifier
    temperature: float
    conformal: ConformalRule
    domain: FeatureDomain
    acquisition: AcquisitionDomain
    limits_mg_cm3: tuple[float, float]  # of the classes' reference, trabecular BMD
    training: TrainingSummary
    sha256: str = ""


def probabilities(model: ClassificationModel, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Class probabilities (n, classes) of raw features (n, features), after temperature scaling (Guo 2017)."""
    standard = (np.atleast_2d(values) - np.array(model.mean)) / np.array(model.sd)
    logits = class_logits(model.classifier, standard) / model.temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def class_logits(classifier: Classifier, standard: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the class probabilities up to a constant, (n, classes), of standardised features."""
    if isinstance(classifier, LogisticClassifier):
        return np.asarray(standard @ np.array(classifier.coefficients).T + np.array(classifier.intercepts))
    shares = np.mean([_tree_shares(tree, standard) for tree in classifier.trees], axis=0)
    return log_shares(shares)


def log_shares(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of probabilities; a share of zero counts as one in two thousand, so that it stays comparable."""
    return np.asarray(np.log(np.maximum(shares, 1 / 2000)))


def _tree_shares(tree: Tree, standard: NDArray[np.float64]) -> NDArray[np.float64]:
    feature, threshold = np.array(tree.feature), np.array(tree.threshold)
    left, right = np.array(tree.left), np.array(tree.right)
    node = np.zeros(len(standard), int)
    rows = np.arange(len(standard))
    while (inner := feature[node] >= 0).any():
        values = standard[rows, np.maximum(feature[node], 0)].astype(np.float32)  # as scikit-learn compares them
        node = np.where(inner, np.where(values <= threshold[node], left[node], right[node]), node)
    return np.array(tree.shares)[node]


# --- the file ---------------------------------------------------------------------------------------------------------


def seal(model: ClassificationModel) -> ClassificationModel:
    """The model with the SHA-256 of its content."""
    return replace(model, sha256=_digest(_content(model)))


def model_text(model: ClassificationModel) -> str:
    """The file's text: the content and its SHA-256."""
    content = _content(model)
    return json.dumps(content | {"sha256": _digest(content)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _content(model: ClassificationModel) -> dict[str, Any]:
    content = {"schema": SCHEMA} | asdict(model)
    del content["sha256"]
    return dict(json.loads(json.dumps(content)))  # tuples become lists, as they come back from the file


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_model(path: Path, contract_sha256: str | None = None) -> ClassificationModel:
    """Read and check a model file.

    Parameters
    ----------
    contract_sha256 : of the extraction that the node uses; a model of another one is refused

    Raises
    ------
    ModelError : missing, no model, of another schema, changed since it was written, or for another extraction
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"radiomics model {path}: {error}; expected a file written by train radiomics") from error
    return parse_model(content, str(path), contract_sha256)


def parse_model(content: Any, said: str, contract_sha256: str | None = None) -> ClassificationModel:
    """A model from the values of its file; `said` names it in messages.

    Raises
    ------
    ModelError : see load_model
    """
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ModelError(f"radiomics model {said}: schema {schema!r}, expected {SCHEMA!r}; train a new model")
    written = content.pop("sha256", None)
    if (found := _digest(content)) != written:
        raise ModelError(
            f"radiomics model {said}: content has SHA-256 {found}, the file states {written}; it was changed or "
            "damaged: restore it"
        )
    model = _model(content, said, found)
    if contract_sha256 is not None and model.contract_sha256 != contract_sha256:
        raise ModelError(
            f"radiomics model {said}: trained with extraction {model.contract_sha256[:12]} "
            f"({model.contract.get('version')}), the node extracts with {contract_sha256[:12]}; set radiomics.bins "
            "as in its training, or train a new model"
        )
    return model


def _model(content: dict[str, Any], said: str, sha256: str) -> ClassificationModel:
    parts = {"conformal": ConformalRule, "domain": FeatureDomain, "acquisition": AcquisitionDomain,
             "training": TrainingSummary}  # fmt: skip
    try:
        values = {name: _frozen(content[name]) for name in _names(ClassificationModel) if name not in parts}
        values |= {name: _part(kind, content[name]) for name, kind in parts.items()}
        values["contract"] = content["contract"]
        values["classifier"] = _classifier(content["kind"], content["classifier"])
        model = ClassificationModel(**values, sha256=sha256)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"radiomics model {said}: incomplete ({error!r}); train a new model") from error
    _check_shape(model, said)
    return model


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "sha256"]


def _part(kind: Any, content: dict[str, Any]) -> Any:
    return kind(**{name: _frozen(content[name]) for name in _names(kind)})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _classifier(kind: str, content: dict[str, Any]) -> Classifier:
    if kind == "forest":
        return ForestClassifier(tuple(_part(Tree, tree) for tree in content["trees"]))
    return LogisticClassifier(_frozen(content["coefficients"]), _frozen(content["intercepts"]))


def _check_shape(model: ClassificationModel, said: str) -> None:
    n = len(model.features)
    sizes = {"mean": len(model.mean), "sd": len(model.sd)}
    if isinstance(model.classifier, LogisticClassifier):
        sizes["coefficients"] = len(model.classifier.coefficients[0])
    wrong = {name: size for name, size in sizes.items() if size != n}
    numbers = (*model.mean, *model.sd, model.temperature, *model.conformal.quantiles)
    if wrong or model.classes != CLASS_NAMES or not all(map(math.isfinite, numbers)) or min(model.sd) <= 0:
        raise ModelError(f"radiomics model {said}: does not fit its {n} features and 3 classes ({wrong}); train anew")
