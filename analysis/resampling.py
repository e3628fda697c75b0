"""Between a series' own grid and the isotropic grid of the networks, without aliasing.

The canonical grid runs along the series' own axes, permuted and flipped so that they ascend most nearly along head,
back and left of the patient (LPS); an oblique series stays oblique, so every resampling is separable: one small
matrix per axis. Going to coarser voxels the matrix holds triangle weights of the output's width (anti-aliasing); going
to finer ones it interpolates linearly. Positions beyond the edge take the edge's value, except where a caller pads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.volume import CtVolume

# Slices that are reduced together; bounds the memory of a large series to some 20 MB.
SLICES_AT_ONCE = 16

# Half width of the anti-aliasing triangle in output voxels: its variance, h^2 / 6, is that of a mean over one voxel, 1
# / 12.
TRIANGLE_HALF_WIDTH = 0.71

# LPS component (row of the affine) along which canonical slices, rows and columns ascend: head, back, left.
CANONICAL_COMPONENTS = (2, 1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class CanonicalView:
    """A series seen along canonical axes; no voxel is copied.

    hu : view of the series' array
    affine : of the view, index (slice, row, column, 1) -> LPS mm
    permutation, flipped : how the view came about, see `to_canonical` and `from_canonical`
    """

    hu: NDArray[np.generic]
    affine: NDArray[np.float64]
    permutation: tuple[int, ...]
    flipped: tuple[bool, ...]

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        spacing: NDArray[np.float64] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return spacing

    @property
    def shape(self) -> tuple[int, int, int]:
        slices, rows, columns = self.hu.shape
        return slices, rows, columns


def canonical_view(volume: CtVolume) -> CanonicalView:
    """Permute and flip the axes of a volume so that they ascend to head, back and left."""
    permutation = axis_order(volume.affine)
    columns = volume.affine[:3, list(permutation)]
    flipped = tuple(bool(columns[c, axis] < 0) for axis, c in enumerate(CANONICAL_COMPONENTS))
    hu = np.transpose(volume.hu, permutation)
    affine = np.eye(4)
    affine[:3, 3] = volume.affine[:3, 3]
    for axis, flip in enumerate(flipped):
        affine[:3, axis] = -columns[:, axis] if flip else columns[:, axis]
        affine[:3, 3] += columns[:, axis] * (hu.shape[axis] - 1) if flip else 0.0
    return CanonicalView(_flip(hu, flipped), affine, permutation, flipped)


def axis_order(affine: NDArray[np.float64]) -> tuple[int, ...]:
    """Which volume axis runs most nearly along head, back and left; each axis is used once."""
    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return max(orders, key=lambda order: sum(cosines[c, a] for c, a in zip(CANONICAL_COMPONENTS, order, strict=True)))


def _flip(array: NDArray[np.generic], flipped: tuple[bool, ...]) -> NDArray[np.generic]:
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]


def from_canonical(array: NDArray[np.uint8], view: CanonicalView) -> NDArray[np.uint8]:
    """An array on the view's grid -> the series' own axes, contiguous."""
    own = np.transpose(_flip(array, view.flipped), np.argsort(view.permutation))
    return np.ascontiguousarray(own)


@dataclass(frozen=True, slots=True, eq=False)
class IsotropicGrid:
    """A box of isotropic voxels in a view.

    origin_mm : float64, (3,), distance from the view's voxel (0, 0, 0) along its axes
    """

    origin_mm: NDArray[np.float64]
    spacing_mm: float
    shape: tuple[int, int, int]

    def to_axis_mm(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Grid indices (..., 3) -> mm along the view's axes."""
        return self.origin_mm + np.asarray(index, dtype=np.float64) * self.spacing_mm

    def to_index(self, axis_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        return (np.asarray(axis_mm, dtype=np.float64) - self.origin_mm) / self.spacing_mm


def covering_grid(view: CanonicalView, spacing_mm: float) -> IsotropicGrid:
    """The grid of a given spacing that covers the view, centred on it."""
    extent_mm = view.spacing_mm * np.array(view.shape)
    shape = np.maximum(np.round(extent_mm / spacing_mm).astype(int), 1)
    origin_mm = ((np.array(view.shape) - 1) * view.spacing_mm - (shape - 1) * spacing_mm) / 2
    return IsotropicGrid(origin_mm, spacing_mm, (int(shape[0]), int(shape[1]), int(shape[2])))


def box_around(centre_mm: NDArray[np.float64], spacing_mm: float, shape: tuple[int, int, int]) -> IsotropicGrid:
    """A grid whose middle lies at `centre_mm` along the view's axes."""
    return IsotropicGrid(centre_mm - (np.array(shape) - 1) * spacing_mm / 2, spacing_mm, shape)


def axis_to_lps_mm(view: CanonicalView, axis_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """mm along the view's axes (..., 3) -> LPS mm."""
    directions = view.affine[:3, :3] / view.spacing_mm
    positions: NDArray[np.float64] = np.asarray(axis_mm) @ directions.T + view.affine[:3, 3]
    return positions


def interpolation_matrix(positions: NDArray[np.float64], n_in: int, width: float) -> NDArray[np.float32]:
    """Rows of weights that sample a signal of `n_in` values at `positions` (in input indices).

    The kernel is a triangle of half width max(1, width) input voxels; weights of positions outside fold on the edge.
    Returns float32, (positions, n_in), each row with sum 1.
    """
    half = max(1.0, width)
    reach = int(np.ceil(half))
    nearest = np.floor(positions).astype(int)
    offsets = np.arange(-reach, reach + 2)
    index = nearest[:, None] + offsets[None, :]
    weights = np.maximum(0.0, 1.0 - np.abs(index - positions[:, None]) / half)
    matrix = np.zeros((len(positions), n_in))
    rows = np.broadcast_to(np.arange(len(positions))[:, None], index.shape)
    np.add.at(matrix, (rows, np.clip(index, 0, n_in - 1)), weights)
    normalised: NDArray[np.float32] = (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def inside(positions: NDArray[np.float64], n_in: int) -> NDArray[np.bool_]:
    """Positions within half a voxel of the signal."""
    result: NDArray[np.bool_] = (positions >= -0.5) & (positions <= n_in - 0.5)
    return result


def _grid_positions(view: CanonicalView, grid: IsotropicGrid) -> list[NDArray[np.float64]]:
    """Per axis: the grid's voxel centres in indices of the view."""
    return [
        (grid.origin_mm[axis] + np.arange(grid.shape[axis]) * grid.spacing_mm) / view.spacing_mm[axis]
        for axis in range(3)
    ]


def resample(view: CanonicalView, grid: IsotropicGrid, device: torch.device) -> Tensor:
    """HU on an isotropic grid, float32 on `device`; -1024 outside the view."""
    positions = _grid_positions(view, grid)
    spans, matrices = [], []
    for axis in range(3):
        width = TRIANGLE_HALF_WIDTH * grid.spacing_mm / view.spacing_mm[axis]
        full = interpolation_matrix(positions[axis], view.shape[axis], width)
        used = np.flatnonzero(full.any(axis=0))
        spans.append(slice(int(used[0]), int(used[-1]) + 1))
        matrices.append(torch.from_numpy(full[:, spans[axis]].copy()).to(device))
    hu = view.hu[tuple(spans)]
    result = _apply_matrices(hu, matrices, device)
    for axis in range(3):
        beyond = torch.from_numpy(~inside(positions[axis], view.shape[axis])).to(device)
        result.masked_fill_(beyond.view([-1 if a == axis else 1 for a in range(3)]), -1024.0)
    return result


def _apply_matrices(hu: NDArray[np.generic], matrices: list[Tensor], device: torch.device) -> Tensor:
    """Reduce rows and columns some slices at a time, then slices."""
    to_slices, to_rows, to_columns = matrices
    planes = []
    for start in range(0, hu.shape[0], SLICES_AT_ONCE):
        chunk = np.ascontiguousarray(hu[start : start + SLICES_AT_ONCE])
        slab = torch.from_numpy(chunk).to(device).float()
        planes.append(to_rows @ (slab @ to_columns.T))
    reduced = torch.cat(planes)
    return (to_slices @ reduced.flatten(1)).view(-1, *reduced.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class ViewBox:
    """The part of a view that a grid covers, and how to bring values from the grid there."""

    slices: tuple[slice, slice, slice]
    matrices: tuple[Tensor, Tensor, Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        n_slices, n_rows, n_columns = (part.stop - part.start for part in self.slices)
        return n_slices, n_rows, n_columns


def view_box(view: CanonicalView, grid: IsotropicGrid, margin_voxels: int, device: torch.device) -> ViewBox | None:
    """The voxels of the view inside the grid, less a margin in grid voxels; None when there are none."""
    parts, matrices = [], []
    for axis in range(3):
        positions = (np.arange(view.shape[axis]) * view.spacing_mm[axis] - grid.origin_mm[axis]) / grid.spacing_mm
        used = np.flatnonzero((positions >= margin_voxels) & (positions <= grid.shape[axis] - 1 - margin_voxels))
        if used.size == 0:
            return None
        parts.append(slice(int(used[0]), int(used[-1]) + 1))
        width = TRIANGLE_HALF_WIDTH * float(view.spacing_mm[axis]) / grid.spacing_mm
        matrices.append(torch.from_numpy(interpolation_matrix(positions[used], grid.shape[axis], width)).to(device))
    return ViewBox((parts[0], parts[1], parts[2]), (matrices[0], matrices[1], matrices[2]))


def to_view(values: Tensor, box: ViewBox) -> Tensor:
    """(channels, slices, rows, columns) on the grid -> the same channels on the box's voxels of the view."""
    to_slices, to_rows, to_columns = box.matrices
    values = values.to(to_slices.device)
    values = torch.einsum("cijk,ai->cajk", values, to_slices)
    return to_rows @ (values @ to_columns.T)
