"""Which segments a result has, in which order, and where their voxels lie.

Order: bodies of the measured vertebrae, their trabecular VOIs, then the union VOI that carries the mean. The union of
L1 and L2 is called "L1-L2"; any other pair is named by its levels ("T12+L1"), never as the L1-L2 mean.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.errors import EncodingError
from analysis.results import PatientResult, Segmentation, VertebraLevel, Voi

#: `Segmentation.body` values of the vertebral body: 2 cortex, 3 cancellous bone.
_BODY_FROM = 2
#: A voxel belongs to the VOI segment when at least half of it does.
_VOI_WEIGHT = 0.5


class SegmentKind(StrEnum):
    BODY = "vertebral body"
    VOI = "trabecular VOI"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """mask : bool, on the box of the source grid that starts at `start` (slice, row, column)"""

    levels: tuple[str, ...]
    kind: SegmentKind
    mask: NDArray[np.bool_]
    start: tuple[int, int, int]

    @property
    def name(self) -> str:
        return f"{levels_name(self.levels)} {self.kind}"

    @property
    def slices(self) -> NDArray[np.int64]:
        """Indices of the source slices in which the segment has voxels, ascending."""
        return np.flatnonzero(self.mask.any(axis=(1, 2))) + self.start[0]

    @property
    def centre_index(self) -> NDArray[np.float64]:
        """Mean (slice, row, column) of the voxels."""
        return np.asarray(np.argwhere(self.mask).mean(axis=0) + self.start, dtype=np.float64)

    def paint(self, target: NDArray[np.uint8], target_slices: NDArray[np.int64], value: int = 1) -> None:
        """Write `value` where the segment is into (slices, rows, columns).

        target_slices : index in the source of each slice of `target`, ascending, with all of `self.slices` among them
        """
        (first, row, column), (_, n_rows, n_columns) = self.start, self.mask.shape
        for index in self.slices:
            region = target[np.searchsorted(target_slices, index), row:row + n_rows, column:column + n_columns]
            region[self.mask[index - first]] = value


def levels_name(levels: tuple[str, ...]) -> str:
    """Name of one vertebra or of the vertebrae that a mean is made of."""
    return "L1-L2" if levels == ("L1", "L2") else "+".join(levels)


def measured_segments(result: PatientResult) -> tuple[Segment, ...]:
    """Segments of a reported result, in the order of their numbers."""
    if result.segmentation is None or not result.vois:
        raise EncodingError("a reported result has no segmentation or no VOI; cannot write a SEG")
    measured = tuple(voi.level for voi in result.vois)
    bodies = body_segments(result.segmentation, measured)
    vois = tuple(voi_segment(voi) for voi in result.vois)
    union = () if len(vois) < 2 else (union_segment(vois),)
    return bodies + vois + union


def other_segments(result: PatientResult) -> tuple[Segment, ...]:
    """Bodies of complete vertebrae that were found but not measured."""
    if result.segmentation is None:
        return ()
    measured = {voi.level for voi in result.vois}
    levels = tuple(level.name for level in result.segmentation.levels if level.complete and level.name not in measured)
    return body_segments(result.segmentation, levels)


def body_segments(segmentation: Segmentation, levels: tuple[str, ...]) -> tuple[Segment, ...]:
    """Vertebral bodies (cortex and cancellous bone, without posterior elements); a level without voxels is left out."""
    boxes = ndimage.find_objects(segmentation.labels)
    labels = {level.name: level for level in segmentation.levels}
    found = (_body(segmentation, labels[name], boxes) for name in levels if name in labels)
    return tuple(segment for segment in found if segment is not None)


def voi_segment(voi: Voi) -> Segment:
    mask = voi.weights >= _VOI_WEIGHT
    if not mask.any():
        raise EncodingError(f"the VOI of {voi.level} holds no voxel with a weight of {_VOI_WEIGHT} or more")
    return Segment((voi.level,), SegmentKind.VOI, mask, voi.start)


def union_segment(segments: tuple[Segment, ...]) -> Segment:
    """All given VOIs as one segment, on their common box."""
    low = np.min([segment.start for segment in segments], axis=0)
    high = np.max([np.add(segment.start, segment.mask.shape) for segment in segments], axis=0)
    mask = np.zeros(tuple(high - low), dtype=np.bool_)
    for segment in segments:
        box = tuple(slice(b, b + n) for b, n in zip(np.subtract(segment.start, low), segment.mask.shape, strict=True))
        mask[box] |= segment.mask
    levels = tuple(level for segment in segments for level in segment.levels)
    return Segment(levels, SegmentKind.VOI, mask, (int(low[0]), int(low[1]), int(low[2])))


def _body(
    segmentation: Segmentation, level: VertebraLevel, boxes: list[tuple[slice, slice, slice] | None]
) -> Segment | None:
    box = boxes[level.label - 1] if level.label <= len(boxes) else None
    if box is None:
        return None
    mask = (segmentation.labels[box] == level.label) & (segmentation.body[box] >= _BODY_FROM)
    if not mask.any():
        return None
    return Segment((level.name,), SegmentKind.BODY, mask, (box[0].start, box[1].start, box[2].start))
