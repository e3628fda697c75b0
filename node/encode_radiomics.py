"""Radiomic features -> TID 1500 SR in a series of its own, for machines: one TID 1411 group per VOI.

Without outlines on purpose: a viewer would paint 93 lines over the image. Feature codes are IBSI's; each feature states
the software and the extraction contract that it depends on, since the code alone does not make it reproducible.
"""

import math
from collections.abc import Sequence
from importlib.metadata import version

from highdicom.sr import (
    AlgorithmIdentification,
    ContainerContentItem,
    ContentSequence,
    FindingSite,
    Measurement,
    MeasurementReport,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.coding import Code

from analysis.errors import EncodingError
from analysis.radiomic_features import ExtractionContract
from analysis.results import PatientResult, RadiomicsPrediction, VertebraFeatures
from node import codes
from node.encode_seg import SegmentReference
from node.encoded import EncodedObject, ObjectKind
from node.encoding_task import EncodingTask
from node.report_text import reason_text
from node.segments import SegmentKind
from node.source_headers import ascii_text
from node.sr_document import measurement_document, observation_context, text_item

#: First-order features that are CT numbers; all others have no unit.
_IN_HU = frozenset(
    f"firstorder_{name}" for name in (
        "10Percentile", "90Percentile", "InterquartileRange", "Maximum", "Mean", "MeanAbsoluteDeviation", "Median",
        "Minimum", "Range", "RobustMeanAbsoluteDeviation", "RootMeanSquared",
    )
)


def encode_radiomics(
    result: PatientResult, segments: Sequence[SegmentReference], segmentations: Sequence[Dataset], task: EncodingTask
) -> EncodedObject | None:
    """The radiomics SR; None when no vertebra has features."""
    described = [features for features in result.features if features.values]
    if not described:
        return None
    groups = [_group(features, segments, task, _model_answer(result, task)) for features in described]
    report = MeasurementReport(
        observation_context=observation_context(task), procedure_reported=codes.PROCEDURE_REPORTED,
        imaging_measurements=groups, title=codes.MEASUREMENT_REPORT_TITLE,
    )[0]
    report.ContentSequence.append(_report_texts(result, task))
    identity = task.identity(ObjectKind.RADIOMICS, "Radiomics")
    return measurement_document(report, segmentations, task, identity)


def _group(
    features: VertebraFeatures, segments: Sequence[SegmentReference], task: EncodingTask,
    answers: list[QualitativeEvaluation],
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    segment = next(
        (s for s in segments if s.kind is SegmentKind.VOI and s.levels == (features.level,)), None
    )
    if segment is None:
        raise EncodingError(f"features of {features.level} have no VOI segment to refer to")
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(task.tracking_uid(segment.name), segment.name),
        referenced_segment=ReferencedSegment(
            segment.sop_class_uid, segment.sop_instance_uid, segment.number,
            source_series=SourceSeriesForSegmentation(task.series_instance_uid),
        ),
        finding_type=codes.BONE_TISSUE, finding_sites=[FindingSite(codes.vertebra_code(features.level))],
        method=codes.RADIOMICS_METHOD, measurements=_measurements(features), qualitative_evaluations=answers or None,
    )


def _measurements(features: VertebraFeatures) -> list[Measurement]:
    algorithm = AlgorithmIdentification(
        name="pyradiomics", version=version("pyradiomics"),
        parameters=[f"extraction contract SHA-256 {features.contract_sha256}"],
    )
    items = []
    for name, value in zip(features.names, features.values, strict=True):
        if math.isfinite(value):
            code = _feature_code(name)
            unit = codes.HU if name in _IN_HU else codes.NO_UNITS
            items.append(Measurement(code.code, float(value) + code.added, unit, algorithm_id=algorithm))
    return items


def _feature_code(name: str) -> codes.FeatureCode:
    """Code of a feature; one that is not among the 93 gets a private code made of its name."""
    known = codes.feature_codes().get(name)
    if known is None:
        raise EncodingError(f"radiomic feature {name!r} has no code in node/ibsi_codes.csv; add it there")
    return known


def _model_answer(result: PatientResult, task: EncodingTask) -> list[QualitativeEvaluation]:
    """The site model's category: only when a site model is active, never a demonstration model's."""
    prediction = result.prediction
    if prediction is None or not _may_answer(prediction, task) or prediction.classification is None:
        return []
    return [QualitativeEvaluation(codes.RADIOMICS_ANSWER, codes.CLASSIFICATION[prediction.classification])]


def _may_answer(prediction: RadiomicsPrediction, task: EncodingTask) -> bool:
    return task.settings.radiomics_model_active and not prediction.demonstration and prediction.state == "OK"


def _report_texts(result: PatientResult, task: EncodingTask) -> ContainerContentItem:
    texts: list[tuple[Code, str]] = [(codes.USE_STATEMENT, task.settings.use_statement)]
    texts.extend((codes.EXTRACTION_SETTINGS, text) for text in _extraction_texts(result))
    texts.extend(
        (codes.QUALITY_FLAG, f"{features.level}: {reason_text(features.reason)}")
        for features in result.features if features.reason is not None
    )
    if result.prediction is not None and _may_answer(result.prediction, task):
        texts.append((codes.RADIOMICS_ANSWER, _prediction_text(result.prediction)))
    container = ContainerContentItem(
        codes.QUALITATIVE_EVALUATIONS, is_content_continuous=False, relationship_type=RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence([text_item(name, text) for name, text in texts])
    return container


def _extraction_texts(result: PatientResult) -> list[str]:
    """The contract in words when it is the one that this software ships, else its hash only."""
    used = dict.fromkeys(features.contract_sha256 for features in result.features)
    known = ExtractionContract()
    return [
        f"{known} SHA-256 {sha256}" if sha256 == known.sha256 else f"SHA-256 {sha256}" for sha256 in used
    ]


def _prediction_text(prediction: RadiomicsPrediction) -> str:
    shares = ", ".join(f"{name} {share:.2f}" for name, share in prediction.probabilities)
    return ascii_text(
        f"{prediction.classification} ({shares}; {100 * prediction.conformal_level:g} % set: "
        f"{', '.join(prediction.conformal_set)}), model "
        f"{prediction.model_name} SHA-256 {prediction.model_sha256}"
    )
