"""The one-page PDF: what was measured, where, with which calibration, and how far from the limits.

A4 portrait, drawn by matplotlib with the base fonts; no patient identity on the page, which the PDF's DICOM header has.
"""

from io import BytesIO
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from analysis.errors import EncodingError
from analysis.results import BmdSummary, PatientResult
from node.encoding_task import EncodingTask
from node.report_text import (
    COVERAGE_FACTOR,
    NOT_A_T_SCORE,
    budget_sentence,
    calibration_sentence,
    change_sentence,
    flag_sentences,
    scan_sentences,
    software_sentence,
    summary_sentences,
)
from node.source_headers import ascii_text

_A4_INCHES = (8.27, 11.69)
_LEFT, _WIDTH = 0.07, 0.86
_LINE_CHARACTERS = 118
_MOST_NOTE_LINES = 22
_BAND_COLOURS = ("#f2c4bd", "#f7e6b5", "#cfe6cf")
_COLUMNS = ("", "BMD\nmg/cm3", "uncertainty\n(k=2)", "SD\nmg/cm3", "mean\nHU", "SD\nHU", "VOI\ncm3")


def report_page(result: PatientResult, task: EncodingTask) -> bytes:
    """The page as PDF bytes; the same inputs give the same bytes."""
    if result.summary is None or result.chosen is None:
        raise EncodingError("a reported result has no mean or no calibration; cannot draw its page")
    figure = Figure(figsize=_A4_INCHES)
    FigureCanvasPdf(figure)
    _heading(figure, result.summary, task)
    _table(figure.add_axes((_LEFT, 0.755, _WIDTH, 0.11)), result, result.summary)
    _limits(figure.add_axes((_LEFT, 0.672, _WIDTH, 0.055)), result, result.summary)
    _picture(figure, task.attachments.report_png, (_LEFT, 0.275, _WIDTH, 0.345))
    _picture(figure, task.attachments.calibration_png, (0.60, 0.065, 0.34, 0.20))
    _notes(figure, result, task)
    buffer = BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": task.created, "Creator": None, "Producer": None})
    return buffer.getvalue()


def _heading(figure: Figure, summary: BmdSummary, task: EncodingTask) -> None:
    sentences = summary_sentences(summary)
    figure.text(_LEFT, 0.965, f"{ascii_text(task.settings.use_statement).rstrip('.')}.", fontsize=9, color="#a02020",
                fontweight="bold")
    figure.text(_LEFT, 0.938, "Bone mineral density by quantitative CT", fontsize=15, fontweight="bold")
    lines = [line for sentence in sentences if sentence != NOT_A_T_SCORE for line in wrap(sentence, 92)]
    for index, line in enumerate(lines[:4]):
        figure.text(_LEFT, 0.913 - 0.014 * index, line, fontsize=9, fontweight="bold" if index == 0 else "normal")


def _table(axes: Axes, result: PatientResult, summary: BmdSummary) -> None:
    axes.axis("off")
    rows = [
        (v.level, f"{v.bmd_mg_cm3:.1f}", f"+/- {COVERAGE_FACTOR * v.u_bmd_mg_cm3:.1f}", f"{v.sd_bmd_mg_cm3:.1f}",
         f"{v.mean_hu:.0f}", f"{v.sd_hu:.0f}", f"{v.voi_volume_mm3 / 1000:.1f}")
        for v in result.vertebrae
    ]
    if len(summary.levels) > 1:
        rows.append((f"mean {' + '.join(summary.levels)}", f"{summary.bmd_mg_cm3:.1f}",
                     f"+/- {COVERAGE_FACTOR * summary.u_bmd_mg_cm3:.1f}", "", "", "", ""))
    table = axes.table(rows, colLabels=_COLUMNS, cellLoc="center", loc="center", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for cell in table.get_celld().values():
        cell.set_edgecolor("#bbbbbb")


def _limits(axes: Axes, result: PatientResult, summary: BmdSummary) -> None:
    """Each value with its expanded uncertainty on the class bands."""
    low, high = summary.limits_mg_cm3
    points = [(v.level, v.bmd_mg_cm3, v.u_bmd_mg_cm3) for v in result.vertebrae]
    if len(summary.levels) > 1:
        points.append(("mean", summary.bmd_mg_cm3, summary.u_bmd_mg_cm3))
    right = max(high * 1.5, *(value + 3 * u for _, value, u in points))
    left = min(0.0, *(value - 3 * u for _, value, u in points))
    names = ("osteoporosis", "osteopenia", "normal") if summary.classification is not None else ("", "", "")
    for (begin, end), colour, name in zip(
        ((left, low), (low, high), (high, right)), _BAND_COLOURS, names, strict=True
    ):
        axes.axvspan(begin, end, color=colour, lw=0)
        axes.text((begin + end) / 2, len(points) - 0.35, name, ha="center", va="bottom", fontsize=8)
    y = np.arange(len(points))[::-1]
    errors = [COVERAGE_FACTOR * u for _, _, u in points]
    axes.errorbar([value for _, value, _ in points], y, xerr=errors, fmt="o", ms=4, color="black", capsize=3, lw=1)
    axes.set_yticks(y, [name for name, _, _ in points], fontsize=8)
    axes.set_xlim(left, right)
    axes.set_ylim(-0.6, len(points) - 0.4)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(f"mg/cm3 ({summary.material}); bars: expanded uncertainty, k=2", fontsize=8)


def _picture(figure: Figure, png: bytes | None, rectangle: tuple[float, float, float, float]) -> None:
    if png is None:
        return
    axes = figure.add_axes(rectangle)
    axes.axis("off")
    with Image.open(BytesIO(png)) as image:
        axes.imshow(np.asarray(image.convert("RGB")), interpolation="antialiased")


def _notes(figure: Figure, result: PatientResult, task: EncodingTask) -> None:
    chosen, summary = result.chosen, result.summary
    if chosen is None or summary is None:
        return
    change = () if result.change is None else (change_sentence(result.change),)
    sentences = (
        NOT_A_T_SCORE, calibration_sentence(chosen), *scan_sentences(result.protocol), *flag_sentences(result),
        budget_sentence(summary), *change, software_sentence(result, task.settings.model_name),
    )
    with_chart = task.attachments.calibration_png is not None
    lines = [line for text in sentences for line in wrap(text, round(_LINE_CHARACTERS * (0.6 if with_chart else 1)))]
    if len(lines) > _MOST_NOTE_LINES:
        lines = [*lines[:_MOST_NOTE_LINES - 1], "More notes stand in the report."]
    figure.text(_LEFT, 0.258, "\n".join(lines), fontsize=7.2, va="top", linespacing=1.35)
