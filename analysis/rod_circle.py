"""The circle of one rod in a section: the steepest change along rays from a guessed centre, fitted robustly.

Positions are (row, column) in millimetres from the centre of the first voxel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.rod_candidates import Section

RAYS = 64
RAY_STEP_MM = 0.25
EDGE_SMOOTHING_MM = 0.8
INLIER_MM = 0.8  # a point of the circumference this near the circle supports it
LARGEST_JUMP_MM = 3.5  # of a centre from its guess; between blocks: 12 degrees over 15 mm


@dataclass(frozen=True, slots=True, eq=False)
class CircleFit:
    centre_mm: NDArray[np.float64]  # (2,)
    radius_mm: float
    inliers: float  # share of the rays that support the circle
    contrast_hu: float  # inside less outside, median over the rays
    inside_hu: float  # at 60 to 75 % of the radius


def fit_circle(image: Section, guess_mm: NDArray[np.float64], radius_mm: float) -> CircleFit | None:
    """The circle of steepest change around `guess_mm`, or None when the section ends there."""
    patch = _patch(image, guess_mm, 1.6 * radius_mm + LARGEST_JUMP_MM)
    if patch is None:
        return None
    centre, radius = guess_mm.astype(float), radius_mm
    fit = None
    for _ in range(4):
        fit = _fit_once(patch, image.pixel_mm, centre, radius)
        centre = fit.centre_mm
        radius = float(np.clip(fit.radius_mm, 0.7 * radius_mm, 1.4 * radius_mm))
        if np.linalg.norm(centre - guess_mm) > 1.5 * LARGEST_JUMP_MM:
            return None
    return fit


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    hu: NDArray[np.float32]
    start: tuple[int, int]


def _patch(image: Section, centre_mm: NDArray[np.float64], reach_mm: float) -> _Patch | None:
    low = [int(np.floor((c - reach_mm) / p)) for c, p in zip(centre_mm, image.pixel_mm, strict=True)]
    high = [int(np.ceil((c + reach_mm) / p)) + 1 for c, p in zip(centre_mm, image.pixel_mm, strict=True)]
    low = [max(a, 0) for a in low]
    cut = image.hu[low[0] : high[0], low[1] : high[1]]
    if min(cut.shape) < 8:
        return None
    sigma = [EDGE_SMOOTHING_MM / p for p in image.pixel_mm]
    return _Patch(ndimage.gaussian_filter(np.clip(cut, -300, 3000), sigma), (low[0], low[1]))


def _fit_once(
    patch: _Patch, pixel_mm: tuple[float, float], centre_mm: NDArray[np.float64], radius_mm: float
) -> CircleFit:
    angle = np.arange(RAYS, dtype=np.float64) * (2 * np.pi / RAYS)
    distance = np.asarray(np.arange(0.6 * radius_mm, 1.4 * radius_mm, RAY_STEP_MM), np.float64)
    rays = _along_rays(patch, pixel_mm, centre_mm, (angle, distance))
    inside, contrast = _inside_and_contrast_hu(rays)
    slope = np.gradient(rays, RAY_STEP_MM, axis=1) * (-np.sign(contrast) or 1.0)
    edge = _steepest_mm(slope, distance)
    shift, radius, inliers = _robust_circle(angle, edge)
    return CircleFit(centre_mm + shift, radius, inliers, contrast, inside)


def _along_rays(
    patch: _Patch,
    pixel_mm: tuple[float, float],
    centre_mm: NDArray[np.float64],
    polar: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """HU at (angle, distance), (rays, steps)."""
    angle, distance = polar
    rows = (centre_mm[0] + distance[None, :] * np.sin(angle)[:, None]) / pixel_mm[0] - patch.start[0]
    columns = (centre_mm[1] + distance[None, :] * np.cos(angle)[:, None]) / pixel_mm[1] - patch.start[1]
    return np.asarray(ndimage.map_coordinates(patch.hu, [rows, columns], order=1, mode="nearest"), float)


def _inside_and_contrast_hu(rays: NDArray[np.float64]) -> tuple[float, float]:
    """HU inside, and inside less outside; the outside lies 20 to 35 % beyond the radius, median over the rays."""
    n = rays.shape[1]
    inside = float(rays[:, : max(n // 5, 1)].mean())
    outside = np.median(rays[:, int(0.72 * n) : int(0.95 * n)].mean(axis=1))
    return inside, float(inside - outside)


def _steepest_mm(slope: NDArray[np.float64], distance_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of the steepest fall on each ray, refined by a parabola, (rays,)."""
    at = np.clip(slope.argmax(axis=1), 1, slope.shape[1] - 2)
    rays = np.arange(len(slope))
    left, middle, right = (slope[rays, at + k] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = np.where(bend < -1e-9, 0.5 * (left - right) / np.where(bend < -1e-9, bend, -1.0), 0.0)
    return np.asarray(distance_mm[at] + np.clip(offset, -1, 1) * RAY_STEP_MM)


def _robust_circle(
    angle: NDArray[np.float64], edge_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """Shift (row, column), radius and share of inliers of edge = R + shift . direction, Cauchy weights."""
    design = np.column_stack([np.sin(angle), np.cos(angle), np.ones_like(angle)])
    solution = np.array([0.0, 0.0, float(np.median(edge_mm))])
    for _ in range(8):
        weight = 1.0 / (1.0 + ((edge_mm - design @ solution) / 0.5) ** 2)
        weighted = design * weight[:, None]
        solution = np.linalg.solve(weighted.T @ design + 1e-9 * np.eye(3), weighted.T @ edge_mm)
    inliers = float(np.mean(np.abs(edge_mm - design @ solution) < INLIER_MM))
    return solution[:2], float(solution[2]), inliers
