"""The model card in Markdown, written beside every model: what it is for, what it rests on, where it must not be used.

The items follow CLEAR (Kocak 2023, 10.1186/s13244-023-01415-8) and TRIPOD+AI (Collins 2024, 10.1136/bmj-2023-078378);
what the training cannot know is written as such.
"""

from collections.abc import Iterator

import numpy as np

from analysis.classification_model import CLASS_NAMES, ClassificationModel
from analysis.classification_statistics import confusion, log_loss
from analysis.training.radiomics import TrainedModel, tempered
from analysis.training.radiomics_table import Cohort

Numbers = tuple[float, float, float]
UNKNOWN = "not known"


def model_card(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> str:
    """The whole card."""
    sections = (_head, _purpose, _data, _method, _performance, _selection, _domain, _limits, _checklist)
    lines = [line for section in sections for line in (*section(model, trained, cohort), "")]
    return "\n".join(lines).rstrip() + "\n"


def _interval(numbers: Numbers) -> str:
    return f"{numbers[0]:.3f} ({numbers[1]:.3f}-{numbers[2]:.3f})"


def _head(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    yield f"# Model card: {model.name}"
    yield ""
    if model.demonstration:
        yield "**DEMONSTRATION MODEL: trained on simulated spines. It says nothing about patients, and its answers"
        yield "never enter a report as a finding.**"
        yield ""
    yield f"- SHA-256 `{model.sha256}`, made {model.training.created} by qct-node {model.training.software_version}"
    yield f"- extraction contract `{model.contract_sha256}` ({model.contract['version']}, {model.contract['engine']})"
    yield f"- data: {model.training.source}"


def _purpose(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    yield "## Intended use"
    yield ""
    yield "A second reading of the vertebrae whose density was measured by QCT: osteoporosis, osteopenia or normal from"
    yield "the texture of the trabecular bone. The measured density comes first; an answer that contradicts it is"
    yield "INDETERMINATE. Not a diagnosis, not for fractured or instrumented vertebrae, not for other levels than"
    yield f"{' and '.join(model.levels)}, not for scans outside the domain below."


def _data(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield "| class (by trabecular density) | patients |"
    yield "|---|---|"
    for name, n in zip(CLASS_NAMES, model.training.n_patients, strict=True):
        yield f"| {name} | {n} |"
    yield ""
    low, high = model.limits_mg_cm3
    yield f"Reference standard: QCT, osteoporosis below {low:g} mg/cm3, normal above {high:g} mg/cm3. "
    known = cohort.bmd_mg_cm3[np.isfinite(cohort.bmd_mg_cm3)]
    if len(known):
        yield f"Density of the studies: {known.mean():.1f} +- {known.std():.1f} mg/cm3 ({len(known)} studies)."
    yield f"{len(cohort.patients)} studies of {len(set(cohort.patients))} patients; {len(cohort.left_out)} left out."


def _method(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    plan = trained.plan
    yield "## Method"
    yield ""
    steps = {
        "stepwise": f"RFE to {plan.selection.after_rfe}, mRMR to {plan.selection.after_mrmr}, LASSO",
        "seed": "the six features of the published Table S2, without selection",
    }
    yield f"- signature `{model.training.signature}`: {steps.get(model.training.signature, 'mean HU')}"
    kind = "multinomial logistic regression" if model.kind == "logistic" else "random forest"
    yield f"- {kind} on the mean of {' and '.join(model.levels)}; temperature {model.temperature:.3f}; no class weights"
    yield f"- nested cross-validation: {plan.outer_folds} outer folds x {plan.repeats}, {plan.inner_folds} inner folds,"
    yield "  split by patient; selection and tuning inside every fold"
    n = ", ".join(str(count) for count in model.conformal.n_calibration)
    rule, fitted = model.conformal, ", ".join(map(str, trained.fitting.patients_per_class))
    yield f"- fitted and cross-validated on one part of the patients ({fitted} per class); the other part ({n}) only"
    yield f"  gives the Mondrian conformal sets: at least {rule.level:.0%} of each class with {rule.confidence:.0%}"
    yield "  confidence over the draw of those patients (Vovk 2012), for new patients like them"
    if everyone := [name for name, quantile in zip(CLASS_NAMES, rule.quantiles, strict=True) if quantile == 1]:
        yield f"- too few calibration patients for that: {', '.join(everyone)} stands in every set"


def _performance(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    summary, shares = model.training, tempered(trained.nested.shares[0], trained.temperature)
    yield "## Performance (nested estimate, 95 % intervals)"
    yield ""
    yield "| | this model | mean HU alone |"
    yield "|---|---|---|"
    yield f"| macro AUC | {_interval(summary.macro_auc)} | {_interval(summary.baseline_macro_auc)} |"
    each = zip(CLASS_NAMES, trained.nested.each_class, trained.baseline.each_class, strict=True)
    for name, own, baseline in each:
        yield f"| AUC {name} | {own} | {baseline} |"
    yield f"| accuracy | {trained.nested.accuracy} | {trained.baseline.accuracy} |"
    loss = [log_loss(one, trained.fitting.classes) for one in (shares, trained.baseline.shares[0])]
    yield f"| log loss | {loss[0]:.3f} | {loss[1]:.3f} |"
    yield f"| macro AUC of this very model on the calibration patients | {trained.held_out} | |"
    yield ""
    yield "Confusion (rows by density, columns by answer, first repeat):"
    yield ""
    yield "| | " + " | ".join(CLASS_NAMES) + " |"
    yield "|---|" + "---|" * len(CLASS_NAMES)
    for name, row in zip(CLASS_NAMES, confusion(shares.argmax(axis=1), trained.fitting.classes), strict=True):
        yield f"| {name} | " + " | ".join(str(n) for n in row) + " |"
    yield ""
    yield "The class is defined by density, so mean HU is the baseline to beat. Curves: `performance.png`."


def _selection(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    yield "## Features"
    yield ""
    yield f"In the model: {', '.join(f'`{name}`' for name in model.features)}."
    yield ""
    if trained.plan.selection.signature == "stepwise":
        yield f"Selected in {trained.plan.bootstraps} bootstraps over patients; one selected set is one draw:"
        yield ""
        yield "| feature | share of bootstraps |"
        yield "|---|---|"
        for name, share in trained.selection_frequency[:15]:
            yield f"| {name} | {share:.2f} |"


def _domain(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    domain, acquired = model.domain, model.acquisition
    yield "## Domain: outside it the answer is NOT EVALUABLE"
    yield ""
    yield "| attribute | allowed |"
    yield "|---|---|"
    yield f"| manufacturer | {', '.join(acquired.manufacturers) or UNKNOWN + ', not checked'} |"
    yield f"| kernel | {', '.join(acquired.kernels) or UNKNOWN + ', not checked'} |"
    for name in ("kvp", "slice_thickness_mm", "spacing_between_slices_mm", "pixel_spacing_mm"):
        limits = getattr(acquired, name)
        said = f"{limits[0]:.4g} to {limits[1]:.4g}" if limits else f"{UNKNOWN}, not checked"
        yield f"| {name} | {said} |"
    yield "| contrast agent | none |"
    yield f"| voxels of the VOI | {domain.voxels[0]:.0f} to {domain.voxels[1]:.0f} |"
    for name, low, high in zip(domain.names, domain.low, domain.high, strict=True):
        yield f"| {name} | {low:.4g} to {high:.4g} |"
    yield f"| squared Mahalanobis distance of the logarithms | at most {domain.max_distance2:.1f} |"


def _limits(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    yield "## Failure modes"
    yield ""
    yield "- No texture feature survives a change of kernel, dose, spacing and VOI size together: other scanners or"
    yield "  protocols need their own data, which the domain above enforces only where the header states it."
    yield "- Conformal coverage holds for patients like those of the training; under a shift it is lost."
    yield "- Prevalence differs between sites: check the calibration on own data before the shares are quoted."
    yield "- No external validation is part of this card."


def _checklist(model: ClassificationModel, trained: TrainedModel, cohort: Cohort) -> Iterator[str]:
    """The items that the training can answer, in the order of the checklists."""
    plan = trained.plan
    items = (
        ("CLEAR: radiomics in title, study type", "three-class texture model, development with internal validation"),
        ("CLEAR: eligibility", f"reported QCT of {' and '.join(model.levels)}, all features finite"),
        ("CLEAR: acquisition protocol", "see Domain"),
        ("CLEAR: segmentation", "automatic trabecular VOI of the QCT measurement; no manual step"),
        ("CLEAR: preprocessing", f"{model.contract['grid_mm']:g} mm, {model.contract['interpolation']}"),
        ("CLEAR: discretisation", f"width {model.contract['bin_width_hu']:g} HU, edges {_edges(model)}"),
        ("CLEAR: feature classes, software", f"93 original-image features, {model.contract['engine']}"),
        ("CLEAR: dimension reduction inside validation", "yes, see Method"),
        ("CLEAR: class imbalance", "no weights, no resampling"),
        ("CLEAR: model availability", "this JSON file, complete"),
        ("TRIPOD+AI 6-7: data source, participants", f"{model.training.source}; demographics {UNKNOWN}"),
        ("TRIPOD+AI 8: outcome", f"trabecular density, limits {model.limits_mg_cm3[0]:g}/{model.limits_mg_cm3[1]:g}"),
        ("TRIPOD+AI 10: sample size", f"at least {plan.min_patients_per_class} patients per class required"),
        ("TRIPOD+AI 11: missing data", f"{len(cohort.left_out)} incomplete studies left out"),
        ("TRIPOD+AI 12: analysis, tuning, calibration", "see Method"),
        ("TRIPOD+AI 14: fairness", f"{UNKNOWN}: the table holds neither age nor sex"),
        ("TRIPOD+AI 23: performance with intervals", "see Performance"),
        ("TRIPOD+AI 25-27: limitations, use", "see Failure modes and Intended use"),
    )
    yield "## Checklist"
    yield ""
    yield "| item | |"
    yield "|---|---|"
    for item, said in items:
        yield f"| {item} | {said} |"


def _edges(model: ClassificationModel) -> str:
    anchor = model.contract["bin_anchor_hu"]
    return "from the minimum of the ROI (library)" if anchor is None else f"anchored at {anchor:g} HU"
