"""Whether one vertebra may be measured: whole, unfractured, free of cement, metal, lesion and sclerosis.

Heights are distances between the endplates' surfaces in the vertebra's own frame, in the front, middle and rear of the
body (quantitative morphometry; Genant grade 1 begins at a loss of 20 %). Densities are judged in the core of the body,
5 mm inside its surface.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.errors import VoiError
from analysis.refusals import reason
from analysis.results import Reason, Segmentation
from analysis.vertebra_frame import (
    GRID_MM,
    HALF_GRID,
    VertebraCrop,
    VertebraFrame,
    crop_vertebra,
    find_level,
    fit_frame_and_body,
    grid_mm,
    resample,
)
from analysis.volume import CtVolume


@dataclass(frozen=True, slots=True)
class VertebraLimits:
    """Limits of the checks."""

    min_height_ratio: float = 0.80  # anterior / posterior, middle / posterior: Genant grade 1
    min_neighbour_ratio: float = 0.80  # posterior and middle height against the neighbours
    min_level_confidence: float = 0.5
    core_margin_mm: float = 5.0
    metal_hu: float = 2000.0
    min_metal_mm3: float = 20.0
    cement_hu: float = 600.0
    min_cement_mm3: float = 500.0
    sclerosis_mean_hu: float = 350.0
    bright_hu: float = 400.0
    dark_hu: float = -150.0
    max_bright_fraction: float = 0.02
    max_dark_fraction: float = 0.02
    lesion_smoothing_mm: float = 3.0
    lesion_difference_hu: float = 80.0  # of the smoothed core from its median
    min_lesion_mm3: float = 1500.0


@dataclass(frozen=True, slots=True)
class Heights:
    """Distances between the endplates in the mid-sagittal part of the body, mm."""

    anterior_mm: float
    middle_mm: float
    posterior_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """One vertebra on its turned 1-mm grid. hu : (axis, forward, lateral); core : bool, same shape."""

    level: str
    crop: VertebraCrop
    frame: VertebraFrame
    hu: NDArray[np.float32]
    body: NDArray[np.bool_]
    core: NDArray[np.bool_]


def check_vertebra(
    volume: CtVolume, segmentation: Segmentation, level: str, limits: VertebraLimits | None = None
) -> tuple[Reason, ...]:
    """Every reason not to measure this vertebra; empty when there is none."""
    limits = limits or VertebraLimits()
    try:
        crop = crop_vertebra(volume, segmentation, level)
        cut = _check_cut(volume, crop)
        if cut:
            return cut
        examined = examine(crop, segmentation, limits)
    except VoiError as error:
        return (Reason(error.code, error.text),)
    found = [found for check in CHECKS for found in check(examined, limits)]
    return (*_check_confidence(crop, limits), *found, *_check_neighbours(volume, segmentation, examined, limits))


def examine(crop: VertebraCrop, segmentation: Segmentation, limits: VertebraLimits) -> Examined:
    """Put one vertebra on its own grid.

    Raises
    ------
    VoiError
        VOI_FRAME when its endplates cannot be fitted.
    """
    frame, body = fit_frame_and_body(crop, segmentation)
    core = scipy.ndimage.distance_transform_edt(body) * GRID_MM > limits.core_margin_mm
    return Examined(
        crop.level.name, crop, frame, resample(crop, frame, np.asarray(crop.volume.hu, dtype=np.float32)), body, core
    )


def measure_heights(body: NDArray[np.bool_]) -> Heights:
    """Anterior, middle and posterior height from the middle third of the body's width.

    Means, since endplates that cross thick slices make steps which the columns of a band average out.
    body : bool (axis, forward, lateral) on the turned grid
    """
    _, v, u = grid_mm()
    column_heights = _column_heights_mm(body)
    section = body[HALF_GRID[0] - 3 : HALF_GRID[0] + 4].mean(axis=0) > 0.5
    rows, columns = np.nonzero(section)
    left, right = np.percentile(u[columns], [33, 67])
    middle_third = (u >= left) & (u <= right)
    rear, front = np.percentile(v[rows[middle_third[columns]]], [2, 98])
    # the outermost 10 % are the rounded rim
    bands = ((0.70, 0.88), (0.41, 0.59), (0.12, 0.30))
    anterior, middle, posterior = (
        float(
            np.mean(
                column_heights[
                    np.ix_((v >= rear + a * (front - rear)) & (v <= rear + b * (front - rear)), middle_third)
                ]
            )
        )
        for a, b in bands
    )
    return Heights(anterior, middle, posterior)


def _column_heights_mm(body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """From the first to the last node along the axis: the vein's mouth in the rear wall is no loss of height."""
    ends = np.argmax(body, axis=0) + np.argmax(body[::-1], axis=0)
    return np.asarray(np.where(body.any(axis=0), (body.shape[0] - ends) * GRID_MM, 0.0))


def _check_cut(volume: CtVolume, crop: VertebraCrop) -> tuple[Reason, ...]:
    """The body touches the volume's first or last slice, row or column."""
    touches = not crop.level.complete
    for axis, (start, size, full) in enumerate(zip(crop.start, crop.body.shape, volume.hu.shape, strict=True)):
        first, last = (np.take(crop.body, position, axis=axis).any() for position in (0, -1))
        touches = touches or bool(first and start == 0) or bool(last and start + size == full)
    if not touches:
        return ()
    return (reason("VERTEBRA_CUT", f"{crop.level.name} reaches the edge of the images; expected the whole vertebra"),)


def _check_confidence(crop: VertebraCrop, limits: VertebraLimits) -> tuple[Reason, ...]:
    confidence = crop.level.confidence
    if confidence >= limits.min_level_confidence:
        return ()
    text = f"{crop.level.name} is named with confidence {confidence:.2f}; expected {limits.min_level_confidence:g}"
    return (reason("LEVEL_UNCERTAIN", text),)


def _check_heights(examined: Examined, limits: VertebraLimits) -> tuple[Reason, ...]:
    heights = measure_heights(examined.body)
    anterior, middle = heights.anterior_mm / heights.posterior_mm, heights.middle_mm / heights.posterior_mm
    crush = heights.posterior_mm / max(heights.anterior_mm, heights.middle_mm)
    if min(anterior, middle, crush) >= limits.min_height_ratio:
        return ()
    text = (
        f"{examined.level} is {heights.anterior_mm:.0f}/{heights.middle_mm:.0f}/{heights.posterior_mm:.0f} mm high "
        f"in front, middle and rear; expected ratios of at least {limits.min_height_ratio:g}"
    )
    return (reason("FRACTURE", text),)


def _check_metal(examined: Examined, limits: VertebraLimits) -> tuple[Reason, ...]:
    """Metal in the body or its posterior elements, or within 10 mm of the body."""
    near = scipy.ndimage.distance_transform_edt(~examined.body) * GRID_MM < 10.0
    volume_mm3 = float(((examined.hu > limits.metal_hu) & near).sum()) * GRID_MM**3
    if volume_mm3 < limits.min_metal_mm3:
        return ()
    return (reason("METAL", f"{volume_mm3:.0f} mm3 above {limits.metal_hu:g} HU in or beside {examined.level}"),)


def _check_bright(examined: Examined, limits: VertebraLimits) -> tuple[Reason, ...]:
    """Cement is a compact bright piece in the core; sclerosis a bright core."""
    core_hu = examined.hu[examined.core]
    if core_hu.size == 0:
        return ()
    mean, bright = float(np.mean(core_hu)), float((core_hu > limits.bright_hu).mean())
    largest_mm3 = _largest_mm3((examined.hu > limits.cement_hu) & examined.core)
    if largest_mm3 > limits.min_cement_mm3:
        return (
            reason("CEMENT", f"{largest_mm3:.0f} mm3 above {limits.cement_hu:g} HU in the core of {examined.level}"),
        )
    if mean > limits.sclerosis_mean_hu or bright > limits.max_bright_fraction:
        text = f"core of {examined.level} has mean {mean:.0f} HU and {bright:.1%} above {limits.bright_hu:g} HU"
        return (reason("SCLEROSIS", f"{text}; expected below {limits.max_bright_fraction:.0%}"),)
    return ()


def _check_lesion(examined: Examined, limits: VertebraLimits) -> tuple[Reason, ...]:
    """A coherent part of the core that differs from the rest, or gas and fat in it."""
    core_hu = examined.hu[examined.core]
    if core_hu.size == 0:
        return ()
    dark = float((core_hu < limits.dark_hu).mean())
    weight = scipy.ndimage.gaussian_filter(examined.core.astype(np.float32), limits.lesion_smoothing_mm / GRID_MM)
    smooth = scipy.ndimage.gaussian_filter(examined.hu * examined.core, limits.lesion_smoothing_mm / GRID_MM)
    deviation = np.where(examined.core, smooth / np.maximum(weight, 1e-3) - np.median(core_hu), 0.0)
    largest_mm3 = _largest_mm3(np.abs(deviation) > limits.lesion_difference_hu)
    if dark <= limits.max_dark_fraction and largest_mm3 <= limits.min_lesion_mm3:
        return ()
    text = f"{largest_mm3:.0f} mm3 of {examined.level} differ by over {limits.lesion_difference_hu:g} HU from its core"
    return (reason("LESION", f"{text}, {dark:.1%} are below {limits.dark_hu:g} HU"),)


def _check_neighbours(
    volume: CtVolume, segmentation: Segmentation, examined: Examined, limits: VertebraLimits
) -> tuple[Reason, ...]:
    """Middle and posterior height against the neighbours' mean: an evenly crushed body has normal ratios."""
    own = measure_heights(examined.body)
    others = [heights for heights in _neighbour_heights(volume, segmentation, examined.level) if heights]
    if not others:
        return ()
    ratios = [
        own.middle_mm / float(np.mean([other.middle_mm for other in others])),
        own.posterior_mm / float(np.mean([other.posterior_mm for other in others])),
    ]
    if min(ratios) >= limits.min_neighbour_ratio:
        return ()
    text = f"{examined.level} has {min(ratios):.2f} of its neighbours' height; expected {limits.min_neighbour_ratio:g}"
    return (reason("FRACTURE", text),)


def _neighbour_heights(volume: CtVolume, segmentation: Segmentation, level: str) -> list[Heights]:
    label = find_level(segmentation, level).label
    found = []
    for other in segmentation.levels:
        if abs(other.label - label) != 1 or not other.complete:
            continue
        try:
            crop = crop_vertebra(volume, segmentation, other.name)
            if not _check_cut(volume, crop):
                found.append(measure_heights(fit_frame_and_body(crop, segmentation)[1]))
        except VoiError:
            continue  # a neighbour that cannot be examined says nothing about this vertebra
    return found


def _largest_mm3(mask: NDArray[np.bool_]) -> float:
    pieces, count = scipy.ndimage.label(mask)
    return float(np.bincount(pieces.ravel())[1:].max()) * GRID_MM**3 if count else 0.0


CHECKS: tuple[Callable[[Examined, VertebraLimits], tuple[Reason, ...]], ...] = (
    _check_heights,
    _check_metal,
    _check_bright,
    _check_lesion,
)
