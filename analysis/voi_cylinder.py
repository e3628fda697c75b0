"""The oval as a cylinder in the series: the part of each voxel that lies inside it, and its outline in a slice."""

import numpy as np
from numpy.typing import NDArray

from analysis.results import Voi
from analysis.vertebra_frame import VertebraFrame
from analysis.voi_oval import Oval
from analysis.volume import CtVolume

SUBVOXEL_MM = 0.35  # edge of the parts into which a voxel is cut for its weight
N_OUTLINE_POINTS = 72


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
