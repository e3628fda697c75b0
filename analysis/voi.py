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
import scipy
from numpy.typing import NDArray

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
PLANE_QUANTILE = 0.2  # of the distances over the planes of the depth
EDGE_SMOOTHING_MM = 1.5
PLANE_STEP = 2  # nodes of the 1-mm grid between the planes looked at
CLOSING_MM = 12.0  # radius of the ball that rolls over the vein's mouth, half of which is about 6 mm wide
OPENING_MM = 6.0  # half width of a pedicle, so that pedicles are cut off the section
N_OUTLINE_POINTS = 72


@dataclass(frozen=True, slots=True)
class VoiRule:
    """The rule by which the VOI is placed. Any change of a number needs a new version, it changes the method."""

    version: str = "oval-2"
    depth_mm: float = 9.0
    margin_mm: float = 2.0  # from the oval to the cortex and to the endplates
    cortex_margin_mm: float = 2.0  # taken off the body where the cancellous class is missing
    target_fraction: float = 2 / 3
    min_fraction: float = 0.55
    max_fraction: float = 0.75
    vein_shift_fraction: float = 0.10  # of the section's front-back diameter, forward of its middle
    shifted_fraction: float = 0.62  # the oval must still cover this much there
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
    """The cancellous section at mid-height, in the frame's (forward, lateral) plane, mm.

    area_mm2 : of the section in the middle of the depth
    extent_mm : rear and front end of it along the middle line
    middle_mm : centre of the part where the oval may lie, (forward, lateral)
    border_mm : (n, 2) points on the line that the oval must not cross: margin to the cortex kept over the whole depth
    """

    area_mm2: float
    extent_mm: tuple[float, float]
    middle_mm: tuple[float, float]
    border_mm: NDArray[np.float64]


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
    kept = weights * _inside_bone(crop) * ~_outliers(crop.volume, weights, rule)
    return _voi(crop, frame, (oval, section.area_mm2), (weights, kept), rule)


def cancellous_section(crop: VertebraCrop, frame: VertebraFrame, rule: VoiRule) -> Section:
    """The section through the cancellous bone, from its class or, where that is thin or missing, from the body.

    Distances to the section's edge in all planes of the depth are combined, a low quantile instead of the minimum, and
    smoothed, so that single ragged voxels of a mask neither narrow nor widen the section.

    Raises
    ------
    VoiError
        VOI_MARGIN when no point keeps the margin.
    """
    planes = _slab_planes(crop, frame, rule)
    distances = np.stack([_signed_distance_mm(plane) for plane in planes])
    central = len(distances) // 2
    mid = _smoothed(distances[central - 1 : central + 1].mean(axis=0))
    everywhere = np.minimum(_smoothed(np.quantile(distances, PLANE_QUANTILE, axis=0)), mid)
    border = _crossings(everywhere - rule.margin_mm)
    if len(border) < 20:
        text = f"no oval in {crop.level.name} keeps {rule.margin_mm} mm to the cortex over {rule.depth_mm} mm"
        raise VoiError("VOI_MARGIN", text)
    v, u = _fine_axes()
    inside = mid > 0
    rows, columns = np.nonzero(everywhere > rule.margin_mm)
    line = v[np.nonzero(inside[:, int(round(float(columns.mean())))])[0]]
    area = float(np.clip(mid / FINE_MM + 0.5, 0.0, 1.0).sum()) * FINE_MM**2
    middle = (float(v[rows].mean()), float(u[columns].mean()))
    return Section(area, (float(line.min()), float(line.max())), middle, border)


def _slab_planes(crop: VertebraCrop, frame: VertebraFrame, rule: VoiRule) -> NDArray[np.bool_]:
    """Cancellous sections on the 0.5-mm grid in the planes of the depth, 2 mm apart."""
    half = int(np.ceil(rule.depth_mm / 2 / GRID_MM))
    slab = slice(HALF_GRID[0] - half, HALF_GRID[0] + half + 1)
    core = _eroded_body(resample_soft(crop, frame, crop.body), rule.cortex_margin_mm)[slab]
    field = core
    if crop.cancellous.any():
        cancellous = np.minimum(_filled(resample_soft(crop, frame, crop.cancellous)[slab]), _grown(core))
        if (cancellous > 0.5).sum() > 0.7 * (core > 0.5).sum():
            field = cancellous
    return np.stack([_regular(_finer(plane) > 0.5) for plane in field[::PLANE_STEP]])


def fit_oval(section: Section, rule: VoiRule, level: str) -> Oval:
    """The oval of the target area, as far forward as the rule wants and the section allows.

    Raises
    ------
    VoiError
        VOI_COVERAGE when even the largest oval covers less than the rule's minimum.
    """
    oval = _largest_oval(_most_forward(_ovals_by_position(section), section, rule), section.border_mm)
    if oval.area_mm2 < rule.min_fraction * section.area_mm2:
        covered = oval.area_mm2 / section.area_mm2
        text = f"the largest oval in {level} covers {covered:.2f} of the cancellous section"
        raise VoiError("VOI_COVERAGE", f"{text}; expected at least {rule.min_fraction}")
    wanted = min(rule.target_fraction, rule.max_fraction)
    return _scaled(oval, min(1.0, float(np.sqrt(wanted * section.area_mm2 / oval.area_mm2))))


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
    distance = scipy.ndimage.distance_transform_edt(inside) * GRID_MM - GRID_MM / 2
    return np.asarray(np.clip(distance - margin_mm + 0.5, 0.0, 1.0), dtype=np.float32)


def _grown(core: NDArray[np.float32]) -> NDArray[np.float32]:
    """The core half a millimetre larger: the cancellous class may come that much nearer to the surface."""
    return np.asarray(np.minimum(core + 0.5, 1.0), dtype=np.float32)


def _filled(soft: NDArray[np.float32]) -> NDArray[np.float32]:
    """Holes that the vein or an island leaves in the class are part of the section."""
    return np.stack([np.maximum(plane, scipy.ndimage.binary_fill_holes(plane > 0.5)) for plane in soft])


def _finer(section: NDArray[np.float32]) -> NDArray[np.float32]:
    forward, lateral = section.shape
    rows, columns = np.arange(2 * forward - 1) / 2, np.arange(2 * lateral - 1) / 2
    places = np.meshgrid(rows, columns, indexing="ij")
    finer: NDArray[np.float32] = scipy.ndimage.map_coordinates(section, places, order=1)
    return finer


def _regular(section: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The section without pedicles (opened), largest piece, with the vein's mouth in the rear wall closed."""
    inner = scipy.ndimage.distance_transform_edt(section) * FINE_MM > OPENING_MM
    opened = (scipy.ndimage.distance_transform_edt(~inner) * FINE_MM <= OPENING_MM) & section
    pieces, count = scipy.ndimage.label(opened)
    if count > 1:
        opened = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    grown = scipy.ndimage.distance_transform_edt(~opened) * FINE_MM <= CLOSING_MM
    closed: NDArray[np.bool_] = scipy.ndimage.distance_transform_edt(grown) * FINE_MM > CLOSING_MM
    return closed


def _fine_axes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Forward and lateral coordinates of the section's nodes, mm."""
    _, v, u = grid_mm()
    return np.arange(v[0], v[-1] + FINE_MM / 2, FINE_MM), np.arange(u[0], u[-1] + FINE_MM / 2, FINE_MM)


def _signed_distance_mm(section: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance to the section's edge, positive inside."""
    inside = scipy.ndimage.distance_transform_edt(section)
    outside = scipy.ndimage.distance_transform_edt(~section)
    return np.asarray((inside - outside + np.where(section, -0.5, 0.5)) * FINE_MM)


def _smoothed(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    smooth: NDArray[np.float64] = scipy.ndimage.gaussian_filter(distance, EDGE_SMOOTHING_MM / FINE_MM)
    return smooth


def _crossings(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2), mm, where the field passes zero between neighbouring nodes, interpolated linearly."""
    axes = _fine_axes()
    found = []
    for axis in (0, 1):
        first, second = (np.moveaxis(field, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        along, across = np.nonzero((first > 0) != (second > 0))
        before, after = first[along, across], second[along, across]
        position = axes[axis][along] + FINE_MM * before / (before - after)
        pair = (position, axes[1 - axis][across])
        found.append(np.stack(pair if axis == 0 else pair[::-1], axis=1))
    return np.concatenate(found)


def _ovals_by_position(section: Section) -> NDArray[np.float64]:
    """The largest oval at each position along the front-back direction.

    Returns
    -------
    (n, 4) : forward mm (ascending in steps of 0.5 mm), lateral mm, aspect, area mm2

    Lateral position and aspect are means over the nearly largest ovals, which makes the choice continuous: a sub-voxel
    shift of the grid moves the oval by a fraction of a millimetre, not by a step.
    """
    forward, lateral = section.middle_mm
    sideways, aspect = np.meshgrid(np.arange(lateral - 4, lateral + 5, 1.0), np.arange(1.0, 1.81, 0.1), indexing="ij")
    found = []
    for position in np.arange(forward - 6, forward + 8, FINE_MM):
        candidates = np.stack([np.full(aspect.size, position), sideways.ravel(), aspect.ravel()], axis=1)
        areas = _largest_area_mm2(candidates, section.border_mm)
        near = np.exp((areas / areas.max() - 1.0) / 0.01)
        best = near @ candidates / near.sum()
        found.append([*best, float(_largest_area_mm2(best[None], section.border_mm)[0])])
    return np.array(found)


def _most_forward(ovals: NDArray[np.float64], section: Section, rule: VoiRule) -> tuple[float, float, float]:
    """Forward, lateral and aspect of the oval to use.

    The rear part of the section, where the basivertebral vein enters, is left by moving forward by up to
    `vein_shift_fraction` of the section's depth from its middle, as far as the largest oval there still covers
    `shifted_fraction`; without room for that it stays where the oval is largest.
    """
    rear, front = section.extent_mm
    wanted = (rear + front) / 2 + rule.vein_shift_fraction * (front - rear)
    best = int(np.argmax(ovals[:, 3]))
    after = ovals[best:]
    last = _crossing(after[:, 0], after[:, 3], rule.shifted_fraction * section.area_mm2)
    forward = max(min(wanted, last), float(ovals[best, 0]))
    lateral, aspect = (float(np.interp(forward, ovals[:, 0], ovals[:, column])) for column in (1, 2))
    return forward, lateral, aspect


def _crossing(forward: NDArray[np.float64], area: NDArray[np.float64], limit: float) -> float:
    """Where the area falls below the limit, interpolated; the first position when it never reaches it."""
    below = np.flatnonzero(area < limit)
    if len(below) == 0:
        return float(forward[-1])
    first = int(below[0])
    if first == 0:
        return float(forward[0])
    return float(np.interp(limit, [area[first], area[first - 1]], [forward[first], forward[first - 1]]))


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


def _inside_bone(crop: VertebraCrop) -> NDArray[np.bool_]:
    """Voxels of the body that are not marked as cortex; the vein's mouth and the walls of islands fall out here."""
    return crop.cancellous if crop.cancellous.sum() > 0.5 * crop.body.sum() else crop.body


def _outliers(volume: CtVolume, weights: NDArray[np.float32], rule: VoiRule) -> NDArray[np.bool_]:
    """Voxels of bone islands, vein and vacuum: outside the robust limits of the smoothed image, or absolute limits.

    Limits lie symmetrically about the middle of the shortest half of the values (Rousseeuw & Leroy 1987): a patch in up
    to a third of the VOI hardly moves or widens them, and on noise and symmetric texture the mean does not move.
    """
    sigma = [min(rule.outlier_smoothing_mm / mm, 1.5) for mm in volume.spacing_mm]
    smooth = scipy.ndimage.gaussian_filter(np.asarray(volume.hu, dtype=np.float32), sigma)
    middle, half_length = _shortest_half(smooth[weights > 0.5])
    spread = max(1.4826 * half_length, 5.0)
    low, high = rule.absolute_limits_hu
    outside = np.abs(smooth - middle) > rule.outlier_sd * spread
    return np.asarray(outside | (smooth < low) | (smooth > high))


def _shortest_half(values: NDArray[np.float32]) -> tuple[float, float]:
    """Middle and half length of the shortest interval that holds half of the values."""
    ordered = np.sort(values.astype(np.float64))
    count = len(ordered) // 2
    lengths = ordered[count:] - ordered[: len(ordered) - count]
    start = int(np.argmin(lengths))
    return float(ordered[start] + lengths[start] / 2), float(lengths[start] / 2)


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
    box = scipy.ndimage.find_objects((weights > 0).astype(np.uint8))[0]
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
