"""The science, step by step. Start here. No step knows another; only this file knows their order.

phantom   find and measure the rods -> fit -> gates                                     -> Calibration
patient   scan check -> choose calibration -> segment, name levels -> contrast -> HU scale -> VOI -> BMD -> texture
                                                                                        -> PatientResult
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from analysis.bmd import (
    BmdLimits,
    BmdUncertainties,
    EarlierResult,
    SummaryContext,
    choose_levels,
    compare_with_earlier,
    measure_vertebra,
    summarise,
)
from analysis.body_size import SizeRule, correct_for_size, measure_body_size
from analysis.calibration import CalibrationLimits, build_calibration
from analysis.contrast import ContrastEvidence, ContrastLimits, detect_contrast
from analysis.errors import AnalysisError, NoVertebraError, VoiError
from analysis.internal_check import TissueLimits, Tissues, check_hu_scale, internal_bmd_mg_cm3, measure_tissues
from analysis.phantom import looks_like_phantom, measure_phantom
from analysis.protocol import ProtocolReference, check_protocol
from analysis.radiomic_features import ExtractionContract, extract_features
from analysis.reference_data import find_reference, unknown_person
from analysis.refusals import reason
from analysis.results import (
    BmdSummary,
    Calibration,
    ChosenCalibration,
    LongitudinalChange,
    ModelUsed,
    PatientResult,
    PhantomSpec,
    ProtocolFinding,
    RadiomicsPrediction,
    Reason,
    RejectedVertebra,
    Segmentation,
    SeriesHeader,
    Severity,
    UncertaintyTerm,
    VertebraBmd,
    VertebraFeatures,
    Voi,
)
from analysis.segmentation import Networks, SegmentationLimits, models_used
from analysis.segmentation_backend import segment_with
from analysis.version import SOFTWARE_VERSION
from analysis.vertebra_checks import VertebraLimits, check_vertebra
from analysis.voi import place_voi
from analysis.voi_rule import VoiRule
from analysis.volume import CtVolume

Predict = Callable[[tuple[VertebraFeatures, ...], SeriesHeader, BmdSummary], RadiomicsPrediction | None]


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """The limits and rules of every step; the configuration's analysis sections map on to these."""

    protocol: ProtocolReference = field(default_factory=ProtocolReference)
    segmentation: SegmentationLimits = field(default_factory=SegmentationLimits)
    vertebra: VertebraLimits = field(default_factory=VertebraLimits)
    voi: VoiRule = field(default_factory=VoiRule)
    bmd: BmdLimits = field(default_factory=BmdLimits)
    uncertainties: BmdUncertainties = field(default_factory=BmdUncertainties)
    size: SizeRule = field(default_factory=SizeRule)
    contrast: ContrastLimits = field(default_factory=ContrastLimits)
    tissues: TissueLimits = field(default_factory=TissueLimits)
    extraction: ExtractionContract = field(default_factory=ExtractionContract)


@dataclass(frozen=True, slots=True, eq=False)
class Toolkit:
    """What is loaded once and used for every patient.

    predict : None until a site has a radiomics model
    phantoms : registered phantoms, to tell a phantom scan that was labelled as a patient
    backend : of the segmentation, "vbnet" or "totalsegmentator"
    """

    networks: Networks
    settings: AnalysisSettings
    predict: Predict | None = None
    phantoms: tuple[PhantomSpec, ...] = ()
    backend: str = "vbnet"

    @property
    def models(self) -> tuple[ModelUsed, ...]:
        return models_used(self.networks)


@dataclass(frozen=True, slots=True, eq=False)
class PatientScan:
    """One patient series and what is known around it.

    choose : answers the calibration that this header may use, or raises NoValidCalibrationError
    """

    volume: CtVolume
    header: SeriesHeader
    choose: Callable[[SeriesHeader], ChosenCalibration]
    earlier: EarlierResult | None = None


def analyse_phantom(
    volume: CtVolume, header: SeriesHeader, spec: PhantomSpec, limits: CalibrationLimits | None = None
) -> Calibration:
    """Measure a phantom scan and fit its line; a line that fails its gates is a result with reasons.

    Raises
    ------
    PhantomNotFoundError : the series shows no QCT calibration phantom
    PhantomUnusableError : it shows one that cannot be measured
    """
    return build_calibration(header, spec, measure_phantom(volume, spec), limits)


def analyse_patient(scan: PatientScan, toolkit: Toolkit) -> PatientResult:
    """Measure one patient series. Whatever cannot be measured comes back as status "refused" with reasons."""
    course = _Course(scan, toolkit)
    try:
        for step in STEPS:
            with course.timed(step.__name__.strip("_")):
                step(course)
    except AnalysisError as refusal:
        course.reasons += _explain(refusal, course)
    return course.result()


def _explain(refusal: AnalysisError, course: "_Course") -> list[Reason]:
    """The refusal, what was wrong with each vertebra, and whether the "patient" is a phantom."""
    found = [Reason(refusal.code, refusal.text), *(rejected.reason for rejected in course.rejected)]
    if refusal.code == "NO_SPINE" and looks_like_phantom(course.scan.volume, course.toolkit.phantoms):
        text = "the series shows a calibration phantom but is labelled as a patient; send it as a phantom scan"
        found.append(reason("PHANTOM_AS_PATIENT", text))
    return found


@dataclass(slots=True)
class _Course:
    """What the steps have found so far for one patient."""

    scan: PatientScan
    toolkit: Toolkit
    protocol: tuple[ProtocolFinding, ...] = ()
    chosen: ChosenCalibration | None = None
    segmentation: Segmentation | None = None
    contrast: ContrastEvidence | None = None
    tissues: Tissues | None = None
    diameter_mm: float | None = None
    vois: dict[str, Voi] = field(default_factory=dict)
    vertebrae: dict[str, VertebraBmd] = field(default_factory=dict)
    rejected: list[RejectedVertebra] = field(default_factory=list)
    extra_terms: tuple[UncertaintyTerm, ...] = ()
    summary: BmdSummary | None = None
    features: tuple[VertebraFeatures, ...] = ()
    prediction: RadiomicsPrediction | None = None
    change: LongitudinalChange | None = None
    reasons: list[Reason] = field(default_factory=list)
    flags: list[Reason] = field(default_factory=list)
    timings_s: list[tuple[str, float]] = field(default_factory=list)

    @property
    def settings(self) -> AnalysisSettings:
        return self.toolkit.settings

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s.append((name, time.perf_counter() - start_s))

    def result(self) -> PatientResult:
        reported = not self.reasons
        levels = self.summary.levels if self.summary else ()
        return PatientResult(
            status="reported" if reported else "refused",
            reasons=tuple(self.reasons),
            header=self.scan.header,
            protocol=self.protocol,
            chosen=self.chosen,
            segmentation=self.segmentation,
            vois=tuple(self.vois[level] for level in levels) if reported else (),
            vertebrae=tuple(self.vertebrae[level] for level in levels) if reported else (),
            summary=self.summary if reported else None,
            features=self.features if reported else (),
            prediction=self.prediction if reported else None,
            change=self.change if reported else None,
            flags=tuple(dict.fromkeys(self.flags)),
            models=self.toolkit.models,
            software_version=SOFTWARE_VERSION,
            timings_s=tuple(self.timings_s),
        )


def _check_scan(course: _Course) -> None:
    """Protocol and calibration are judged together, so that one refusal names everything that is wrong."""
    course.protocol = check_protocol(course.scan.header, course.settings.protocol)
    course.reasons += [f.reason for f in course.protocol if f.severity is Severity.REFUSED and f.reason]
    course.flags += [f.reason for f in course.protocol if f.severity is not Severity.REFUSED and f.reason]
    course.extra_terms = tuple(
        UncertaintyTerm(f"protocol: {f.attribute}", f.u_mg_cm3, True) for f in course.protocol if f.u_mg_cm3 > 0
    )
    course.chosen = course.scan.choose(course.scan.header)
    course.flags += course.chosen.flags
    if course.reasons:
        refusal = course.reasons.pop()
        raise AnalysisError(refusal.code, refusal.text)


def _segment(course: _Course) -> None:
    tools, limits = course.toolkit, course.settings.segmentation
    course.segmentation = segment_with(tools.backend, course.scan.volume, tools.networks, limits)
    course.flags += course.segmentation.flags


def _check_tissues(course: _Course) -> None:
    """Contrast and HU scale are judged together: a scale that is off can look like contrast, and both are then named.

    Enhanced blood says nothing about the scale.
    """
    assert course.segmentation
    volume, settings = course.scan.volume, course.settings
    course.contrast = detect_contrast(volume, course.segmentation, settings.contrast)
    blood_hu = None if course.contrast.enhanced else course.contrast.aorta_hu
    course.tissues = measure_tissues(volume, course.segmentation, blood_hu)
    refused: tuple[Reason, ...] = ()
    for found, action in (
        (course.contrast.reasons, settings.protocol.contrast),
        (check_hu_scale(course.tissues, settings.tissues), settings.tissues.outside),
    ):
        if action == "refuse":
            refused += found
        else:
            course.flags += found
    if refused:
        first, *others = refused
        course.reasons += others
        raise AnalysisError(first.code, first.text)


def _correct_size(course: _Course) -> None:
    assert course.segmentation and course.chosen
    levels = course.settings.bmd.preferred_levels
    size = measure_body_size(course.scan.volume, course.segmentation, levels)
    if size.truncated_near_spine:
        text = f"{size.truncated_fraction:.0%} of the body's outline at the edge of the field of view, near the spine"
        raise AnalysisError("BODY_TRUNCATED", f"{text}; expected inside; reconstruct with a larger field of view")
    course.diameter_mm = size.water_equivalent_diameter_mm
    corrected, terms, flags = correct_for_size(course.chosen, course.diameter_mm, course.settings.size)
    course.chosen, course.flags = corrected, [*course.flags, *flags]
    course.extra_terms += terms


def _measure(course: _Course) -> None:
    """Measure the preferred levels; replace each unusable one by the next fallback until none is left to try."""
    present = _named_levels(course)
    while True:
        wanted = choose_levels(present, [r.level for r in course.rejected], course.settings.bmd)
        missing = [level for level in wanted if level not in course.vertebrae]
        if not missing:
            course.vertebrae = {level: course.vertebrae[level] for level in wanted}
            return
        for level in missing:
            _measure_level(course, level)


def _named_levels(course: _Course) -> list[str]:
    """The levels whose name is sure enough; raises when the preferred ones are there but uncertain."""
    assert course.segmentation
    minimum = course.settings.segmentation.min_level_confidence
    sure = [level.name for level in course.segmentation.levels if level.confidence >= minimum]
    doubtful = [level for level in course.segmentation.levels if level.confidence < minimum]
    if doubtful and not set(course.settings.bmd.preferred_levels) & set(sure):
        said = ", ".join(f"{level.name} {level.confidence:.2f}" for level in doubtful)
        raise NoVertebraError(
            "LEVEL_UNCERTAIN", f"level confidence {said}; at least {minimum:g} expected for L1 and L2"
        )
    return sure


def _measure_level(course: _Course, level: str) -> None:
    assert course.segmentation and course.chosen
    found = check_vertebra(course.scan.volume, course.segmentation, level, course.settings.vertebra)
    if found:
        course.rejected += [RejectedVertebra(level, why) for why in found]
        return
    try:
        voi = place_voi(course.scan.volume, course.segmentation, level, course.settings.voi)
        confidence = next(v.confidence for v in course.segmentation.levels if v.name == level)
        course.vertebrae[level] = measure_vertebra(
            course.scan.volume,
            voi,
            course.chosen,
            course.settings.uncertainties,
            extra_terms=course.extra_terms,
            level_confidence=confidence,
            limits=course.settings.bmd,
        )
        course.vois[level] = voi
    except VoiError as error:
        course.rejected.append(RejectedVertebra(level, Reason(error.code, error.text)))


def _summarise(course: _Course) -> None:
    assert course.chosen and course.tissues and course.diameter_mm is not None
    header, line = course.scan.header, course.chosen.line
    vertebrae = tuple(course.vertebrae.values())
    mean_hu = sum(v.mean_hu for v in vertebrae) / len(vertebrae)
    mean_bmd = sum(v.bmd_mg_cm3 for v in vertebrae) / len(vertebrae)
    scan = (header.kvp or course.settings.protocol.kvp, course.diameter_mm)
    context = SummaryContext(
        chosen=course.chosen,
        rejected=tuple(course.rejected),
        reference=find_reference(mean_bmd, line.material, header.patient_sex, header.patient_age_years),
        internal_check_mg_cm3=internal_bmd_mg_cm3(course.tissues, mean_hu, scan, line.material),
        water_equivalent_diameter_mm=course.diameter_mm,
        limits=course.settings.bmd,
    )
    course.summary = summarise(vertebrae, context)
    course.flags += (*course.summary.flags, *unknown_person(header.patient_sex, header.patient_age_years))
    if course.scan.earlier:
        course.change = compare_with_earlier(course.summary, course.scan.earlier)


def _read_texture(course: _Course) -> None:
    """Texture never stands in the way of the density: a VOI that cannot be described keeps its reason."""
    assert course.summary
    vois = [course.vois[level] for level in course.summary.levels]
    course.features = tuple(extract_features(course.scan.volume, v, course.settings.extraction) for v in vois)
    if course.toolkit.predict:
        course.prediction = course.toolkit.predict(course.features, course.scan.header, course.summary)


STEPS = (_check_scan, _segment, _check_tissues, _correct_size, _measure, _summarise, _read_texture)
