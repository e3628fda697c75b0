"""The trabecular VOI: an oval, 9 mm deep, in the cancellous bone of one vertebral body.

An elliptical cylinder in the vertebra's own frame: parallel to the mean of both endplates, at mid-height, inside the
cancellous section with a margin to the cortex, moved forward of the basivertebral vein, covering about two thirds of
the section (QCT Pro: central trabecular elliptical VOI, Engelke 2009, Bone 44:566; depth and coverage from the site's
protocol). Bone islands, vein and vacuum inside it are left out by robust limits on both sides of the median, so that
texture and noise do not move the mean. Weights are the part of each voxel that lies inside.

Sections are arrays (forward, lateral) on a 0.5-mm grid in the frame's mid-plane.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.errors import VoiError
from analysis.results import Segmentation, Voi
from analysis.vertebra_frame import (
    GRID_MM,
    HALF_GRID,
    VertebraCrop,
    VertebraFrame,
    crop_vertebra,
    fit_frame,
    grid_mm,
    resample_soft,
)
from analysis.volume import CtVolume

FINE_MM = GRID_MM / 2  # grid of the section in which the oval is fitted
SUBVOXEL_MM = 0.35  # edge of the parts into which a voxel is cut for its weight
OPENING_MM = 6.0  # half width of a pedicle, so that pedicles are cut off the section
N_OUTLINE_POINTS = 72


@dataclass(frozen=True, slots=True)
class VoiRule:
    """The rule by which the VOI is placed. Any change of a number needs a new version, it changes the method."""

    version: str = "oval-1"
    depth_mm: float = 9.0
    margin_mm: float = 2.0  # from the oval to the cortex and to the endplates
    cortex_margin_mm: float = 2.0  # taken off the body where the cancellous class is missing
    target_fraction: float = 2 / 3
    min_fraction: float = 0.55
    max_fraction: float = 0.75
    vein_depth_fraction: float = 0.25  # of the section's front-back diameter, from its rear edge
    vein_half_width_mm: float = 4.0
    outlier_sd: float = 4.0  # robust standard deviations of the smoothed image
    outlier_smoothing_mm: float = 1.2
    absolute_limits_hu: tuple[float, float] = (-200.0, 600.0)
    max_excluded_fraction: float = 0.25


@dataclass(frozen=True, slots=True)
class Oval:
    """An ellipse in the mid-plane: centre (forward, lateral) and semi-axes (lateral, forward), mm."""

    forward_mm: float
    lateral_mm: float
    semi_lateral_mm: float
    semi_forward_mm: float

    @property
    def area_mm2(self) -> float:
        return float(np.pi * self.semi_lateral_mm * self.semi_forward_mm)


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """The cancellous section at mid-height.

    mid : bool (forward, lateral), section in the middle of the depth
    allowed : bool, where the oval may lie: margin to the cortex kept over the whole depth
    """

    mid: NDArray[np.bool_]
    allowed: NDArray[np.bool_]

    @property
    def area_mm2(self) -> float:
        return float(self.mid.sum()) * FINE_MM**2


def place_voi(volume: CtVolume, segmentation: Segmentation, level: str, rule: VoiRule | None = None) -> Voi:
    """Place the VOI in one vertebra.

    Raises
    ------
    VoiError
        VERTEBRA_MISSING, VOI_FRAME, VOI_MARGIN, VOI_COVERAGE or VOI_EXCLUSIONS.
    """
    rule = rule or VoiRule()
    crop = crop_vertebra(volume, segmentation, level)
    frame = fit_frame(crop, segmentation)
    _require_height(frame, rule, level)
    section = cancellous_section(crop, frame, rule)
    oval = fit_oval(section, rule, level)
    weights = cylinder_weights(crop.volume, frame, oval, rule.depth_mm)
    kept = weights * ~_outliers(crop.volume, weights, rule)
    return _voi(crop, frame, (oval, section.area_mm2), (weights, kept), rule)


def cancellous_section(crop: VertebraCrop, frame: VertebraFrame, rule: VoiRule) -> Section:
    """The section through the cancellous bone, from its class or, where that is thin or missing, from the body."""
    middle = HALF_GRID[0]
    half = int(np.ceil(rule.depth_mm / 2 / GRID_MM))
    slab = slice(middle - half, middle + half + 1)
    core = _eroded_body(resample_soft(crop, frame, crop.body), rule.cortex_margin_mm)[slab]
    field = core
    if crop.cancellous.any():
        cancellous = np.minimum(_filled(resample_soft(crop, frame, crop.cancellous)[slab]), core + 0.5)
        if (cancellous > 0.5).sum() > 0.7 * (core > 0.5).sum():
            field = cancellous
    mid = _opened(_finer(field[half - 1 : half + 2].mean(axis=0)) > 0.5)
    everywhere = _opened(_finer(field.min(axis=0)) > 0.5) & mid
    distance_mm = ndimage.distance_transform_edt(everywhere) * FINE_MM
    return Section(mid, distance_mm >= rule.margin_mm)


def fit_oval(section: Section, rule: VoiRule, level: str) -> Oval:
    """The oval of the target area: centre and aspect of the largest oval that avoids the vein, then scaled.

    Raises
    ------
    VoiError
        VOI_COVERAGE when even the largest oval covers less than the rule's minimum.
    """
    if not section.allowed.any():
        raise VoiError(
            "VOI_MARGIN", f"no point of {level} keeps {rule.margin_mm} mm to the cortex over {rule.depth_mm} mm"
        )
    target_mm2 = rule.target_fraction * section.area_mm2
    largest_mm2 = 0.0
    for forbidden in (~section.allowed | _vein_zone(section.mid, rule), ~section.allowed):
        centre_and_aspect = _best_centre(section.allowed & ~forbidden, _border(forbidden))
        oval = _largest_oval(centre_and_aspect, _border(~section.allowed))
        largest_mm2 = max(largest_mm2, oval.area_mm2)
        if oval.area_mm2 >= rule.min_fraction * section.area_mm2:
            return _scaled(oval, min(1.0, np.sqrt(target_mm2 / oval.area_mm2)))
    raise VoiError(
        "VOI_COVERAGE",
        f"the largest oval in {level} covers {largest_mm2 / section.area_mm2:.2f} of the cancellous section; "
        f"expected at least {rule.min_fraction}",
    )


def cylinder_weights(volume: CtVolume, frame: VertebraFrame, oval: Oval, depth_mm: float) -> NDArray[np.float32]:
    """The part of each voxel that lies in the elliptical cylinder, 0..1, on the volume's grid."""
    centre = frame.to_lps_mm(np.array([0.0, oval.forward_mm, oval.lateral_mm]))
    to_frame = frame.rotation.T @ volume.affine[:3, :3]
    origin = frame.rotation.T @ (volume.affine[:3, 3] - centre)
    low, high = _index_box(volume, frame, centre, oval, depth_mm)
    parts = [max(1, int(np.ceil(mm / SUBVOXEL_MM))) for mm in volume.spacing_mm]
    fine = [np.arange((b - a) * n) / n + a - 0.5 + 0.5 / n for a, b, n in zip(low, high, parts, strict=True)]
    i, j, k = np.meshgrid(*fine, indexing="ij", sparse=True)
    w, v, u = (origin[row] + to_frame[row, 0] * i + to_frame[row, 1] * j + to_frame[row, 2] * k for row in range(3))
    inside = (np.abs(w) <= depth_mm / 2) & ((u / oval.semi_lateral_mm) ** 2 + (v / oval.semi_forward_mm) ** 2 <= 1.0)
    shape = [extent for a, b, n in zip(low, high, parts, strict=True) for extent in (b - a, n)]
    weights = np.zeros(volume.hu.shape, dtype=np.float32)
    weights[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = inside.reshape(shape).mean(axis=(1, 3, 5))
    return weights


def outline_lps_mm(volume: CtVolume, voi: Voi, frame: VertebraFrame, slice_index: int) -> NDArray[np.float64]:
    """Closed polyline (points, 3) where the cylinder cuts one source slice; points lie exactly in the slice's plane.

    The cut is convex, so a ray from inside in each direction of the slice meets the surface once.
    """
    centre = np.array(voi.centre_lps_mm)
    index = volume.to_index(centre)
    index[0] = slice_index
    inside = volume.to_lps_mm(index)
    angles = np.linspace(0.0, 2 * np.pi, N_OUTLINE_POINTS + 1)
    row, column = (volume.affine[:3, axis] / np.linalg.norm(volume.affine[:3, axis]) for axis in (1, 2))
    rays = np.cos(angles)[:, None] * column + np.sin(angles)[:, None] * row
    scale = np.array([2 / voi.depth_mm, 1 / voi.semi_axes_mm[1], 1 / voi.semi_axes_mm[0]])
    start = ((inside - centre) @ frame.rotation) * scale
    step = (rays @ frame.rotation) * scale
    to_side = _distance_to_unit_circle(start[1:], step[:, 1:])
    with np.errstate(divide="ignore"):
        to_cap = np.where(step[:, 0] == 0, np.inf, (np.sign(step[:, 0]) - start[0]) / step[:, 0])
    points = inside + np.minimum(to_side, to_cap)[:, None] * rays
    points[-1] = points[0]
    return np.asarray(points)


def _distance_to_unit_circle(start: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    a = (step**2).sum(axis=1)
    b = step @ start
    c = float(start @ start) - 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 1e-12, (-b + np.sqrt(np.maximum(b * b - a * c, 0.0))) / a, np.inf)


def _require_height(frame: VertebraFrame, rule: VoiRule, level: str) -> None:
    needed = rule.depth_mm + 2 * rule.margin_mm
    if frame.height_mm < needed:
        raise VoiError("VOI_MARGIN", f"{level} is {frame.height_mm:.1f} mm high; expected at least {needed:.1f} mm")


def _eroded_body(body: NDArray[np.float32], margin_mm: float) -> NDArray[np.float32]:
    """A field whose 0.5 level lies `margin_mm` inside the body's 0.5 level, 1 mm wide."""
    inside = body > 0.5
    distance = ndimage.distance_transform_edt(inside) * GRID_MM - GRID_MM / 2
    return np.clip(distance - margin_mm + 0.5, 0.0, 1.0).astype(np.float32)


def _filled(soft: NDArray[np.float32]) -> NDArray[np.float32]:
    """Holes that the vein or an island leaves in the class are part of the section."""
    return np.stack([np.maximum(plane, ndimage.binary_fill_holes(plane > 0.5)) for plane in soft])


def _finer(section: NDArray[np.float32]) -> NDArray[np.float32]:
    forward, lateral = section.shape
    rows, columns = np.arange(2 * forward - 1) / 2, np.arange(2 * lateral - 1) / 2
    finer: NDArray[np.float32] = ndimage.map_coordinates(section, np.meshgrid(rows, columns, indexing="ij"), order=1)
    return finer


def _opened(section: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cut off what is narrower than a pedicle and keep the largest piece."""
    inner = ndimage.distance_transform_edt(section) * FINE_MM > OPENING_MM
    opened = ndimage.distance_transform_edt(~inner) * FINE_MM <= OPENING_MM
    pieces, count = ndimage.label(opened & section)
    if count < 1:
        return np.zeros_like(section)
    largest: NDArray[np.bool_] = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return largest


def _fine_axes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Forward and lateral coordinates of the section's nodes, mm."""
    _, v, u = grid_mm()
    return np.arange(v[0], v[-1] + FINE_MM / 2, FINE_MM), np.arange(u[0], u[-1] + FINE_MM / 2, FINE_MM)


def _points(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) forward and lateral coordinates of a mask's nodes, mm."""
    v, u = _fine_axes()
    rows, columns = np.nonzero(mask)
    return np.stack([v[rows], u[columns]], axis=1)


def _border(forbidden: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Forbidden nodes that touch an allowed one, mm."""
    return _points(forbidden & ndimage.binary_dilation(~forbidden))


def _vein_zone(section: NDArray[np.bool_], rule: VoiRule) -> NDArray[np.bool_]:
    """The strip in the middle of the rear part of the section, where the basivertebral vein enters."""
    v, u = _fine_axes()
    points = _points(section)
    middle = float(np.median(points[:, 1]))
    strip = np.abs(points[:, 1] - middle) < rule.vein_half_width_mm
    rear, front = np.percentile(points[strip, 0], [0.5, 99.5])
    depth = rear + rule.vein_depth_fraction * (front - rear)
    return (v[:, None] < depth) & (np.abs(u[None, :] - middle) < rule.vein_half_width_mm)


def _best_centre(allowed: NDArray[np.bool_], border: NDArray[np.float64]) -> tuple[float, float, float]:
    """Centre (forward, lateral) and aspect of the largest oval, as a mean over the nearly largest ones.

    The mean makes the choice continuous: a sub-voxel shift moves the oval by a fraction of a millimetre, not by a step.
    """
    points = _points(allowed)
    v, u, aspect = np.meshgrid(
        np.arange(points[:, 0].mean() - 8, points[:, 0].mean() + 9, 1.0),
        np.arange(np.median(points[:, 1]) - 4, np.median(points[:, 1]) + 5, 1.0),
        np.arange(1.0, 1.81, 0.1),
        indexing="ij",
    )
    candidates = np.stack([v.ravel(), u.ravel(), aspect.ravel()], axis=1)
    areas = _largest_area_mm2(candidates, border)
    near = np.exp((areas / areas.max() - 1.0) / 0.01)
    forward, lateral, mean_aspect = near @ candidates / near.sum()
    return float(forward), float(lateral), float(mean_aspect)


def _largest_area_mm2(candidates: NDArray[np.float64], border: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of the largest ellipse at each (forward, lateral, aspect) that contains no border point."""
    forward, lateral, aspect = (column[:, None] for column in candidates.T)
    squared = (border[:, 1] - lateral) ** 2 / aspect + (border[:, 0] - forward) ** 2 * aspect
    return np.asarray(np.pi * squared.min(axis=1))


def _largest_oval(centre_and_aspect: tuple[float, float, float], border: NDArray[np.float64]) -> Oval:
    forward, lateral, aspect = centre_and_aspect
    area = float(_largest_area_mm2(np.array([centre_and_aspect]), border)[0])
    return Oval(forward, lateral, np.sqrt(area * aspect / np.pi), np.sqrt(area / aspect / np.pi))


def _scaled(oval: Oval, scale: float) -> Oval:
    return Oval(oval.forward_mm, oval.lateral_mm, oval.semi_lateral_mm * scale, oval.semi_forward_mm * scale)


def _index_box(
    volume: CtVolume, frame: VertebraFrame, centre: NDArray[np.float64], oval: Oval, depth_mm: float
) -> tuple[list[int], list[int]]:
    """First and last+1 index of the box that holds the cylinder, clipped to the volume."""
    half = np.array([depth_mm / 2, oval.semi_forward_mm, oval.semi_lateral_mm])
    reach = np.abs(np.linalg.inv(volume.affine[:3, :3]) @ frame.rotation) @ half + 1.0
    index = volume.to_index(centre)
    low = np.clip(np.floor(index - reach).astype(int), 0, None)
    high = np.minimum(np.ceil(index + reach).astype(int) + 1, volume.hu.shape)
    return [int(a) for a in low], [int(b) for b in high]


def _outliers(volume: CtVolume, weights: NDArray[np.float32], rule: VoiRule) -> NDArray[np.bool_]:
    """Voxels of bone islands, vein and vacuum: outside the robust limits of the smoothed image, or absolute limits.

    Limits lie symmetrically about the median; on noise and symmetric texture the mean does not move.
    """
    sigma = [min(rule.outlier_smoothing_mm / mm, 1.5) for mm in volume.spacing_mm]
    smooth = ndimage.gaussian_filter(np.asarray(volume.hu, dtype=np.float32), sigma)
    inside = smooth[weights > 0.5]
    median = float(np.median(inside))
    spread = max(1.4826 * float(np.median(np.abs(inside - median))), 5.0)
    low, high = rule.absolute_limits_hu
    outside = np.abs(smooth - median) > rule.outlier_sd * spread
    return np.asarray(outside | (smooth < low) | (smooth > high))


def _voi(
    crop: VertebraCrop,
    frame: VertebraFrame,
    oval_and_section: tuple[Oval, float],
    all_and_kept: tuple[NDArray[np.float32], NDArray[np.float32]],
    rule: VoiRule,
) -> Voi:
    oval, section_mm2 = oval_and_section
    weights, kept = all_and_kept
    excluded = 1.0 - float(kept.sum() / weights.sum())
    if excluded > rule.max_excluded_fraction:
        text = f"{excluded:.0%} of the VOI in {crop.level.name} is island, vein or vacuum"
        raise VoiError("VOI_EXCLUSIONS", f"{text}; expected at most {rule.max_excluded_fraction:.0%}")
    box = ndimage.find_objects((weights > 0).astype(np.uint8))[0]
    start = tuple(int(part.start) + offset for part, offset in zip(box, crop.start, strict=True))
    centre = frame.to_lps_mm(np.array([0.0, oval.forward_mm, oval.lateral_mm]))
    voi = Voi(
        level=crop.level.name,
        weights=kept[box],
        start=start,  # type: ignore[arg-type]
        centre_lps_mm=_triple(centre),
        normal_lps=_triple(frame.axis_lps),
        semi_axes_mm=(oval.semi_lateral_mm, oval.semi_forward_mm),
        depth_mm=rule.depth_mm,
        cancellous_fraction=oval.area_mm2 / section_mm2,
        volume_mm3=float(kept.sum()) * crop.volume.voxel_volume_mm3,
        excluded_fraction=excluded,
        rule_version=rule.version,
    )
    return _with_outline(voi, crop.volume, frame)


def _with_outline(voi: Voi, volume: CtVolume, frame: VertebraFrame) -> Voi:
    middle = int(round(float(volume.to_index(np.array(voi.centre_lps_mm))[0])))
    outline = outline_lps_mm(volume, voi, frame, middle)
    return replace(voi, outlines_lps_mm=(tuple(_triple(point) for point in outline),))


def _triple(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])
