"""Result -> readable report: TID 2000, two levels deep, one sentence per item, in an Enhanced or Basic Text SR.

This is what most viewers show. Order: use statement, vertebrae, mean with class and limits, calibration, scan findings,
quality flags.
"""

from collections.abc import Sequence

from pydicom import Dataset

from analysis.errors import EncodingError
from analysis.results import PatientResult
from node import codes
from node.encoded import EncodedObject, ObjectKind
from node.encoding_task import EncodingTask
from node.report_text import (
    budget_sentence,
    calibration_sentence,
    change_sentence,
    flag_sentences,
    scan_sentences,
    software_sentence,
    summary_sentences,
    vertebra_sentence,
)
from node.sr_document import Section, text_document


def encode_report(result: PatientResult, evidence: Sequence[Dataset], task: EncodingTask) -> EncodedObject:
    """The readable report of a reported result; `evidence` are our SEG and measurement SR."""
    identity = task.identity(ObjectKind.REPORT, "QCT report")
    return text_document(report_sections(result, task), evidence, task, identity)


def report_sections(result: PatientResult, task: EncodingTask) -> tuple[Section, ...]:
    """Headings and sentences, also used for the PDF."""
    summary = result.summary
    if summary is None or result.chosen is None:
        raise EncodingError("a reported result has no mean or no calibration; cannot write its report")
    values = tuple(vertebra_sentence(vertebra, summary.material) for vertebra in result.vertebrae)
    change = () if result.change is None else (change_sentence(result.change),)
    scan = (calibration_sentence(result.chosen), *scan_sentences(result.protocol))
    trust = (*flag_sentences(result), budget_sentence(summary), software_sentence(result, task.settings.model_name))
    return (
        Section(codes.FINDINGS, codes.FINDING, (*opening(task), *values)),
        Section(codes.IMPRESSIONS, codes.IMPRESSION, (*summary_sentences(summary), *change)),
        Section(codes.PROCEDURE_DESCRIPTIONS, codes.PROCEDURE_DESCRIPTION, (*scan, *trust)),
    )


def opening(task: EncodingTask) -> tuple[str, ...]:
    """The use statement, and that this amends an earlier report when it does."""
    statement = f"{task.settings.use_statement.rstrip('.')}."
    if not task.predecessors:
        return (statement,)
    return statement, "Amended report: it replaces the earlier automatic bone density report of this scan."
