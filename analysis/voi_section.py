"""The cancellous section of a vertebral body at mid-height, and the line in it that an oval must not cross.

Sections are arrays (forward, lateral) on a 0.5-mm grid in the mid-plane of the vertebra's frame.
"""

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.errors import VoiError
from analysis.vertebra_frame import GRID_MM, HALF_GRID, VertebraCrop, VertebraFrame, grid_mm, resample_soft
from analysis.voi_rule import VoiRule

FINE_MM = GRID_MM / 2  # grid of the section in which the oval is fitted
PLANE_QUANTILE = 0.2  # of the distances over the planes of the depth
EDGE_SMOOTHING_MM = 1.5
PLANE_STEP = 2  # nodes of the 1-mm grid between the planes looked at
CLOSING_MM = 12.0  # radius of the ball that rolls over the vein's mouth, half of which is about 6 mm wide
OPENING_MM = 6.0  # half width of a pedicle, so that pedicles are cut off the section


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
