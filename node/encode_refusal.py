"""A refusal in words: a readable report that says "not measured", why, and what to do.

Silence looks like a node that is down, so a refused study gets this report unless the configuration says otherwise.
"""

from collections.abc import Sequence

from pydicom import Dataset

from analysis.results import PatientResult, ProtocolFinding, Reason
from node import codes
from node.encode_report import opening
from node.encoded import Attachments, EncodedObject, EncodingSettings, ObjectKind, Predecessor
from node.encoding_task import EncodingTask, make_task
from node.report_text import action_text, reason_text, scan_sentences
from node.result_uids import series_inputs
from node.sr_document import Section, text_document


def encode_refusal(
    reasons: Sequence[Reason], headers: Sequence[Dataset], settings: EncodingSettings,
    predecessors: Sequence[Predecessor] = (), attachments: Attachments | None = None,
) -> tuple[EncodedObject, ...]:
    """The report of a series that was refused before there was a result; empty when refusals are switched off."""
    if ObjectKind.REFUSAL not in settings.objects:
        return ()
    inputs = series_inputs(headers, settings.software_version)
    task = make_task(headers, settings, inputs, predecessors, attachments)
    return (refusal_document(reasons, (), task),)


def encode_refused_result(result: PatientResult, task: EncodingTask) -> EncodedObject:
    """The report of a refused result, with what was found in the scan."""
    return refusal_document(result.reasons, result.protocol, task)


def refusal_document(
    reasons: Sequence[Reason], protocol: Sequence[ProtocolFinding], task: EncodingTask
) -> EncodedObject:
    """Not measured, why, what to do, and what deviates from the protocol."""
    why = tuple(f"Why: {reason_text(reason)}" for reason in reasons)
    actions = tuple(dict.fromkeys(filter(None, (action_text(reason) for reason in reasons))))
    scan = scan_sentences(protocol) if protocol else ()
    software = f"Software: {task.settings.model_name} {task.settings.software_version}."
    sections = (
        Section(codes.FINDINGS, codes.FINDING, (*opening(task), "Bone density of L1 and L2: NOT MEASURED.", *why)),
        Section(codes.RECOMMENDATIONS, codes.RECOMMENDATION, actions),
        Section(codes.PROCEDURE_DESCRIPTIONS, codes.PROCEDURE_DESCRIPTION, (*scan, software)),
    )
    return text_document(sections, (), task, task.identity(ObjectKind.REFUSAL, "QCT refusal"))
