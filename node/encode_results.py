"""From a result to all its DICOM objects: the one place that knows which objects there are and their order."""

from collections.abc import Sequence

from pydicom import Dataset

from analysis.errors import EncodingError
from analysis.results import PatientResult
from node.encode_pdf import encode_pdf
from node.encode_phantom import encode_phantom_answer
from node.encode_picture import encode_picture
from node.encode_radiomics import encode_radiomics
from node.encode_refusal import encode_refusal, encode_refused_result
from node.encode_report import encode_report
from node.encode_seg import encode_other_vertebrae, encode_segmentation
from node.encode_sr import encode_measurements
from node.encoded import Attachments, EncodedObject, EncodingSettings, ObjectKind, Predecessor
from node.encoding_task import EncodingTask, make_task
from node.result_checks import require_sound
from node.result_uids import patient_inputs

__all__ = ["encode_patient_result", "encode_phantom_answer", "encode_refusal"]


def encode_patient_result(
    result: PatientResult, headers: Sequence[Dataset], settings: EncodingSettings,
    predecessors: Sequence[Predecessor] = (), attachments: Attachments | None = None,
) -> tuple[EncodedObject, ...]:
    """All configured objects of one result, segmentations first so that what refers to them comes after.

    Parameters
    ----------
    headers : of the source slices, without pixels, in the order of the label map's first axis
    predecessors : objects of the result that this one supersedes

    Raises
    ------
    EncodingError : the result does not fit the headers, or a written object contradicts either
    """
    if not headers or str(headers[0].SeriesInstanceUID) != result.header.series_instance_uid:
        raise EncodingError("the source headers are not those of the analysed series; no object was written")
    task = make_task(headers, settings, patient_inputs(result, headers, predecessors), predecessors, attachments)
    if result.status != "reported":
        objects: list[EncodedObject] = [encode_refused_result(result, task)]
    else:
        objects = [*_measured(result, task), *_for_people(result, task)]
    require_sound(objects, headers, result, settings)
    return tuple(item for item in objects if item.kind in settings.objects)


def _measured(result: PatientResult, task: EncodingTask) -> list[EncodedObject]:
    """SEG, measurement SR, readable report, radiomics SR; the reports refer to the SEG even where it is not sent."""
    wanted = task.settings.objects
    segmentations, segments = encode_segmentation(result, task)
    objects = [*segmentations]
    sources = [item.dataset for item in segmentations]
    evidence = [*sources]
    if ObjectKind.MEASUREMENTS in wanted:
        objects.append(encode_measurements(result, segments, sources, task))
        evidence.append(objects[-1].dataset)
    if ObjectKind.REPORT in wanted:
        objects.append(encode_report(result, evidence, task))
    if ObjectKind.RADIOMICS in wanted and (radiomics := encode_radiomics(result, segments, sources, task)) is not None:
        objects.append(radiomics)
    if ObjectKind.OTHER_VERTEBRAE in wanted:
        objects.extend(encode_other_vertebrae(result, task))
    return objects


def _for_people(result: PatientResult, task: EncodingTask) -> list[EncodedObject]:
    """Page and picture, where configured."""
    wanted, picture = task.settings.objects, task.attachments.report_png
    objects = []
    if ObjectKind.PDF in wanted:
        objects.append(encode_pdf(result, task))
    if ObjectKind.PICTURE in wanted and picture is not None:
        objects.append(encode_picture(picture, ObjectKind.PICTURE, "QCT picture", task))
    return objects
