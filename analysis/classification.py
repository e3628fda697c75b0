"""Radiomic features -> osteoporosis, osteopenia or normal, and whether that answer may be believed.

First the gates: how the images were made, whether the features lie where the training data lay. Then the class
probabilities and a conformal set. An answer that is not a single class, differs between the vertebrae or contradicts
the measured bone density is INDETERMINATE; the density always comes first.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.classification_model import (
    AcquisitionDomain,
    ClassificationModel,
    FeatureDomain,
    load_model,
    probabilities,
)
from analysis.refusals import reason
from analysis.results import (
    BmdSummary,
    Classification,
    RadiomicsPrediction,
    Reason,
    SeriesHeader,
    VertebraFeatures,
)

OK, INDETERMINATE, NOT_EVALUABLE = "OK", "INDETERMINATE", "NOT EVALUABLE"
COVERAGE_FACTOR = 2.0  # of the expanded uncertainty, about 95 % (GUM 6.3.3)
DEMONSTRATION_MODEL = Path(__file__).with_name("models") / "demo_radiomics.json"

Predict = Callable[[tuple[VertebraFeatures, ...], SeriesHeader, BmdSummary], RadiomicsPrediction]


def make_predict(path: Path, contract_sha256: str) -> Predict:
    """Load the model in service and bind it.

    Raises
    ------
    ModelError : the file is missing, changed, or was trained with another extraction contract
    """
    return partial(predict, load_model(path, contract_sha256))


def predict(
    model: ClassificationModel, features: tuple[VertebraFeatures, ...], header: SeriesHeader, summary: BmdSummary
) -> RadiomicsPrediction:
    """The model's answer for one patient, with every reason why it may not be one."""
    if gates := tuple(_not_evaluable(model, features, header)):
        return _answer(model, NOT_EVALUABLE, reasons=gates)
    rows = np.array([_values(one, model.features) for one in features])
    shares = probabilities(model, np.vstack([rows.mean(axis=0), rows]))
    chosen = conformal_set(model, shares[0])
    doubts = tuple(_doubts(model, shares, chosen, summary))
    state = INDETERMINATE if doubts else OK
    return _answer(model, state, shares[0], chosen, doubts)


def conformal_set(model: ClassificationModel, shares: NDArray[np.float64]) -> tuple[str, ...]:
    """The classes that conform to the calibration patients of that class."""
    pairs = zip(model.classes, shares, model.conformal.quantiles, strict=True)
    return tuple(name for name, share, quantile in pairs if 1 - share <= quantile)


def _answer(
    model: ClassificationModel,
    state: str,
    shares: NDArray[np.float64] | None = None,
    chosen: tuple[str, ...] = (),
    reasons: tuple[Reason, ...] = (),
) -> RadiomicsPrediction:
    said = () if shares is None else tuple(zip(model.classes, map(float, shares), strict=True))
    return RadiomicsPrediction(
        state=state,
        classification=Classification(chosen[0]) if state == OK else None,
        probabilities=said,
        conformal_set=chosen,
        conformal_level=model.conformal.level,
        model_name=model.name,
        model_sha256=model.sha256,
        demonstration=model.demonstration,
        reasons=reasons,
    )


def _values(features: VertebraFeatures, names: tuple[str, ...]) -> list[float]:
    found = dict(zip(features.names, features.values, strict=True))
    return [found[name] for name in names]


# --- gates ------------------------------------------------------------------------------------------------------------


def _not_evaluable(
    model: ClassificationModel, features: tuple[VertebraFeatures, ...], header: SeriesHeader
) -> Iterator[Reason]:
    """Why the model must not be asked. Kernel, thickness and voltage hardly show in the features: the header says."""
    usable = list(_unusable(model, features))
    yield from usable
    yield from check_acquisition(model.acquisition, header)
    if not usable:
        for one in features:
            yield from check_domain(model.domain, one)


def _unusable(model: ClassificationModel, features: tuple[VertebraFeatures, ...]) -> Iterator[Reason]:
    levels = tuple(one.level for one in features)
    if sorted(levels) != sorted(model.levels):
        said, wanted = " and ".join(levels) or "none", " and ".join(model.levels)
        yield reason("RADIOMICS_LEVELS", f"{said} measured; the model was trained on {wanted}")
    for one in features:
        missing = {*model.features, *model.domain.names} - set(one.names)
        if one.reason is not None:
            yield one.reason
        elif one.contract_sha256 != model.contract_sha256:
            found, expected = one.contract_sha256[:12], model.contract_sha256[:12]
            yield reason("RADIOMICS_CONTRACT", f"{one.level}: extraction {found}; the model needs {expected}")
        elif missing or not all(map(math.isfinite, one.values)):
            yield reason("RADIOMICS_INPUT", f"{one.level}: {len(missing)} features missing or not finite")


def check_acquisition(domain: AcquisitionDomain, header: SeriesHeader) -> Iterator[Reason]:
    """The scan against those of the training. What the header does not state is unknown, never equal."""
    if header.contrast_bolus_agent:
        yield reason("RADIOMICS_ACQUISITION", f"contrast agent {header.contrast_bolus_agent}; unenhanced expected")
    texts = (
        ("manufacturer", header.manufacturer, domain.manufacturers),
        ("kernel", header.convolution_kernel, domain.kernels),
    )
    for name, text, known in texts:
        if known and (text or "").strip().upper() not in {one.upper() for one in known}:
            yield reason("RADIOMICS_ACQUISITION", f"{name} {text or 'not stated'}; trained with {', '.join(known)}")
    numbers = (
        ("kVp", header.kvp, domain.kvp),
        ("slice thickness mm", header.slice_thickness_mm, domain.slice_thickness_mm),
        ("slice spacing mm", header.spacing_between_slices_mm, domain.spacing_between_slices_mm),
        ("pixel spacing mm", max(header.pixel_spacing_mm), domain.pixel_spacing_mm),
    )
    for name, value, limits in numbers:
        if limits and not (value is not None and limits[0] <= value <= limits[1]):
            said = "not stated" if value is None else f"{value:g}"
            yield reason("RADIOMICS_ACQUISITION", f"{name} {said}; trained with {limits[0]:g} to {limits[1]:g}")


def check_domain(domain: FeatureDomain, features: VertebraFeatures) -> Iterator[Reason]:
    """The features of one vertebra against those of the training: each in its range, all together near enough."""
    if not domain.voxels[0] <= features.n_voxels <= domain.voxels[1]:
        wanted = f"{domain.voxels[0]:.0f} to {domain.voxels[1]:.0f}"
        yield reason("RADIOMICS_DOMAIN", f"{features.level}: VOI of {features.n_voxels} voxels; trained with {wanted}")
    values = np.array(_values(features, domain.names))
    for name, value, low, high in zip(domain.names, values, domain.low, domain.high, strict=True):
        if not low <= value <= high:
            said = f"{features.level}: {name} {value:.4g}; trained with {low:.4g} to {high:.4g}"
            yield reason("RADIOMICS_DOMAIN", said)
    if (distance2 := mahalanobis2(domain, values)) > domain.max_distance2:
        said = f"squared distance {distance2:.1f} from the training data; at most {domain.max_distance2:.1f} expected"
        yield reason("RADIOMICS_DOMAIN", f"{features.level}: {said}")


def mahalanobis2(domain: FeatureDomain, values: NDArray[np.float64]) -> float:
    """Squared Mahalanobis distance of one vertebra's feature logarithms."""
    offset = log_features(values, np.array(domain.log_scale)) - np.array(domain.log_mean)
    return float(offset @ np.array(domain.precision) @ offset)


def log_features(values: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms that keep the sign, since some features are negative."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values) / scale))


# --- doubts -----------------------------------------------------------------------------------------------------------


def _doubts(
    model: ClassificationModel, shares: NDArray[np.float64], chosen: tuple[str, ...], summary: BmdSummary
) -> Iterator[Reason]:
    """Why no single class may be stated."""
    if len(chosen) != 1:
        level = f"{model.conformal.level:.0%}"
        yield reason("RADIOMICS_UNDECIDED", f"{level} set: {', '.join(chosen) or 'no class'}; a single class expected")
    each = [model.classes[k] for k in shares[1:].argmax(axis=1)]
    if len(set(each)) > 1:
        yield reason("RADIOMICS_UNDECIDED", f"the vertebrae differ: {', '.join(each)}")
    if len(chosen) == 1:
        yield from check_against_bmd(Classification(chosen[0]), summary)


def check_against_bmd(found: Classification, summary: BmdSummary) -> Iterator[Reason]:
    """A class contradicts the density when its range lies outside the density's expanded uncertainty."""
    low, high = summary.limits_mg_cm3
    if summary.classification is None:
        yield reason("RADIOMICS_UNDECIDED", f"{found} cannot be checked: no limits for {summary.material}")
        return
    ranges = {
        Classification.OSTEOPOROSIS: (-math.inf, low),
        Classification.OSTEOPENIA: (low, high),
        Classification.NORMAL: (high, math.inf),
    }
    bmd, margin = summary.bmd_mg_cm3, COVERAGE_FACTOR * summary.u_bmd_mg_cm3
    if bmd + margin < ranges[found][0] or bmd - margin > ranges[found][1]:
        said = f"{found} from texture, {summary.classification} from {bmd:.1f} +- {margin:.1f} mg/cm3"
        yield reason("RADIOMICS_CONTRADICTION", f"{said}; the density counts")
