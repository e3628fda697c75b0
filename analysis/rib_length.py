"""How far does the rib of a vertebra reach? The 12th rib is much shorter than the 11th, which tells them apart where
neither the first rib nor the sacrum is in view.

The length is the distance from the rib's medial end (its part in the box of `rib_contact`) to its farthest voxel. A rib
that leaves the series, or ends at air (a field of view that cuts it), has no length. A broken 11th rib must not pass
for a 12th: pieces that the network left unconnected are joined across short gaps, and a rib whose bone goes on in the
CT beyond the network's last piece has no length either.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from analysis.resampling import IsotropicGrid
from analysis.rib_contact import RibBox, in_boxes

# A part of the grid, and which of its voxels lie in a rib box.
Place = tuple[tuple[slice, slice, slice], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class RibReach:
    """What belongs to a rib and where it ends.

    rib : smallest probability of a rib voxel; gap_mm : pieces nearer than this belong together
    air_hu : below it, within `tip_mm` of the tip, the field of view cuts the rib
    bone_hu : above it, beyond the tip and within `gap_mm`, the rib goes on although the network lost it
    """

    rib: float = 0.4
    gap_mm: float = 18.0
    air_hu: float = -900.0
    tip_mm: float = 4.0
    bone_hu: float = 140.0


# The grid, the CT on it, and what counts as a rib.
Scan = tuple[IsotropicGrid, NDArray[np.float32], RibReach]


@dataclass(frozen=True, slots=True, eq=False)
class RibPieces:
    """Connected pieces of rib: their labels on the grid, and the voxels (n, 3) of each in mm along the view's axes."""

    labels: NDArray[np.int32]
    voxels_mm: tuple[NDArray[np.float64], ...]


def rib_lengths_mm(
    rib: Tensor, hu: Tensor, grid: IsotropicGrid, frames: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
    box: RibBox, reach: RibReach,
) -> list[float | None]:  # fmt: skip
    """The longer of both ribs of each vertebra; None where neither side has a rib that can be measured.

    rib, hu : probability of a rib and CT on `grid`, (D, H, W)
    frames : body centroid and unit vector along the spine of each vertebra, mm along the view's axes
    """
    pieces = _pieces(rib.cpu().numpy() > reach.rib, grid)
    if not pieces.voxels_mm:
        return [None] * len(frames)
    boxes = [in_boxes(grid, centroid, axis, box) for centroid, axis in frames]
    places = [(part, inside) for part, sides in boxes for inside in sides]
    roots = _owned_pieces(pieces.labels, places)
    ct = hu.cpu().numpy()
    lengths = [
        _length_mm(pieces, root, set(roots), _medial_end_mm(pieces.labels == root, place, grid), (grid, ct, reach))
        if root
        else None
        for root, place in zip(roots, places, strict=True)
    ]
    pairs = zip(lengths[::2], lengths[1::2], strict=True)
    return [max((side for side in pair if side is not None), default=None) for pair in pairs]


def _pieces(mask: NDArray[np.bool_], grid: IsotropicGrid) -> RibPieces:
    labels, n = ndimage.label(mask, np.ones((3, 3, 3)))
    places = np.argwhere(mask)
    of_voxel = labels[mask]
    voxels = tuple(grid.to_axis_mm(places[of_voxel == i].astype(np.float64)) for i in range(1, n + 1))
    return RibPieces(labels, voxels)


def _owned_pieces(labels: NDArray[np.int32], places: list[Place]) -> list[int]:
    """The piece of each box, 0 for none; a piece that reaches into several boxes belongs to the one it fills most."""
    counts = [np.bincount(labels[part][inside], minlength=1) for part, inside in places]
    best = [int(count[1:].argmax()) + 1 if count[1:].any() else 0 for count in counts]
    filled = [int(count[piece]) if piece else 0 for count, piece in zip(counts, best, strict=True)]
    rivals = {piece: max(f for f, other in zip(filled, best, strict=True) if other == piece) for piece in best}
    return [piece if piece and f == rivals[piece] else 0 for piece, f in zip(best, filled, strict=True)]


def _medial_end_mm(own: NDArray[np.bool_], place: Place, grid: IsotropicGrid) -> NDArray[np.float64]:
    part, inside = place
    corner = np.array([p.start for p in part])
    return grid.to_axis_mm((np.argwhere(inside & own[part]) + corner).mean(axis=0))


def _length_mm(
    pieces: RibPieces, root: int, taken: set[int], start_mm: NDArray[np.float64], scan: Scan
) -> float | None:  # fmt: skip
    """From the medial end to the tip; None when that is not where the rib ends."""
    tip_mm = _tip_mm(pieces, root, taken, start_mm, scan[2].gap_mm)
    ends = not _is_cut(tip_mm, scan) and not _goes_on(start_mm, tip_mm, scan)
    return float(np.linalg.norm(tip_mm - start_mm)) if ends else None


def _tip_mm(
    pieces: RibPieces, root: int, taken: set[int], start_mm: NDArray[np.float64], gap_mm: float
) -> NDArray[np.float64]:
    """The voxel farthest from the medial end, followed from piece to piece while a free one lies near the tip."""
    free = {i: voxels for i, voxels in enumerate(pieces.voxels_mm, start=1) if i not in taken}
    tip_mm = _farthest(pieces.voxels_mm[root - 1], start_mm)
    while free:
        gaps = {i: float(np.linalg.norm(voxels - tip_mm, axis=1).min()) for i, voxels in free.items()}
        nearest = min(gaps, key=gaps.__getitem__)
        if gaps[nearest] > gap_mm:
            break
        further = _farthest(free.pop(nearest), start_mm)
        if np.linalg.norm(further - start_mm) > np.linalg.norm(tip_mm - start_mm):
            tip_mm = further
    return tip_mm


def _farthest(voxels_mm: NDArray[np.float64], start_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    farthest: NDArray[np.float64] = voxels_mm[np.linalg.norm(voxels_mm - start_mm, axis=1).argmax()]
    return farthest


def _is_cut(tip_mm: NDArray[np.float64], scan: Scan) -> bool:
    """Whether the tip lies at the edge of the series or beside air, where the field of view ends."""
    grid, ct, reach = scan
    tip = np.round(grid.to_index(tip_mm)).astype(int)
    around = _around(tip, reach.tip_mm, grid)
    return bool((tip <= 1).any() or (tip >= np.array(grid.shape) - 2).any() or (ct[around] < reach.air_hu).any())


def _goes_on(start_mm: NDArray[np.float64], tip_mm: NDArray[np.float64], scan: Scan) -> bool:
    """Whether there is bone beyond the tip, within 60 degrees of the rib's direction and past its own rim."""
    grid, ct, reach = scan
    part = _around(np.round(grid.to_index(tip_mm)).astype(int), reach.gap_mm, grid)
    places = np.argwhere(ct[part] > reach.bone_hu) + [p.start for p in part]
    beyond_mm = grid.to_axis_mm(places.astype(np.float64)) - tip_mm
    distance_mm = np.linalg.norm(beyond_mm, axis=1)
    direction = (tip_mm - start_mm) / max(float(np.linalg.norm(tip_mm - start_mm)), 1e-6)
    ahead = beyond_mm @ direction > 0.5 * distance_mm
    return bool((ahead & (distance_mm > 1.6 * grid.spacing_mm) & (distance_mm <= reach.gap_mm)).any())


def _around(index: NDArray[np.int64], reach_mm: float, grid: IsotropicGrid) -> tuple[slice, ...]:
    width = int(np.ceil(reach_mm / grid.spacing_mm))
    return tuple(slice(max(0, int(i) - width), int(i) + width + 1) for i in index)
