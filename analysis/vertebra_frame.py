"""The vertebra's own frame: its axis from the endplates, its forward direction from the posterior elements.

Geometry only; not a step of the chain but a word that several steps share, like `analysis.volume`. Everything is done
on a 1-mm grid that is turned with the vertebra, so slice thickness, oblique or flipped volumes and scoliosis make no
difference. Grids are (axis, forward, lateral): w towards the head, v towards the front, u towards the patient's left.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.errors import VoiError
from analysis.results import Segmentation, VertebraLevel
from analysis.volume import CtVolume

POSTERIOR, CORTEX, CANCELLOUS = 1, 2, 3
# Half extent of the box around the body's centroid that is looked at: a lumbar vertebra with its processes is less than
# 110 mm wide, its posterior elements reach 70 mm behind the centre of the body.
HALF_BOX_MM = (40.0, 75.0, 65.0)  # head-feet, front-back, left-right in LPS order z, y, x
GRID_MM = 1.0
HALF_GRID = (26, 30, 34)  # nodes on each side of the centre: axis, forward, lateral
SMOOTHING_MM = 1.0  # of the body mask, before its surface is taken
MIN_BODY_MM3 = 4000.0  # a T12 body of a small woman has more than 15 000 mm3
MAX_TURNS = 3
MIN_ENDPLATE_CELLS = 150  # of 1 mm2


@dataclass(frozen=True, slots=True, eq=False)
class VertebraCrop:
    """A box of the volume around one vertebra with its masks.

    volume : float32 HU with the box's own affine
    body, posterior, cancellous : bool, (slices, rows, columns); body is cortex and cancellous bone together
    start : index of the box in the volume
    """

    volume: CtVolume
    level: VertebraLevel
    body: NDArray[np.bool_]
    posterior: NDArray[np.bool_]
    cancellous: NDArray[np.bool_]
    start: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class VertebraFrame:
    """Right-handed unit vectors in LPS at the middle of the body, and the heights between the endplate planes.

    axis_lps, forward_lps, lateral_lps : unit vectors towards head, front and the patient's left
    endplates : ((offset, slope forward, slope lateral) of the upper plane, same of the lower), mm in the frame
    """

    centre_lps_mm: NDArray[np.float64]
    axis_lps: NDArray[np.float64]
    forward_lps: NDArray[np.float64]
    lateral_lps: NDArray[np.float64]
    endplates: tuple[tuple[float, float, float], tuple[float, float, float]]

    @property
    def height_mm(self) -> float:
        return self.endplates[0][0] - self.endplates[1][0]

    @property
    def rotation(self) -> NDArray[np.float64]:
        """Columns are axis, forward, lateral: frame coordinates (w, v, u) -> LPS differences."""
        return np.stack([self.axis_lps, self.forward_lps, self.lateral_lps], axis=1)

    def to_lps_mm(self, wvu_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Frame coordinates (..., 3) -> LPS mm."""
        return np.asarray(wvu_mm) @ self.rotation.T + self.centre_lps_mm

    def to_frame_mm(self, lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """LPS mm (..., 3) -> frame coordinates (w, v, u)."""
        return (np.asarray(lps_mm) - self.centre_lps_mm) @ self.rotation


def find_level(segmentation: Segmentation, level: str) -> VertebraLevel:
    """The named level.

    Raises
    ------
    VoiError
        VERTEBRA_MISSING when the segmentation does not hold it.
    """
    for found in segmentation.levels:
        if found.name == level:
            return found
    names = ", ".join(found.name for found in segmentation.levels) or "no vertebra"
    raise VoiError("VERTEBRA_MISSING", f"{level} was not found; the segmentation holds {names}")


def crop_vertebra(volume: CtVolume, segmentation: Segmentation, level: str) -> VertebraCrop:
    """Cut the box around one vertebra out of the volume and keep the largest piece of its body.

    Raises
    ------
    VoiError
        VERTEBRA_MISSING when there is no body of that level around its centroid.
    """
    found = find_level(segmentation, level)
    box = _box_around(volume, np.array(found.centroid_lps_mm))
    mine = segmentation.labels[box] == found.label
    parts = segmentation.body[box]
    body = _largest_piece(mine & (parts >= CORTEX))
    if body.sum() * volume.voxel_volume_mm3 < MIN_BODY_MM3:
        raise VoiError("VERTEBRA_MISSING", f"the body of {level} has less than {MIN_BODY_MM3:.0f} mm3 in the masks")
    start = tuple(int(part.start) for part in box)
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_lps_mm(np.array(start, dtype=float))
    cropped = CtVolume(np.asarray(volume.hu[box], dtype=np.float32), affine)
    return VertebraCrop(cropped, found, body, mine & (parts == POSTERIOR), body & (parts == CANCELLOUS), start)  # type: ignore[arg-type]


def fit_frame(crop: VertebraCrop, segmentation: Segmentation) -> VertebraFrame:
    """The frame of one vertebra; see `fit_frame_and_body`."""
    return fit_frame_and_body(crop, segmentation)[0]


def fit_frame_and_body(crop: VertebraCrop, segmentation: Segmentation) -> tuple[VertebraFrame, NDArray[np.bool_]]:
    """Fit the frame of one vertebra: endplate planes, then the forward direction, until they agree; and its body there.

    Raises
    ------
    VoiError
        VOI_FRAME when the endplates cannot be fitted.
    """
    frame = _first_frame(crop, segmentation, _points_mm(crop, crop.body))
    body = resample_mask(crop, frame, crop.body)
    for _ in range(MAX_TURNS):
        before = frame
        frame = _turn_forward(_turn_to_endplates(frame, body, crop.level.name), body, _posterior_counts(crop, frame))
        body = resample_mask(crop, frame, crop.body)
        if _agree(before, frame):
            break
    upper, lower = _endplate_planes(body, crop.level.name)
    return replace(frame, endplates=(upper, lower)), body


def _agree(one: VertebraFrame, other: VertebraFrame) -> bool:
    """Less than one degree and 0.3 mm apart."""
    turned = np.arccos(np.clip(np.diag(one.rotation.T @ other.rotation), -1.0, 1.0)).max()
    return bool(turned < np.deg2rad(1.0) and np.linalg.norm(one.centre_lps_mm - other.centre_lps_mm) < 0.3)


def grid_mm() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates w, v, u of the nodes of the turned grid, mm."""
    w, v, u = (np.arange(-half, half + 1, dtype=np.float64) * GRID_MM for half in HALF_GRID)
    return w, v, u


def resample(crop: VertebraCrop, frame: VertebraFrame, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values of the crop on the turned 1-mm grid, linear interpolation, 0 outside.

    By torch, which takes 4 ms where scipy.ndimage.affine_transform takes 24; a vertebra is turned some forty times.
    """
    import torch  # here: the configuration reads this module, and answers before torch is loaded
    from torch.nn.functional import affine_grid, grid_sample

    steps = np.linalg.inv(crop.volume.affine[:3, :3]) @ frame.rotation * GRID_MM
    scale = 2.0 / np.maximum(np.array(values.shape) - 1, 1)  # torch counts from -1 to 1 and names the last axis first
    turn = (scale[:, None] * steps * np.array(HALF_GRID))[::-1, ::-1]
    centre = (crop.volume.to_index(frame.centre_lps_mm) * scale - 1.0)[::-1]
    transform = torch.from_numpy(np.column_stack([turn, centre]).astype(np.float32))
    nodes = affine_grid(transform[None], [1, 1, *(2 * half + 1 for half in HALF_GRID)], align_corners=True)
    image = torch.from_numpy(np.ascontiguousarray(values))
    return np.asarray(grid_sample(image[None, None], nodes, align_corners=True)[0, 0].numpy())


def resample_soft(crop: VertebraCrop, frame: VertebraFrame, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A mask on the turned grid as a smooth field 0..1 whose 0.5 level is its surface; ragged edges average out."""
    soft: NDArray[np.float32] = scipy.ndimage.gaussian_filter(
        resample(crop, frame, mask.astype(np.float32)), SMOOTHING_MM / GRID_MM
    )
    return soft


def resample_mask(crop: VertebraCrop, frame: VertebraFrame, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask on the turned grid."""
    return resample_soft(crop, frame, mask) > 0.5


def _box_around(volume: CtVolume, centre_mm: NDArray[np.float64]) -> tuple[slice, slice, slice]:
    half = np.array(HALF_BOX_MM[::-1])
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    corners = volume.to_index(centre_mm + signs * half)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, None)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, volume.hu.shape)
    return tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = scipy.ndimage.label(mask)
    if count < 2:
        return mask
    largest: NDArray[np.bool_] = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return largest


def _points_mm(crop: VertebraCrop, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return crop.volume.to_lps_mm(np.argwhere(mask).astype(float))


def _first_frame(crop: VertebraCrop, segmentation: Segmentation, points_mm: NDArray[np.float64]) -> VertebraFrame:
    """Axis along the neighbouring bodies, forward away from the posterior elements or to the patient's front."""
    centre = points_mm.mean(axis=0)
    axis = _axis_through_neighbours(crop.level, segmentation)
    forward = np.array([0.0, -1.0, 0.0])
    if crop.posterior.sum() * crop.volume.voxel_volume_mm3 > 1000.0:
        forward = centre - _points_mm(crop, crop.posterior).mean(axis=0)
    return _frame(centre, axis, forward)


def _axis_through_neighbours(level: VertebraLevel, segmentation: Segmentation) -> NDArray[np.float64]:
    """From the body below to the body above; the patient's long axis when there is no neighbour."""
    position = [found.label for found in segmentation.levels].index(level.label)
    below = segmentation.levels[min(position + 1, len(segmentation.levels) - 1)]
    above = segmentation.levels[max(position - 1, 0)]
    axis = np.array(above.centroid_lps_mm) - np.array(below.centroid_lps_mm)
    length = float(np.linalg.norm(axis))
    if not 15.0 < length < 120.0 or abs(axis[2]) < 0.5 * length:
        return np.array([0.0, 0.0, 1.0])
    return np.asarray(axis / length)


def _frame(centre: NDArray[np.float64], axis: NDArray[np.float64], forward: NDArray[np.float64]) -> VertebraFrame:
    axis = axis / np.linalg.norm(axis)
    forward = forward - axis * (axis @ forward)
    forward = forward / np.linalg.norm(forward)
    # axis (0,0,1) and forward (0,-1,0) give the patient's left, (1,0,0)
    return VertebraFrame(centre, axis, forward, np.cross(axis, forward), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))


def _turn_to_endplates(frame: VertebraFrame, body: NDArray[np.bool_], name: str) -> VertebraFrame:
    """Move the centre to the middle of the body and turn the axis to the mean normal of both endplates."""
    (up_0, up_v, up_u), (low_0, low_v, low_u) = _endplate_planes(body, name)
    normal = np.array([1.0, -(up_v + low_v) / 2, -(up_u + low_u) / 2])
    w, v, u = grid_mm()
    section = body[HALF_GRID[0]] if body[HALF_GRID[0]].any() else body.any(axis=0)
    centre = np.array(
        [(up_0 + low_0) / 2, (section.sum(axis=1) @ v) / section.sum(), (section.sum(axis=0) @ u) / section.sum()]
    )
    centre[0] += (up_v + low_v) / 2 * centre[1] + (up_u + low_u) / 2 * centre[2]
    return _frame(frame.to_lps_mm(centre), frame.rotation @ normal, frame.forward_lps)


def _endplate_planes(
    body: NDArray[np.bool_], name: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Planes through the upper and lower surface of the body, w = a + b v + c u, over its inner section.

    The rim (osteophytes, ring apophysis) and the pedicles are left out by taking the columns whose distance to the
    section's edge is more than 4 mm; outlying columns are left out by trimming.
    """
    section = body.sum(axis=0) >= 8
    inner = scipy.ndimage.distance_transform_edt(section) > 4.0
    if inner.sum() < MIN_ENDPLATE_CELLS:
        raise VoiError(
            "VOI_FRAME", f"the endplates of {name} cannot be fitted: only {inner.sum()} mm2 of inner section"
        )
    w, v, u = grid_mm()
    rows, columns = np.nonzero(inner)
    columns_of_body = body[:, rows, columns]
    top = w[body.shape[0] - 1 - np.argmax(columns_of_body[::-1], axis=0)] + GRID_MM / 2
    bottom = w[np.argmax(columns_of_body, axis=0)] - GRID_MM / 2
    return _fit_plane(v[rows], u[columns], top), _fit_plane(v[rows], u[columns], bottom)


def _fit_plane(v: NDArray[np.float64], u: NDArray[np.float64], w: NDArray[np.float64]) -> tuple[float, float, float]:
    """Least squares with residuals beyond 2.5 robust sd (at least 1 mm) left out, five rounds."""
    design = np.stack([np.ones_like(v), v, u], axis=1)
    keep = np.abs(w - np.median(w)) < 10.0
    for _ in range(5):
        plane = np.linalg.lstsq(design[keep], w[keep], rcond=None)[0]
        residual = np.abs(w - design @ plane)
        keep = residual <= max(2.5 * 1.4826 * float(np.median(residual)), 1.0)
    return float(plane[0]), float(plane[1]), float(plane[2])


def _posterior_counts(crop: VertebraCrop, frame: VertebraFrame) -> NDArray[np.int64]:
    """Number of nodes of the posterior elements along the axis, (forward, lateral)."""
    posterior = resample(crop, frame, crop.posterior.astype(np.float32)) > 0.5
    return np.asarray(posterior.sum(axis=0))


def _turn_forward(frame: VertebraFrame, body: NDArray[np.bool_], posterior: NDArray[np.int64]) -> VertebraFrame:
    """Turn about the axis: mean of the direction to the posterior elements and the short axis of the section.

    The posterior elements give the sign and the rough direction; the section's short axis steadies it where their
    mask is asymmetric. When the two differ by more than 25 degrees the posterior elements are believed.
    body, posterior : on the grid of the frame before its last small turn
    """
    short = _short_axis(body[HALF_GRID[0] - 4 : HALF_GRID[0] + 5].mean(axis=0) > 0.5)
    forward = np.array([1.0, 0.0])  # the frame's present direction when there are no posterior elements
    if np.count_nonzero(posterior) > 100:
        forward = -_mean_direction(posterior)
    if short is not None and abs(short @ forward) > np.cos(np.deg2rad(25.0)):
        forward = forward + short * np.sign(short @ forward)
    return _frame(frame.centre_lps_mm, frame.axis_lps, frame.rotation[:, 1:] @ forward)


def _mean_direction(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Unit vector (forward, lateral) from the frame's centre to the weighted mean of the cells."""
    _, v, u = grid_mm()
    direction = np.array([counts.sum(axis=1) @ v, counts.sum(axis=0) @ u]) / counts.sum()
    return np.asarray(direction / np.linalg.norm(direction))


def _short_axis(section: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Unit vector (forward, lateral) of the section's smallest second moment; None when it is nearly round."""
    _, v, u = grid_mm()
    rows, columns = np.nonzero(section)
    if len(rows) < MIN_ENDPLATE_CELLS:
        return None
    values, vectors = np.linalg.eigh(np.cov(np.stack([v[rows], u[columns]])))
    return np.asarray(vectors[:, 0]) if values[1] > 1.3 * values[0] else None
