"""From the coarse network's maps to the ordered vertebral bodies: peaks of the centroid map, joined to one column.

A peak counts when the tissue map holds a vertebral body there. The column is the path from feet to head with the best
total of peak strengths, spacings and straightness (dynamic programming over the peaks), so that a false peak in a hip
or a rib is left out and a weak peak between two strong ones is kept.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Classes of the coarse tissue head, see `analysis.vbnet.COARSE_TISSUES`.
BODY, SACRUM, RIB = 1, 3, 4


@dataclass(frozen=True, slots=True)
class DetectionLimits:
    """What counts as a vertebra and as a column.

    peak, body : smallest centroid and vertebral body probability at a peak
    merge_mm : peaks nearer than this are one
    spacing_mm : smallest and largest distance of neighbours, the larger one leaves room for a missed vertebra
    typical_mm, spacing_log_sd : of the distance between neighbours over the whole spine
    largest_tilt : largest horizontal over vertical distance of neighbours (kyphosis of T1-T4 reaches 1.2)
    smallest_column : fewer vertebrae than this are no spine
    smallest_mean_peak : mean peak probability of a column below which it is no spine
    crowded_strength, crowded_step : a peak weaker than this share of its neighbours is dropped when they stand less
        than this many ordinary steps apart without it
    faint_end : an end of the column weaker than this share of the column's median is cut off (S1, cut vertebrae)
    """

    peak: float = 0.10
    body: float = 0.25
    merge_mm: float = 11.0
    spacing_mm: tuple[float, float] = (12.0, 80.0)
    typical_mm: float = 26.0
    spacing_log_sd: float = 0.35
    largest_tilt: float = 1.6
    smallest_column: int = 2
    smallest_mean_peak: float = 0.3
    faint_end: float = 0.3
    crowded_strength: float = 0.7
    crowded_step: float = 1.4


@dataclass(frozen=True, slots=True, eq=False)
class CoarseMaps:
    """Probabilities on the coarse grid: tissue (6, D, H, W), centroid (D, H, W), level (19, D, H, W); float32, CPU."""

    tissue: Tensor
    centroid: Tensor
    level: Tensor
    spacing_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Peak:
    """A candidate body: refined position in coarse voxels (3,), centroid, body and sacrum probability around it."""

    index: NDArray[np.float64]
    strength: float
    body: float
    sacrum: float


def find_peaks(maps: CoarseMaps, limits: DetectionLimits) -> list[Peak]:
    """Local maxima of the centroid map inside vertebral body tissue, strongest first, merged within `merge_mm`."""
    heat = maps.centroid
    highest = torch.nn.functional.max_pool3d(heat[None, None], 3, stride=1, padding=1)[0, 0]
    where = torch.nonzero((heat == highest) & (heat >= limits.peak)).numpy()
    strengths = heat[tuple(where.T)].numpy()
    peaks: list[Peak] = []
    for position in where[np.argsort(-strengths)]:
        peak = _refined_peak(maps, position)
        near = any(np.linalg.norm(peak.index - p.index) * maps.spacing_mm < limits.merge_mm for p in peaks)
        if peak.body >= max(limits.body, peak.sacrum) and not near:
            peaks.append(peak)
    return peaks


def _refined_peak(maps: CoarseMaps, position: NDArray[np.int64]) -> Peak:
    """Centre of mass of the heat in 3x3x3 voxels; body probability as the mean of the same voxels."""
    start = np.maximum(position - 1, 0)
    part = tuple(slice(int(a), int(b)) for a, b in zip(start, position + 2, strict=True))
    heat = maps.centroid[part].numpy().astype(np.float64) ** 2
    offsets = np.stack(np.meshgrid(*(np.arange(n) for n in heat.shape), indexing="ij"), axis=-1)
    index = start + (offsets * heat[..., None]).sum(axis=(0, 1, 2)) / heat.sum()
    body, sacrum = (float(maps.tissue[tissue][part].mean()) for tissue in (BODY, SACRUM))
    return Peak(index, float(maps.centroid[tuple(position)]), body, sacrum)


def spine_column(peaks: list[Peak], spacing_mm: float, limits: DetectionLimits) -> list[Peak]:
    """The best column through the peaks, from head to feet; empty when nothing qualifies as a spine."""
    ordered = sorted(peaks, key=lambda peak: -peak.index[0])
    if not ordered:
        return []
    scores = [_peak_score(peak) for peak in ordered]
    best, previous = list(scores), [-1] * len(ordered)
    for j in range(len(ordered)):
        for i in range(j):
            link = _link_score(ordered[i], ordered[j], spacing_mm, limits)
            if link is not None and best[i] + link + scores[j] > best[j]:
                best[j], previous[j] = best[i] + link + scores[j], i
    column = drop_crowded(_walk(ordered, previous, int(np.argmax(best))), limits)
    column = trim_ends(column, limits.faint_end)
    strong = np.mean([peak.strength for peak in column]) >= limits.smallest_mean_peak
    return column if len(column) >= limits.smallest_column and strong else []


def trim_ends(column: list[Peak], share: float) -> list[Peak]:
    """Cut faint peaks off both ends: a false vertebra there would shift what stands next to the sacrum."""
    limit = share * float(np.median([peak.strength for peak in column]))
    while column and column[-1].strength < limit:
        column = column[:-1]
    while column and column[0].strength < limit:
        column = column[1:]
    return column


def drop_crowded(column: list[Peak], limits: DetectionLimits) -> list[Peak]:
    """Drop weak peaks that stand between two neighbours which are themselves one ordinary step apart.

    The ordinary step is the median of the up to six other steps nearby.
    """
    for i in range(1, len(column) - 1):
        around, step = column[i - 1], _distance(column[i - 1], column[i + 1])
        steps = [_distance(a, b) for a, b in zip(column[:-1], column[1:], strict=True)]
        others = steps[max(0, i - 4) : i - 1] + steps[i + 1 : i + 4]
        weaker = column[i].strength < limits.crowded_strength * max(around.strength, column[i + 1].strength)
        if others and weaker and step < limits.crowded_step * float(np.median(others)):
            return drop_crowded(column[:i] + column[i + 1 :], limits)
    return column


def _distance(a: Peak, b: Peak) -> float:
    return float(np.linalg.norm(a.index - b.index))


def _peak_score(peak: Peak) -> float:
    """Positive for a likely vertebra: log odds of the peak, lifted so that a weak one inside a column is kept."""
    strength = min(max(peak.strength, 0.02), 0.98)
    return float(np.log(strength / (1 - strength))) + 3.0


def _link_score(upper: Peak, lower: Peak, spacing_mm: float, limits: DetectionLimits) -> float | None:
    """Log prior of two peaks being neighbours; None when they cannot be."""
    step_mm = (upper.index - lower.index) * spacing_mm
    distance_mm = float(np.linalg.norm(step_mm))
    tilt = float(np.linalg.norm(step_mm[1:])) / max(step_mm[0], 1e-3)
    if not limits.spacing_mm[0] <= distance_mm <= limits.spacing_mm[1] or tilt > limits.largest_tilt:
        return None
    z = np.log(distance_mm / limits.typical_mm) / limits.spacing_log_sd
    sideways = abs(step_mm[2]) / distance_mm
    return float(-0.5 * z**2 - 4.0 * sideways**2)


def _walk(ordered: list[Peak], previous: list[int], last: int) -> list[Peak]:
    column = []
    while last >= 0:
        column.append(ordered[last])
        last = previous[last]
    return column[::-1]


# --- evidence for the levels ----------------------------------------------------------------------------------------


def pooled_levels(maps: CoarseMaps, peak: Peak, radius_mm: float = 8.0) -> NDArray[np.float64]:
    """Level probabilities averaged over the body around a peak, weighted with the body probability; sums to 1."""
    part = ball(peak.index, radius_mm / maps.spacing_mm, maps.centroid.shape)
    weight = maps.tissue[BODY][part].double() + 1e-3
    levels = (maps.level[(slice(None), *part)].double() * weight).sum(dim=(1, 2, 3)).numpy()
    result: NDArray[np.float64] = levels / levels.sum()
    return result


def ball(centre: NDArray[np.float64], radius: float, shape: torch.Size | tuple[int, ...]) -> tuple[slice, slice, slice]:
    """The box around a ball, clipped to the map; a box is near enough for pooling."""
    parts = [
        slice(max(0, int(np.floor(c - radius + 0.5))), min(n, int(np.floor(c + radius + 0.5)) + 1))
        for c, n in zip(centre, shape, strict=True)
    ]
    return parts[0], parts[1], parts[2]


def sacrum_below(maps: CoarseMaps, last: Peak, down: NDArray[np.float64], step_mm: float = 33.0) -> float | None:
    """How surely the sacrum begins below the lowest vertebra: its volume around the place of the next body.

    The place lies `step_mm` along `down` (unit vector, towards the feet) and, by the sacral slope, a little behind.
    None when it lies outside the volume. 4 cm3 of sacrum in the 40-mm box is doubtful, 8 cm3 is sure.
    """
    place_mm = last.index * maps.spacing_mm + step_mm * down + np.array([0.0, 6.0, 0.0])
    centre = place_mm / maps.spacing_mm
    if centre[0] < 1.0:
        return None
    part = ball(centre, 20.0 / maps.spacing_mm, maps.centroid.shape)
    volume_cm3 = float(maps.tissue[SACRUM][part].sum()) * maps.spacing_mm**3 / 1000.0
    return soft_step(volume_cm3, 6.0, 1.0)


def soft_step(value: float, middle: float, width: float) -> float:
    """0 well below `middle`, 1 well above it."""
    return float(1.0 / (1.0 + np.exp(-np.clip((value - middle) / width, -30, 30))))
