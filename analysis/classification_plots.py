"""Pictures of a three-class model's performance as PNG: ROC, confusion, calibration, decision curves, selection."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.classification_model import CLASS_NAMES
from analysis.classification_statistics import auc_parts, calibration_curve, confusion, net_benefit

COLOURS = ("#b2182b", "#ef8a62", "#2166ac")  # by class


def performance_png(shares: NDArray[np.float64], classes: NDArray[np.intp], title: str) -> bytes:
    """Four panels of one set of answers; shares (n, classes)."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2)
    _roc(axes[0, 0], shares, classes)
    _confusion(axes[0, 1], shares, classes)
    _calibration(axes[1, 0], shares, classes)
    _decision(axes[1, 1], shares, classes)
    return _png(figure)


def selection_png(frequencies: Sequence[tuple[str, float]], selected: Sequence[str], title: str) -> bytes:
    """How often each feature was selected over the bootstraps; those of the model are filled."""
    shown = list(frequencies[:25])[::-1]
    figure = Figure(figsize=(8, 0.28 * len(shown) + 1.4), layout="constrained")
    figure.suptitle(title)
    axis = figure.subplots()
    colours = ["#2166ac" if name in selected else "#c9d7e8" for name, _ in shown]
    axis.barh([name for name, _ in shown], [share for _, share in shown], color=colours)
    axis.set(xlabel="share of bootstraps that selected it (dark: in the model)", xlim=(0, 1))
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _roc(axis: Axes, shares: NDArray[np.float64], classes: NDArray[np.intp]) -> None:
    for k, name in enumerate(CLASS_NAMES):
        order = np.argsort(-shares[:, k], kind="stable")
        hit = (classes == k)[order]
        auc = auc_parts(shares[:, k], classes == k).value
        x, y = np.cumsum(~hit) / (~hit).sum(), np.cumsum(hit) / hit.sum()
        axis.plot([0, *x], [0, *y], color=COLOURS[k], label=f"{name}: AUC {auc:.3f}")
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title="each class against the rest")
    axis.legend(loc="lower right")


def _confusion(axis: Axes, shares: NDArray[np.float64], classes: NDArray[np.intp]) -> None:
    counts = confusion(shares.argmax(axis=1), classes)
    axis.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), n in np.ndenumerate(counts):
        axis.text(column, row, str(n), ha="center", va="center", color="white" if row == column else "black")
    axis.set_xticks(range(3), CLASS_NAMES)
    axis.set_yticks(range(3), CLASS_NAMES)
    axis.set(xlabel="answer", ylabel="by density", title=f"accuracy {np.trace(counts) / counts.sum():.3f}")


def _calibration(axis: Axes, shares: NDArray[np.float64], classes: NDArray[np.intp]) -> None:
    for k, name in enumerate(CLASS_NAMES):
        points = calibration_curve(shares[:, k], classes == k)
        x, y = [p for p, _ in points], [seen.value for _, seen in points]
        bars = [[seen.value - seen.low for _, seen in points], [seen.high - seen.value for _, seen in points]]
        axis.errorbar(x, y, yerr=bars, color=COLOURS[k], marker="o", markersize=4, capsize=2, label=name)
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axis.set(xlabel="predicted share", ylabel="observed share (95 %)", title="calibration")
    axis.legend()


def _decision(axis: Axes, shares: NDArray[np.float64], classes: NDArray[np.intp]) -> None:
    thresholds = np.linspace(0.05, 0.8, 60)
    for k in (0, 1):
        wanted = f"{CLASS_NAMES[0]}" if k == 0 else "low density (both)"
        score, happened = shares[:, : k + 1].sum(axis=1), classes <= k
        axis.plot(thresholds, [net_benefit(score, happened, t) for t in thresholds], color=COLOURS[k], label=wanted)
        everyone = [net_benefit(np.ones(len(classes)), happened, t) for t in thresholds]
        axis.plot(thresholds, everyone, color=COLOURS[k], linestyle=":", linewidth=0.9)
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(xlabel="threshold", ylabel="net benefit", title="decision curves (dotted: treat all)", ylim=(-0.1, None))
    axis.legend()
