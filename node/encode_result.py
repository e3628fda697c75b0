"""From a patient result to all its DICOM objects: the one place that knows which objects there are and their order."""

from collections.abc import Sequence

from pydicom import Dataset

from analysis.errors import EncodingError
from analysis.results import PatientResult
from node.encode_refusal import encode_refused_result
from node.encode_report import encode_report
from node.encode_seg import encode_other_vertebrae, encode_segmentation
from node.encode_sr import encode_measurements
from node.encoded import Attachments, EncodedObject, EncodingSettings, ObjectKind, Predecessor
from node.encoding_task import EncodingTask, make_task
from node.result_uids import patient_inputs


def encode_patient_result(
    result: PatientResult, headers: Sequence[Dataset], settings: EncodingSettings,
    predecessors: Sequence[Predecessor] = (), attachments: Attachments | None = None,
) -> tuple[EncodedObject, ...]:
    """All configured objects of one result.

    Parameters
    ----------
    headers : of the source slices, without pixels, in the order of the label map's first axis
    predecessors : objects of the result that this one supersedes

    Raises
    ------
    EncodingError : the result does not fit the headers
    """
    if not headers or str(headers[0].SeriesInstanceUID) != result.header.series_instance_uid:
        raise EncodingError("the source headers are not those of the analysed series; no object was written")
    inputs = patient_inputs(result, headers, predecessors)
    task = make_task(headers, settings, inputs, predecessors, attachments)
    objects = _reported(result, task) if result.status == "reported" else (encode_refused_result(result, task),)
    return tuple(item for item in objects if item.kind in settings.objects)


def _reported(result: PatientResult, task: EncodingTask) -> tuple[EncodedObject, ...]:
    wanted = task.settings.objects
    segmentations, references = encode_segmentation(result, task)
    evidence = [item.dataset for item in segmentations]
    measurements = encode_measurements(result, references, evidence, task)
    report = encode_report(result, [*evidence, measurements.dataset], task)
    return (*segmentations, measurements, report)
