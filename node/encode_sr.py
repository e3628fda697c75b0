"""Result -> measurement SR: TID 1500 in a Comprehensive 3D SR (PS3.16 TID 1500, 1410, 1411, 4019).

Each VOI has two groups with one Tracking UID. The TID 1411 group refers to its segment and carries all values: that is
what machines read. The TID 1410 group holds a closed polyline on one slice and no values: viewers that need image
coordinates merge the two by their Tracking UID and paint the outline with the values. A group without such a partner
blanks the whole report in OHIF, so every group has one.
"""

from collections.abc import Sequence
from typing import TypeAlias

from highdicom.sr import (
    AlgorithmIdentification,
    ContainerContentItem,
    ContentSequence,
    FindingSite,
    GraphicTypeValues,
    ImageRegion,
    Measurement,
    MeasurementReport,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForRegion,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.coding import Code

from analysis.errors import EncodingError
from analysis.results import BmdSummary, PatientResult, VertebraBmd
from analysis.version import SOFTWARE_NAME
from node import codes
from node.encode_seg import SegmentReference
from node.encoded import EncodedObject, ObjectKind
from node.encoding_task import EncodingTask
from node.report_text import (
    COVERAGE_FACTOR,
    all_flags,
    calibration_sentence,
    change_sentence,
    limits_text,
    reason_text,
    reference_sentence,
    scan_sentences,
)
from node.segments import SegmentKind
from node.source_headers import ascii_text
from node.sr_document import measurement_document, observation_context, text_item
from node.voi_outlines import Outline, outlines_of

Group: TypeAlias = VolumetricROIMeasurementsAndQualitativeEvaluations | PlanarROIMeasurementsAndQualitativeEvaluations


def encode_measurements(
    result: PatientResult, segments: Sequence[SegmentReference], segmentations: Sequence[Dataset], task: EncodingTask
) -> EncodedObject:
    """The measurement SR of a reported result; `segments` say where each VOI lies in `segmentations`."""
    summary = _summary(result)
    groups: list[Group] = []
    for outline in outlines_of(result):
        values = _values(outline.levels, result, summary)
        answers = _answers(summary) if outline.levels == summary.levels else []
        groups.extend(_groups(outline, segments, values, answers, task))
    report = MeasurementReport(
        observation_context=observation_context(task), procedure_reported=codes.PROCEDURE_REPORTED,
        imaging_measurements=groups, title=codes.MEASUREMENT_REPORT_TITLE,
    )[0]
    report.ContentSequence.append(_report_texts(result, summary, task))
    identity = task.identity(ObjectKind.MEASUREMENTS, "QCT data")
    return measurement_document(report, segmentations, task, identity)


def measurement(
    name: Code, value: float, unit: Code, decimals: int, algorithm: AlgorithmIdentification
) -> Measurement:
    """A NUM item: its decimal string is rounded for people, its Floating Point Value is exact for machines."""
    item = Measurement(name=name, value=float(value), unit=unit, algorithm_id=algorithm)
    measured = item[0].MeasuredValueSequence[0]
    measured.NumericValue = f"{value:.{decimals}f}"
    measured.FloatingPointValue = float(value)
    return item


def voi_algorithm(result: PatientResult) -> AlgorithmIdentification:
    """How the VOI came about: rule version and networks with their hashes (TID 4019)."""
    rule = result.vois[0].rule_version
    models = [f"{model.name} {model.version} SHA-256 {model.sha256}" for model in result.models]
    return AlgorithmIdentification(
        name=f"{SOFTWARE_NAME} trabecular VOI", version=result.software_version,
        parameters=[ascii_text(text) for text in (f"VOI rule {rule}", *models)],
        family=codes.ARTIFICIAL_INTELLIGENCE,
    )


def _values(levels: tuple[str, ...], result: PatientResult, summary: BmdSummary) -> list[Measurement]:
    if len(levels) > 1:
        volume_mm3 = sum(vertebra.voi_volume_mm3 for vertebra in result.vertebrae)
        return [*_density(summary.bmd_mg_cm3, summary.u_bmd_mg_cm3, result, summary),
                measurement(codes.VOLUME, volume_mm3 / 1000, codes.CM3, 2, voi_algorithm(result))]
    vertebra = next(item for item in result.vertebrae if item.level == levels[0])
    return [*_density(vertebra.bmd_mg_cm3, vertebra.u_bmd_mg_cm3, result, summary), *_of_vertebra(vertebra, result)]


def _density(bmd_mg_cm3: float, u_mg_cm3: float, result: PatientResult, summary: BmdSummary) -> list[Measurement]:
    algorithm = _calibration_algorithm(result)
    return [
        measurement(codes.VBMD[summary.material], bmd_mg_cm3, codes.MG_PER_CM3, 1, algorithm),
        measurement(codes.VBMD_UNCERTAINTY, COVERAGE_FACTOR * u_mg_cm3, codes.MG_PER_CM3, 1, algorithm),
    ]


def _of_vertebra(vertebra: VertebraBmd, result: PatientResult) -> list[Measurement]:
    algorithm = voi_algorithm(result)
    return [
        measurement(codes.VBMD_SD, vertebra.sd_bmd_mg_cm3, codes.MG_PER_CM3, 1, _calibration_algorithm(result)),
        measurement(codes.MEAN_HU, vertebra.mean_hu, codes.HU, 1, algorithm),
        measurement(codes.SD_HU, vertebra.sd_hu, codes.HU, 1, algorithm),
        measurement(codes.VOLUME, vertebra.voi_volume_mm3 / 1000, codes.CM3, 2, algorithm),
    ]


def _calibration_algorithm(result: PatientResult) -> AlgorithmIdentification:
    """Asynchronous calibration with all that is needed to repeat it, as algorithm parameters (TID 4019)."""
    chosen = result.chosen
    if chosen is None:
        raise EncodingError("a reported result has no calibration; cannot write its measurements")
    calibration, line = chosen.calibration, chosen.line
    parameters = (
        f"phantom {calibration.phantom_type} serial {calibration.phantom_serial}",
        f"phantom scan {calibration.acquired:%Y-%m-%d %H:%M} UTC, series {calibration.series_instance_uid}",
        f"age {chosen.age_days:.2f} days", f"material {line.material}",
        f"slope {line.sigma_ct:.6f} HU per mg/cm3", f"intercept {line.beta_ct:.4f} HU",
        f"interpolation weight {chosen.interpolation_weight:.3f} towards {chosen.bracketing_id}",
    )
    return AlgorithmIdentification(
        name=f"{SOFTWARE_NAME} asynchronous QCT calibration", version=result.software_version,
        parameters=[ascii_text(text) for text in parameters],
    )


def _groups(
    outline: Outline, segments: Sequence[SegmentReference], values: list[Measurement],
    answers: list[QualitativeEvaluation], task: EncodingTask,
) -> list[Group]:
    """The value group and its drawn partner. Without a segment (label map union) the drawn group has the values."""
    reference = next((s for s in segments if s.kind is SegmentKind.VOI and s.levels == outline.levels), None)
    if reference is None:
        return [_drawn_group(outline, task, values, answers)]
    name = outline.name
    volumetric = VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(task.tracking_uid(name), name),
        referenced_segment=ReferencedSegment(
            reference.sop_class_uid, reference.sop_instance_uid, reference.number,
            source_series=SourceSeriesForSegmentation(task.series_instance_uid),
        ),
        finding_type=codes.BONE_TISSUE, finding_sites=[FindingSite(codes.region_code(outline.levels))],
        method=codes.ASYNCHRONOUS_QCT, measurements=values, qualitative_evaluations=answers or None,
    )
    return [volumetric, _drawn_group(outline, task)]


def _drawn_group(
    outline: Outline, task: EncodingTask, values: list[Measurement] | None = None,
    answers: list[QualitativeEvaluation] | None = None,
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    source = task.images[outline.slice_index]
    image = SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(task.tracking_uid(outline.name), outline.name),
        referenced_region=ImageRegion(GraphicTypeValues.POLYLINE, outline.points, image),
        finding_type=codes.BONE_TISSUE, finding_sites=[FindingSite(codes.region_code(outline.levels))],
        method=codes.ASYNCHRONOUS_QCT if values else None, measurements=values, qualitative_evaluations=answers or None,
    )


def _answers(summary: BmdSummary) -> list[QualitativeEvaluation]:
    if summary.classification is None:
        return []
    return [
        QualitativeEvaluation(codes.BMD_CATEGORY, codes.CLASSIFICATION[summary.classification]),
        QualitativeEvaluation(codes.BORDERLINE, codes.YES if summary.borderline else codes.NO),
    ]


def _report_texts(result: PatientResult, summary: BmdSummary, task: EncodingTask) -> ContainerContentItem:
    """Qualitative Evaluations at report level: use, calibration, limits, scan findings, flags."""
    container = ContainerContentItem(
        codes.QUALITATIVE_EVALUATIONS, is_content_continuous=False, relationship_type=RelationshipTypeValues.CONTAINS
    )
    texts = [(codes.USE_STATEMENT, task.settings.use_statement), (codes.CATEGORY_LIMITS, limits_text(summary))]
    if result.chosen is not None:
        texts.append((codes.CALIBRATION_METHOD, calibration_sentence(result.chosen)))
    texts.extend((codes.SCAN_FINDING, sentence) for sentence in scan_sentences(result.protocol))
    texts.extend((codes.QUALITY_FLAG, f"{flag.code}: {reason_text(flag)}") for flag in all_flags(result))
    if summary.reference is not None:
        texts.append((codes.POPULATION_REFERENCE, reference_sentence(summary.reference)))
    if result.change is not None:
        texts.append((codes.CHANGE, change_sentence(result.change)))
    container.ContentSequence = ContentSequence([text_item(name, text) for name, text in texts])
    return container


def _summary(result: PatientResult) -> BmdSummary:
    if result.summary is None or not result.vertebrae:
        raise EncodingError("a reported result has no vertebra or no mean; cannot write its measurements")
    return result.summary
