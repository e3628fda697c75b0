"""Intravenous contrast seen in the images: a bright vessel in front of the spine, or bright organs beside it.

The header's contrast tag is often set on the unenhanced series or missing on the enhanced one, so the images are asked
too. Everything is done on a 2-mm grid around the lumbar vertebrae, in patient directions (head, back, left).
Unenhanced aorta 30-50 HU, enhanced > 90 HU; unenhanced liver, spleen, kidney and muscle are below 75 HU.
"""

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.refusals import reason
from analysis.results import Reason, Segmentation, VertebraLevel
from analysis.volume import CtVolume

GRID_MM = 2.0
LATERAL_MM, FRONT_MM, BACK_MM, ABOVE_MM = 100.0, 95.0, 60.0, 20.0  # box around the centroids of T12 to L4
LEVELS = ("T12", "L1", "L2", "L3", "L4")
SMOOTHING_MM = 2.5
BONE_MARGIN_MM = 5.0  # around the labelled vertebrae
VESSEL_RADIUS_MM = 5.0  # of the ball that must fit into an enhanced aorta or vena cava
VESSEL_REACH_MM = (45.0, 60.0)  # lateral of the spine's curve, in front of it
ORGAN_RADIUS_MM = 9.0  # of the ball that must fit into an enhanced organ: no rib, no bowel wall


@dataclass(frozen=True, slots=True)
class ContrastLimits:
    """What counts as enhanced."""

    vessel_hu: float = 90.0
    organ_hu: float = 85.0
    brightest_hu: float = 700.0  # brighter is metal, bone or oral contrast
    min_vessel_length_mm: float = 24.0
    min_organ_cm3: float = 15.0


@dataclass(frozen=True, slots=True)
class ContrastEvidence:
    """What the images say. `aorta_hu` is the most uniform round structure in front of the spine, None if unclear."""

    enhanced: bool
    aorta_hu: float | None
    organ_hu: float | None
    vessel_length_mm: float
    organ_cm3: float
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """HU smoothed, on the 2-mm grid (head, back, left), and where each node lies relative to the spine's curve.

    lateral_mm, back_mm : (planes, 1, columns) and (planes, rows, 1), distance from the centre of the vertebral bodies
    """

    hu: NDArray[np.float32]
    bone: NDArray[np.bool_]
    lateral_mm: NDArray[np.float64]
    back_mm: NDArray[np.float64]


def detect_contrast(
    volume: CtVolume, segmentation: Segmentation, limits: ContrastLimits | None = None
) -> ContrastEvidence:
    """Look for enhancement beside the lumbar spine."""
    limits = limits or ContrastLimits()
    levels = [level for level in segmentation.levels if level.name in LEVELS] or list(segmentation.levels)
    around = _surroundings(volume, segmentation, levels)
    vessel_hu, length_mm = _bright_vessel(around, limits)
    organ_hu, organ_cm3 = _bright_organ(around, limits)
    has_vessel = length_mm >= limits.min_vessel_length_mm
    has_organ = organ_cm3 >= limits.min_organ_cm3
    aorta_hu = vessel_hu if has_vessel else _uniform_vessel_hu(around)
    reasons = []
    if has_vessel:
        text = f"a vessel of {vessel_hu:.0f} HU over {length_mm:.0f} mm in front of the spine"
        reasons.append(reason("CONTRAST_IMAGE", f"{text}; expected below {limits.vessel_hu:g} HU"))
    if has_organ:
        text = f"{organ_cm3:.0f} cm3 of organ at {organ_hu:.0f} HU beside the spine"
        reasons.append(reason("CONTRAST_IMAGE", f"{text}; expected below {limits.organ_hu:g} HU"))
    return ContrastEvidence(bool(reasons), aorta_hu, organ_hu, length_mm, organ_cm3, tuple(reasons))


def _surroundings(volume: CtVolume, segmentation: Segmentation, levels: list[VertebraLevel]) -> Surroundings:
    """Resample the box around the named levels."""
    centres = np.array([level.centroid_lps_mm for level in levels])
    low = centres.min(axis=0) - (LATERAL_MM, FRONT_MM, ABOVE_MM)
    high = centres.max(axis=0) + (LATERAL_MM, BACK_MM, ABOVE_MM)
    x, y, z = (np.arange(a, b, GRID_MM) for a, b in zip(low, high, strict=True))
    # grid index (z, y, x) -> LPS -> index of the volume
    to_lps = np.array([[0, 0, GRID_MM], [0, GRID_MM, 0], [GRID_MM, 0, 0]])
    steps = np.linalg.inv(volume.affine[:3, :3]) @ to_lps
    start = volume.to_index(low)
    shape = (len(z), len(y), len(x))
    hu, bone = _resampled(volume, segmentation, (steps, start, shape))
    curve_x, curve_y = _spine_curve(centres, z)
    return Surroundings(hu, bone, x[None, None, :] - curve_x[:, None, None], y[None, :, None] - curve_y[:, None, None])


def _resampled(
    volume: CtVolume, segmentation: Segmentation, grid: tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Smoothed HU (-1024 outside the volume) and the dilated vertebrae on the grid, from the box that it needs."""
    steps, start, shape = grid
    corners = start + np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T @ steps.T
    first = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2, 0, np.array(volume.hu.shape) - 1)
    last = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 3, first + 1, volume.hu.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    values = np.asarray(volume.hu[box], dtype=np.float32)
    if 1.5 * min(volume.spacing_mm[1:]) < GRID_MM:
        values = scipy.ndimage.uniform_filter(values, (1, 2, 2))
    hu = scipy.ndimage.affine_transform(values, steps, start - first, shape, order=1, cval=-1024.0)
    labels = (segmentation.labels[box] > 0).astype(np.float32)
    bone = scipy.ndimage.affine_transform(labels, steps, start - first, shape, order=1) > 0.3
    far = scipy.ndimage.distance_transform_edt(~bone) * GRID_MM
    return scipy.ndimage.gaussian_filter(hu, SMOOTHING_MM / GRID_MM), far < BONE_MARGIN_MM


def _spine_curve(
    centres: NDArray[np.float64], z: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(centres[:, 2])
    below_to_above = centres[order]
    return (
        np.interp(z, below_to_above[:, 2], below_to_above[:, 0]),
        np.interp(z, below_to_above[:, 2], below_to_above[:, 1]),
    )


def _opened(mask: NDArray[np.bool_], radius_mm: float) -> NDArray[np.bool_]:
    """What a ball of this radius can reach inside the mask."""
    inner = scipy.ndimage.distance_transform_edt(mask) * GRID_MM > radius_mm
    reached: NDArray[np.bool_] = scipy.ndimage.distance_transform_edt(~inner) * GRID_MM <= radius_mm
    return reached & mask


def _in_front(around: Surroundings) -> NDArray[np.bool_]:
    lateral, front = VESSEL_REACH_MM
    return (np.abs(around.lateral_mm) < lateral) & (around.back_mm < 0) & (around.back_mm > -front)


def _bright_vessel(around: Surroundings, limits: ContrastLimits) -> tuple[float, float]:
    """HU and length along the spine of the longest enhanced structure in front of it; (nan, 0) without one."""
    bright = (around.hu > limits.vessel_hu) & (around.hu < limits.brightest_hu) & ~around.bone & _in_front(around)
    pieces, count = scipy.ndimage.label(_opened(bright, VESSEL_RADIUS_MM))
    lengths = [(part[0].stop - part[0].start) * GRID_MM for part in scipy.ndimage.find_objects(pieces)]
    if count == 0:
        return float("nan"), 0.0
    longest = int(np.argmax(lengths))
    # the upper quartile is the lumen; the rest is blurred with what lies around it
    return float(np.percentile(around.hu[pieces == longest + 1], 75)), lengths[longest]


def _bright_organ(around: Surroundings, limits: ContrastLimits) -> tuple[float | None, float]:
    """HU and volume (cm3) of enhanced organs beside and in front of the spine."""
    bright = (around.hu > limits.organ_hu) & (around.hu < limits.brightest_hu) & ~around.bone
    organs = _opened(bright, ORGAN_RADIUS_MM)
    volume_cm3 = float(organs.sum()) * GRID_MM**3 / 1000.0
    return (float(np.median(around.hu[organs])) if organs.any() else None), volume_cm3


def _uniform_vessel_hu(around: Surroundings) -> float | None:
    """Mean HU of the most uniform 10-mm column of soft tissue in front of the spine over 30 mm of its length."""
    size = (15, 5, 5)
    mean = scipy.ndimage.uniform_filter(around.hu, size)
    spread = np.sqrt(np.maximum(scipy.ndimage.uniform_filter(around.hu**2, size) - mean**2, 0.0))
    near_bone = scipy.ndimage.binary_dilation(around.bone, iterations=3)
    possible = _in_front(around) & ~near_bone & (mean > 15.0) & (mean < 90.0)
    if not possible.any():
        return None
    best = np.unravel_index(int(np.argmin(np.where(possible, spread, np.inf))), mean.shape)
    return float(mean[best]) if spread[best] < 15.0 else None
