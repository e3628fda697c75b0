"""The closed polyline of each VOI on one source slice, in DICOM's image coordinates.

Image coordinates (PS3.3 C.18.6.1.2) count (column, row) from the outer corner of the first pixel, so that the centre of
a pixel lies at +0.5. The line runs where the partial-volume weight is one half, as the segment's edge does.
"""

from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray

from analysis.errors import EncodingError
from analysis.results import PatientResult, Voi
from node.segments import SegmentKind, levels_name

_EDGE_WEIGHT = 0.5
#: A slice can stand for the VOI when it holds at least this part of what the middle slice holds.
_ENOUGH_OF_MIDDLE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """points : float64, (n, 2), closed: first point = last point; (column, row)"""

    levels: tuple[str, ...]
    slice_index: int
    points: NDArray[np.float64]

    @property
    def name(self) -> str:
        return f"{levels_name(self.levels)} {SegmentKind.VOI}"


def outlines_of(result: PatientResult) -> tuple[Outline, ...]:
    """One outline for each VOI, then one for the union when there are several.

    The union's outline lies on the first VOI too, on a slice of its own so that two lines never cover each other.
    """
    single = tuple(_outline((voi.level,), voi, _middle_slice(voi)) for voi in result.vois)
    if len(result.vois) < 2:
        return single
    levels = tuple(voi.level for voi in result.vois)
    return (*single, _outline(levels, result.vois[0], _other_slice(result.vois[0])))


def _outline(levels: tuple[str, ...], voi: Voi, index: int) -> Outline:
    weights = np.pad(voi.weights[index], 1)
    lines = contour_generator(z=weights).lines(_EDGE_WEIGHT)
    if not lines:
        raise EncodingError(f"the VOI of {voi.level} has no outline on its middle slice")
    corner = np.array([voi.start[2], voi.start[1]]) - 1  # of the padded box
    points = np.asarray(max(map(np.asarray, lines), key=np.size), dtype=np.float64) + corner + 0.5
    return Outline(levels, voi.start[0] + index, np.vstack([points[:-1], points[:1]]))


def _middle_slice(voi: Voi) -> int:
    """Slice of the box nearest the VOI's centre of mass."""
    mass = voi.weights.sum(axis=(1, 2), dtype=np.float64)
    middle = round(float(np.average(np.arange(len(mass)), weights=mass)))
    return middle if _has_edge(voi, middle) else int(mass.argmax())


def _other_slice(voi: Voi) -> int:
    """The slice farthest from the middle one that still shows a good part of the VOI; the middle one if none does."""
    mass = voi.weights.sum(axis=(1, 2), dtype=np.float64)
    middle = _middle_slice(voi)
    good = [k for k in range(len(mass)) if mass[k] >= _ENOUGH_OF_MIDDLE * mass[middle] and _has_edge(voi, k)]
    return max(good, key=lambda k: abs(k - middle), default=middle)


def _has_edge(voi: Voi, index: int) -> bool:
    return bool((voi.weights[index] >= _EDGE_WEIGHT).any())
