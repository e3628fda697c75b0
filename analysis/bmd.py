"""BMD of the vertebrae through the chosen calibration, its uncertainty by term, its class, and its change.

HU = sigma * density + beta for the phantom's material, so density = (HU - beta) / sigma (QCT PRO User Guide v5.0).
Standard uncertainties are combined in quadrature (GUM). Terms that all vertebrae of a study share (the calibration
line, the scanner's reproducibility, body size) do not shrink in the mean; terms of one vertebra do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from analysis.errors import AnalysisError, VoiError
from analysis.refusals import reason
from analysis.results import (
    BmdSummary,
    CalibrationLine,
    ChosenCalibration,
    Classification,
    LongitudinalChange,
    Material,
    Reason,
    Reference,
    RejectedVertebra,
    UncertaintyTerm,
    VertebraBmd,
    Voi,
)
from analysis.volume import CtVolume

LINE_TERM = "calibration line"
# What a comparison of two scans on one scanner and phantom does not see: it is the same error both times.
LONG_TERM_SHARED = (LINE_TERM, "body size", "size correction", "rod position")
# Given for 100 mg/cm3; they grow with the density.
RELATIVE_TERMS = ("body size", "size correction", "rod position")


@dataclass(frozen=True, slots=True)
class BmdUncertainties:
    """Standard uncertainties that no single scan can show. Defaults and sources: docs/bmd.md."""

    reproducibility_mg_cm3: float = 0.6  # weekly, 0.6 % at 100 mg/cm3 (Bligh 2009)
    drift_mg_cm3: float = 0.2
    position_mg_cm3: float = 0.7  # table height within 20 mm of the calibration
    tube_state_mg_cm3: float = 0.5
    placement_fraction: float = 0.012  # short-term repositioning, Bligh 2009
    noise_correlation_mm3: float = 10.0  # volume over which noise and texture are one value


@dataclass(frozen=True, slots=True)
class BmdLimits:
    """Classes, flags and refusals. Classes are valid on `material`'s scale only."""

    material: Material = Material.K2HPO4
    osteoporosis_below_mg_cm3: float = 80.0
    normal_above_mg_cm3: float = 120.0
    borderline_factor: float = 1.645  # one-sided 95 %
    flag_difference_mg_cm3: float = 20.0
    refuse_difference_mg_cm3: float = 30.0
    voi_mean_hu: tuple[float, float] = (-50.0, 350.0)
    internal_check_mg_cm3: float = 20.0
    preferred_levels: tuple[str, ...] = ("L1", "L2")
    fallback_levels: tuple[str, ...] = ("L3", "T12")
    minimum_vertebrae: int = 2  # 1: a single vertebra may be reported under its own name


@dataclass(frozen=True, slots=True)
class SummaryContext:
    """What the summary states besides the vertebrae."""

    chosen: ChosenCalibration
    rejected: tuple[RejectedVertebra, ...] = ()
    reference: Reference | None = None
    internal_check_mg_cm3: float | None = None
    water_equivalent_diameter_mm: float | None = None
    limits: BmdLimits = field(default_factory=BmdLimits)


@dataclass(frozen=True, slots=True)
class EarlierResult:
    """An earlier summary of the same patient on the same scanner key."""

    acquired: datetime
    levels: tuple[str, ...]
    bmd_mg_cm3: float
    material: Material
    terms: tuple[UncertaintyTerm, ...]
    voi_rule_version: str


def choose_levels(present: Sequence[str], rejected: Sequence[str], limits: BmdLimits) -> tuple[str, ...]:
    """The levels to measure, given those that the segmentation holds and those that were tried and rejected.

    Preferred levels first; each one missing or rejected is replaced by the next configured fallback. Call again after
    each rejection until all chosen levels are measured.

    Raises
    ------
    AnalysisError
        NO_USABLE_VERTEBRA when none is left, TOO_FEW_VERTEBRAE when fewer than the configured minimum are.
    """
    usable = [level for level in present if level not in rejected]
    chosen = [level for level in limits.preferred_levels if level in usable]
    spare = [level for level in limits.fallback_levels if level in usable and level not in chosen]
    chosen += spare[: len(limits.preferred_levels) - len(chosen)]
    tried = f"found {', '.join(present) or 'none'}; rejected {', '.join(rejected) or 'none'}"
    if not chosen:
        raise AnalysisError("NO_USABLE_VERTEBRA", f"no usable vertebra among the configured levels: {tried}")
    if len(chosen) < limits.minimum_vertebrae:
        raise AnalysisError(
            "TOO_FEW_VERTEBRAE", f"{len(chosen)} usable vertebra, expected {limits.minimum_vertebrae}: {tried}"
        )
    return tuple(chosen)


def measure_vertebra(
    volume: CtVolume,
    voi: Voi,
    chosen: ChosenCalibration,
    uncertainties: BmdUncertainties | None = None,
    *,
    extra_terms: tuple[UncertaintyTerm, ...] = (),
    level_confidence: float = 1.0,
    limits: BmdLimits | None = None,
) -> VertebraBmd:
    """Mean HU in the VOI through the chosen line, with its budget.

    extra_terms : from the protocol findings and the body size

    Raises
    ------
    VoiError
        VOI_HU_RANGE when the mean is outside what trabecular bone can have.
    """
    mean_hu, sd_hu, effective_n = weighted_statistics(volume, voi)
    low, high = (limits or BmdLimits()).voi_mean_hu
    if not low <= mean_hu <= high:
        raise VoiError(
            "VOI_HU_RANGE", f"mean of the VOI in {voi.level} is {mean_hu:.0f} HU; expected {low:g} to {high:g} HU"
        )
    line = chosen.line
    bmd = line.to_bmd_mg_cm3(mean_hu)
    own = _own_terms(bmd, sd_hu / line.sigma_ct, (effective_n, voi.volume_mm3), uncertainties or BmdUncertainties())
    shared = _shared_terms(line, bmd, (*chosen.terms, *extra_terms), uncertainties or BmdUncertainties())
    terms = (*shared, *own)
    return VertebraBmd(
        level=voi.level,
        bmd_mg_cm3=bmd,
        u_bmd_mg_cm3=combine(terms),
        sd_bmd_mg_cm3=sd_hu / line.sigma_ct,
        mean_hu=mean_hu,
        sd_hu=sd_hu,
        n_voxels=float(voi.weights.sum()),
        voi_volume_mm3=voi.volume_mm3,
        voi_depth_mm=voi.depth_mm,
        voi_cancellous_fraction=voi.cancellous_fraction,
        voi_centre_lps_mm=voi.centre_lps_mm,
        terms=terms,
        level_confidence=level_confidence,
        flags=voi.flags,
        voi_rule_version=voi.rule_version,
    )


def weighted_statistics(volume: CtVolume, voi: Voi) -> tuple[float, float, float]:
    """Mean and sd of HU under the VOI's weights, and the effective number of voxels (sum w)^2 / sum w^2."""
    box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
    hu = np.asarray(volume.hu[box], dtype=np.float64)
    weights = voi.weights.astype(np.float64)
    total = float(weights.sum())
    mean = float((weights * hu).sum()) / total
    variance = float((weights * (hu - mean) ** 2).sum()) / total
    return mean, float(np.sqrt(variance)), total**2 / float((weights**2).sum())


def line_uncertainty_mg_cm3(line: CalibrationLine, bmd_mg_cm3: float) -> float:
    """u of the density from the line: u^2 = (u_beta^2 + rho^2 u_sigma^2 + 2 rho cov) / sigma^2 (inverse prediction).

    Since the gradient of a mean is the mean of the gradients, the same formula at the mean density gives the mean's
    uncertainty with the covariance of the shared line fully taken into account.
    """
    (var_sigma, cov), (_, var_beta) = line.covariance
    variance = (var_beta + bmd_mg_cm3**2 * var_sigma + 2.0 * bmd_mg_cm3 * cov) / line.sigma_ct**2
    return float(np.sqrt(max(variance, 0.0)))


def combine(terms: Sequence[UncertaintyTerm]) -> float:
    """Root of the sum of squares, mg/cm3."""
    return float(np.sqrt(sum(term.u_mg_cm3**2 for term in terms)))


def _own_terms(
    bmd: float, sd_bmd: float, effective: tuple[float, float], uncertainties: BmdUncertainties
) -> tuple[UncertaintyTerm, ...]:
    """Terms of one vertebra; effective : number of voxels, volume of the VOI in mm3."""
    voxels, volume_mm3 = effective
    independent = min(voxels, volume_mm3 / uncertainties.noise_correlation_mm3)
    noise = sd_bmd / float(np.sqrt(independent))
    placement = uncertainties.placement_fraction * abs(bmd)
    return UncertaintyTerm("VOI noise", noise, False), UncertaintyTerm("VOI placement", placement, False)


def _shared_terms(
    line: CalibrationLine, bmd: float, given: tuple[UncertaintyTerm, ...], uncertainties: BmdUncertainties
) -> tuple[UncertaintyTerm, ...]:
    """The line, the scanner's own terms, and those given; a given term replaces the default of the same name."""
    defaults = (
        UncertaintyTerm(LINE_TERM, line_uncertainty_mg_cm3(line, bmd), True),
        UncertaintyTerm("reproducibility", uncertainties.reproducibility_mg_cm3, True),
        UncertaintyTerm("drift", uncertainties.drift_mg_cm3, True),
        UncertaintyTerm("position", uncertainties.position_mg_cm3, True),
        UncertaintyTerm("tube state", uncertainties.tube_state_mg_cm3, True),
    )
    names = {term.name for term in given}
    given = tuple(
        replace(term, u_mg_cm3=term.u_mg_cm3 * abs(bmd) / 100.0) if term.name in RELATIVE_TERMS else term
        for term in given
    )
    return (*(term for term in defaults if term.name not in names), *given)


def summarise(vertebrae: Sequence[VertebraBmd], context: SummaryContext) -> BmdSummary:
    """The mean of the vertebrae with its uncertainty, class and flags.

    Raises
    ------
    AnalysisError
        LEVELS_DISAGREE when the vertebrae differ by more than the limit.
    """
    limits, line = context.limits, context.chosen.line
    bmd = float(np.mean([vertebra.bmd_mg_cm3 for vertebra in vertebrae]))
    terms = mean_terms(vertebrae, line)
    u = combine(terms)
    same_scale = line.material == limits.material
    cuts = (limits.osteoporosis_below_mg_cm3, limits.normal_above_mg_cm3)
    return BmdSummary(
        levels=tuple(vertebra.level for vertebra in vertebrae),
        bmd_mg_cm3=bmd,
        u_bmd_mg_cm3=u,
        material=line.material,
        classification=classify(bmd, limits) if same_scale else None,
        limits_mg_cm3=cuts,
        borderline=same_scale and min(abs(bmd - cut) for cut in cuts) < limits.borderline_factor * u,
        terms=terms,
        reference=context.reference,
        internal_check_mg_cm3=context.internal_check_mg_cm3,
        water_equivalent_diameter_mm=context.water_equivalent_diameter_mm,
        rejected=context.rejected,
        flags=(*_level_flags(vertebrae, limits), *_scale_flags(bmd, context)),
        voi_rule_version=vertebrae[0].voi_rule_version,
    )


def classify(bmd_mg_cm3: float, limits: BmdLimits) -> Classification:
    """Both limits themselves are osteopenia."""
    if bmd_mg_cm3 < limits.osteoporosis_below_mg_cm3:
        return Classification.OSTEOPOROSIS
    return Classification.NORMAL if bmd_mg_cm3 > limits.normal_above_mg_cm3 else Classification.OSTEOPENIA


def mean_terms(vertebrae: Sequence[VertebraBmd], line: CalibrationLine) -> tuple[UncertaintyTerm, ...]:
    """Budget of the mean: the line at the mean density, other shared terms as they are, own terms averaged."""
    count = len(vertebrae)
    mean = sum(vertebra.bmd_mg_cm3 for vertebra in vertebrae) / count
    terms = []
    for position, term in enumerate(vertebrae[0].terms):
        values = np.array([vertebra.terms[position].u_mg_cm3 for vertebra in vertebrae])
        if term.name == LINE_TERM:
            u = line_uncertainty_mg_cm3(line, mean)
        else:
            u = float(values.mean()) if term.shared else float(np.sqrt((values**2).sum())) / count
        terms.append(replace(term, u_mg_cm3=u))
    return tuple(terms)


def _level_flags(vertebrae: Sequence[VertebraBmd], limits: BmdLimits) -> tuple[Reason, ...]:
    levels = [vertebra.level for vertebra in vertebrae]
    flags = []
    fallback = [level for level in levels if level not in limits.preferred_levels]
    if fallback:
        preferred = "-".join(limits.preferred_levels)
        flags.append(reason("FALLBACK_LEVEL", f"{' and '.join(levels)} measured instead of {preferred}"))
    if len(levels) == 1:
        flags.append(reason("SINGLE_VERTEBRA", f"only {levels[0]} could be measured; this is no mean of two vertebrae"))
    values = [vertebra.bmd_mg_cm3 for vertebra in vertebrae]
    difference = max(values) - min(values)
    text = f"{' and '.join(levels)} differ by {difference:.1f} mg/cm3"
    if difference > limits.refuse_difference_mg_cm3:
        raise AnalysisError("LEVELS_DISAGREE", f"{text}; expected at most {limits.refuse_difference_mg_cm3:g}")
    if difference > limits.flag_difference_mg_cm3:
        flags.append(reason("LEVELS_DIFFER", f"{text}; expected at most {limits.flag_difference_mg_cm3:g}"))
    return tuple(flags)


def _scale_flags(bmd: float, context: SummaryContext) -> tuple[Reason, ...]:
    limits, material = context.limits, context.chosen.line.material
    flags = []
    if material != limits.material:
        flags.append(
            reason("CALIBRATION_MATERIAL", f"measured in {material} equivalent, limits are for {limits.material}")
        )
    check = context.internal_check_mg_cm3
    if check is not None and abs(check - bmd) > limits.internal_check_mg_cm3:
        text = f"internal calibration gives {check:.0f}, the phantom {bmd:.0f} mg/cm3"
        flags.append(reason("INTERNAL_CHECK_DIFFERS", f"{text}; expected within {limits.internal_check_mg_cm3:g}"))
    return tuple(flags)


def compare_with_earlier(summary: BmdSummary, earlier: EarlierResult) -> LongitudinalChange | None:
    """Change since an earlier result and whether it exceeds the least significant change.

    LSC = 1.96 * sqrt(u1^2 + u2^2) over the terms that differ from scan to scan (2.77 u for equal u, ISCD). The
    calibration line's certificate and the body size are the same both times and drop out. None when the levels,
    the material or the rule that places the VOI differ: such results are not compared.
    """
    quantity = (summary.levels, summary.material, summary.voi_rule_version)
    if quantity != (earlier.levels, earlier.material, earlier.voi_rule_version):
        return None
    now, then = (
        combine([term for term in terms if term.name not in LONG_TERM_SHARED])
        for terms in (summary.terms, earlier.terms)
    )
    least = 1.96 * float(np.hypot(now, then))
    change = summary.bmd_mg_cm3 - earlier.bmd_mg_cm3
    return LongitudinalChange(earlier.acquired, earlier.bmd_mg_cm3, change, least, abs(change) > least)
