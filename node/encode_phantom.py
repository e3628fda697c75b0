"""The answer to a phantom scan, in the phantom's own study: a small readable report and a chart.

The physicist sees at the console whether this week's scan is accepted, with every gate, without logging in anywhere.
"""

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.sr.coding import Code

from analysis.results import Calibration, Gate, Reason
from node import codes
from node.encode_picture import encode_picture
from node.encoded import Attachments, EncodedObject, EncodingSettings, ObjectKind
from node.encoding_task import EncodingTask, make_task
from node.report_text import action_text, reason_text
from node.result_uids import phantom_inputs, series_inputs
from node.source_headers import ascii_text
from node.sr_document import Section, text_document


def encode_phantom_answer(
    answer: Calibration | Sequence[Reason], headers: Sequence[Dataset], chart_png: bytes | None,
    settings: EncodingSettings, attachments: Attachments | None = None,
) -> tuple[EncodedObject, ...]:
    """Report and chart of a phantom scan.

    Parameters
    ----------
    answer : the calibration, accepted or not; or the reasons why there is none
    """
    if isinstance(answer, Calibration):
        inputs = phantom_inputs(answer, headers)
    else:
        inputs = series_inputs(headers, settings.software_version)
    task = make_task(headers, settings, inputs, attachments=attachments)
    objects = [_report(answer, task)]
    if chart_png is not None:
        objects.append(encode_picture(chart_png, ObjectKind.PHANTOM_CHART, "QCT phantom", task))
    return tuple(item for item in objects if item.kind in settings.objects)


def _report(answer: Calibration | Sequence[Reason], task: EncodingTask) -> EncodedObject:
    if isinstance(answer, Calibration):
        sections = _calibration_sections(answer, task)
    else:
        sections = _refusal_sections(answer, task)
    return text_document(sections, (), task, task.identity(ObjectKind.PHANTOM_REPORT, "QCT phantom"))


def _calibration_sections(calibration: Calibration, task: EncodingTask) -> tuple[Section, ...]:
    line = calibration.line
    verdict = "ACCEPTED" if calibration.accepted else "NOT ACCEPTED"
    result = (
        f"QCT phantom {calibration.phantom_serial} ({calibration.phantom_type}): calibration {verdict}.",
        f"Slope {line.sigma_ct:.4f} HU per mg/cm3, intercept {line.beta_ct:.2f} HU, {line.material}-equivalent; "
        f"r2 {line.r2:.5f}, standard error {line.see_hu:.2f} HU.",
        *(f"Why not: {reason_text(reason)}" for reason in calibration.reasons),
    )
    rods = tuple(
        f"Rod {rod.name}: mean {rod.hu:.1f} HU, SD {rod.sd_hu:.1f} HU, {rod.n_voxels} voxels"
        for rod in calibration.measurement.rods
    )
    return (
        _section(codes.FINDINGS, codes.FINDING, (task.settings.use_statement, *result)),
        _section(codes.RECOMMENDATIONS, codes.RECOMMENDATION, _actions(calibration.reasons)),
        _section(codes.PROCEDURE_DESCRIPTIONS, codes.PROCEDURE_DESCRIPTION,
                 (*rods, *(_gate(gate) for gate in calibration.gates), _software(task))),
    )


def _refusal_sections(reasons: Sequence[Reason], task: EncodingTask) -> tuple[Section, ...]:
    why = (f"Why: {reason_text(reason)}" for reason in reasons)
    return (
        _section(codes.FINDINGS, codes.FINDING,
                 (task.settings.use_statement, "QCT phantom: NOT MEASURED, no calibration was made.", *why)),
        _section(codes.RECOMMENDATIONS, codes.RECOMMENDATION, _actions(reasons)),
        _section(codes.PROCEDURE_DESCRIPTIONS, codes.PROCEDURE_DESCRIPTION, (_software(task),)),
    )


def _section(heading: Code, item: Code, sentences: Sequence[str]) -> Section:
    return Section(heading, item, tuple(ascii_text(sentence) for sentence in sentences))


def _actions(reasons: Sequence[Reason]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (action_text(reason) for reason in reasons))))


def _gate(gate: Gate) -> str:
    low = "" if gate.low is None else f"{gate.low:g} <= "
    high = "" if gate.high is None else f" <= {gate.high:g}"
    return f"Check {gate.name}: {gate.value:.4g} ({low}value{high}): {'passed' if gate.passed else 'FAILED'}"


def _software(task: EncodingTask) -> str:
    return f"Software: {task.settings.model_name} {task.settings.software_version}."
