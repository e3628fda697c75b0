"""Overlays to look at: sagittal and coronal planes that follow the spine, with outlines, names and confidences."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.results import Segmentation
from analysis.training.annotate import STEP_MM, bounds_lps_mm, draw, plane
from analysis.volume import CtVolume

COLOURS = {1: "deepskyblue", 2: "orange", 3: "lime"}


def overlay(volume: CtVolume, segmentation: Segmentation, title: str) -> Figure:
    """Body map as contours over CT (blue posterior elements, orange cortex, green cancellous), sacrum red."""
    line = np.array([level.centroid_lps_mm for level in segmentation.levels])
    line = line[line[:, 2].argsort()]
    low, high = bounds_lps_mm(volume)
    figure = Figure(figsize=(16, 3 + 11 * float((high - low)[2]) / 350))
    figure.suptitle(title)
    for axes, view, horizontal in zip(figure.subplots(1, 2), ("sagittal", "coronal"), (1, 0), strict=True):
        picture, extent = plane(volume, line, view, (0.0,))
        draw(axes, picture, extent, view)
        for value, colour in COLOURS.items():
            _contour(
                axes, CtVolume((segmentation.body == value).astype(np.int16) * 100, volume.affine), line, view, colour
            )
        _contour(axes, CtVolume((segmentation.labels == 26).astype(np.int16) * 100, volume.affine), line, view, "red")
        centre = float(np.mean(line[:, horizontal]))
        axes.set_xlim(centre - 90, centre + 90)
        for level in segmentation.levels:
            text = f"{level.name} {level.confidence:.2f}" + ("" if level.complete else " cut")
            axes.annotate(text, (centre - 85, level.centroid_lps_mm[2]), color="yellow", fontsize=9)
    figure.tight_layout()
    return figure


def _contour(axes: object, mask: CtVolume, line: NDArray[np.float64], view: str, colour: str) -> None:
    values, extent = plane(mask, line, view, (0.0,))
    if values.max() > 50:
        horizontal = extent[0] + STEP_MM * np.arange(values.shape[1])
        vertical = extent[2] + STEP_MM * np.arange(values.shape[0])
        axes.contour(horizontal, vertical, values, [50], colors=colour, linewidths=0.9)  # type: ignore[attr-defined]
