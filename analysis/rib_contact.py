"""Does a rib belong to this vertebra? Rib tissue beside and behind the body, measured in the vertebra's own frame.

In the frame of the spine's axis the medial end of a vertebra's own rib lies at the height of the body's upper half, 30
to 40 mm to the side and 25 to 40 mm behind the centroid; the rib of the vertebra above reaches this distance only 25 mm
higher, that of the vertebra below 17 mm lower (measured on the two label maps with ribs, T2 to L1). A box between these
holds a rib or none. Upright axes would not do: kyphosis and lordosis turn the frame by up to 40 degrees.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analysis.resampling import CanonicalView, IsotropicGrid


@dataclass(frozen=True, slots=True)
class RibBox:
    """Where the medial end of a rib lies, mm from the body's centroid: along the axis (up), behind, to the side.

    doubtful_ml : volume of rib in the box (the fuller of both sides) that says nothing; `width_ml` softens the step
    """

    up_mm: tuple[float, float] = (-12.0, 14.0)
    behind_mm: tuple[float, float] = (12.0, 50.0)
    aside_mm: tuple[float, float] = (20.0, 46.0)
    doubtful_ml: float = 0.2
    width_ml: float = 0.05


def spine_axes(centroids_mm: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Unit vectors along the spine, towards the head, at each centroid (from head to feet), from its neighbours."""
    if len(centroids_mm) == 1:
        return [np.array([1.0, 0.0, 0.0])]
    axes = []
    for i in range(len(centroids_mm)):
        upper, lower = centroids_mm[max(i - 1, 0)], centroids_mm[min(i + 1, len(centroids_mm) - 1)]
        axes.append((upper - lower) / np.linalg.norm(upper - lower))
    return axes


def rib_volumes_ml(
    rib: Tensor, grid: IsotropicGrid, centroid_mm: NDArray[np.float64], axis: NDArray[np.float64], box: RibBox
) -> tuple[float, float]:
    """Volume of rib in the box on the right and on the left. rib : probability on `grid`."""
    part, sides = in_boxes(grid, centroid_mm, axis, box)
    values = rib[part].cpu().numpy() * grid.spacing_mm**3 / 1000.0
    right, left = (float(values[inside].sum()) for inside in sides)
    return right, left


def in_boxes(
    grid: IsotropicGrid, centroid_mm: NDArray[np.float64], axis: NDArray[np.float64], box: RibBox
) -> tuple[tuple[slice, slice, slice], tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """A part of the grid around the vertebra, and which of its voxels lie in the box on the right and on the left."""
    part = _near(grid, centroid_mm, 75.0)
    offsets_mm = [
        grid.origin_mm[a] + np.arange(p.start, p.stop) * grid.spacing_mm - centroid_mm[a] for a, p in enumerate(part)
    ]
    up_mm, behind_mm, aside_mm = (_along(direction, offsets_mm) for direction in _frame(axis))
    inside = _between(up_mm, box.up_mm) & _between(behind_mm, box.behind_mm)
    return part, (inside & _between(-aside_mm, box.aside_mm), inside & _between(aside_mm, box.aside_mm))


def rib_contact(volumes_ml: tuple[float, float], in_view: tuple[bool, bool], box: RibBox) -> float | None:
    """0..1, how surely a rib belongs to the vertebra, from the fuller side in view; None when no side is in view."""
    seen = [volume for volume, visible in zip(volumes_ml, in_view, strict=True) if visible]
    if not seen:
        return None
    return float(1.0 / (1.0 + np.exp(-np.clip((max(seen) - box.doubtful_ml) / box.width_ml, -30, 30))))


def sides_in_view(
    view: CanonicalView, centroid_mm: NDArray[np.float64], axis: NDArray[np.float64], box: RibBox
) -> tuple[bool, bool]:
    """Whether the middle of the box on the right and on the left lies inside the series."""
    up, behind, left = _frame(axis)
    middle = centroid_mm + up * np.mean(box.up_mm) + behind * np.mean(box.behind_mm)
    last_mm = (np.array(view.shape) - 1) * view.spacing_mm
    places = (middle - left * box.aside_mm[1], middle + left * box.aside_mm[1])
    right_in, left_in = (bool((place >= 0).all() and (place <= last_mm).all()) for place in places)
    return right_in, left_in


def _frame(axis: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Up along the spine, straight behind, to the left; orthonormal, in (head, back, left) components."""
    left = np.array([0.0, 0.0, 1.0])
    left = left - (left @ axis) * axis
    left /= np.linalg.norm(left)
    behind = np.cross(left, axis)
    return axis, behind if behind[1] > 0 else -behind, left


def _along(direction: NDArray[np.float64], offsets_mm: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Distances along a direction of all voxels of a box, from their offsets along the three axes."""
    z, y, x = (component * offset for component, offset in zip(direction, offsets_mm, strict=True))
    distances: NDArray[np.float64] = z[:, None, None] + y[:, None] + x
    return distances


def _between(values: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = (values >= limits[0]) & (values <= limits[1])
    return result


def _near(grid: IsotropicGrid, centre_mm: NDArray[np.float64], reach_mm: float) -> tuple[slice, slice, slice]:
    low = np.maximum(np.floor(grid.to_index(centre_mm - reach_mm)).astype(int), 0)
    high = np.minimum(np.ceil(grid.to_index(centre_mm + reach_mm)).astype(int) + 1, grid.shape)
    parts = [slice(int(a), max(int(a), int(b))) for a, b in zip(low, high, strict=True)]
    return parts[0], parts[1], parts[2]
