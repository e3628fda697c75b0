"""Overlap, surface distance and level agreement of a segmentation with what is known of a volume."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.results import Segmentation, VertebraLevel

Mask = NDArray[np.bool_]

# A found centroid further than this from a mark belongs to another vertebra.
MATCH_MM = 14.0


def dice(found: Mask, true: Mask) -> float:
    total = int(found.sum()) + int(true.sum())
    return 2.0 * int((found & true).sum()) / total if total else 1.0


def mean_surface_distance_mm(found: Mask, true: Mask, spacing_mm: tuple[float, float, float]) -> float:
    """Symmetric mean distance of the surfaces' voxels; infinite when one mask is empty."""
    if not found.any() or not true.any():
        return float("inf")
    box = ndimage.find_objects((found | true).astype(np.uint8))[0]
    grown = tuple(slice(max(0, part.start - 2), part.stop + 2) for part in box)
    surfaces = [mask & ~ndimage.binary_erosion(mask, border_value=1) for mask in (found[grown], true[grown])]
    distances = [
        ndimage.distance_transform_edt(~other, sampling=spacing_mm)[one] for one, other in (surfaces, surfaces[::-1])
    ]
    return float(np.concatenate(distances).mean())


@dataclass(frozen=True, slots=True)
class LevelMatch:
    """One marked vertebra and the nearest found one; `verdict` is right, uncertain, wrong or missed."""

    marked: str
    found: str
    confidence: float
    error_mm: float
    verdict: str


def match_level(
    marked: str, centroid_mm: tuple[float, float, float], levels: tuple[VertebraLevel, ...], limit: float
) -> LevelMatch:
    """Wrong is only a wrong name at or above the confidence limit; below it the answer is uncertain."""
    errors = [float(np.linalg.norm(np.subtract(level.centroid_lps_mm, centroid_mm))) for level in levels]
    if not errors or min(errors) > MATCH_MM:
        return LevelMatch(marked, "-", 0.0, min(errors, default=float("inf")), "missed")
    nearest = int(np.argmin(errors))
    level = levels[nearest]
    verdict = "uncertain" if level.confidence < limit else "right" if level.name == marked else "wrong"
    return LevelMatch(marked, level.name, level.confidence, errors[nearest], verdict)


def nearest_label(segmentation: Segmentation, centroid_mm: tuple[float, float, float]) -> int:
    """Label of the found vertebra whose centroid is nearest, 0 when none is near: overlap is scored apart."""
    errors = [np.linalg.norm(np.subtract(level.centroid_lps_mm, centroid_mm)) for level in segmentation.levels]
    if not errors or min(errors) > MATCH_MM:
        return 0
    return segmentation.levels[int(np.argmin(errors))].label
