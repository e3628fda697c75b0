"""Signed-distance shapes on a regular grid: the drawing tools of the simulated anatomy.

A `Grid` is isotropic and aligned with the scanner (LPS). Anatomy is written in the patient's own frame (x to the left,
y to the back, z to the head, millimetres); a `Pose` carries it into the scanner. Distances are negative inside.
Arrays are (slices, rows, columns). Every drawing touches only the window of the grid that the shape can reach.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Point = tuple[float, float, float]
Window = tuple[slice, slice, slice]
FAR_MM = 9.0                     # value of a distance field where nothing is near


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """lps = rotation @ patient + offset."""

    rotation: NDArray[np.float64]
    offset_mm: NDArray[np.float64]

    @property
    def untilted(self) -> bool:
        return bool(np.allclose(self.rotation, np.eye(3)))

    def to_lps_mm(self, patient_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.asarray(patient_mm) @ self.rotation.T + self.offset_mm)


def pose_from_angles(angles_deg: Point, pivot_mm: Point) -> Pose:
    """Rotate about x, then y, then z (degrees, in that order) round a fixed point."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_deg)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    pivot = np.asarray(pivot_mm)
    return Pose(rotation, pivot - rotation @ pivot)


def _turn(matrix: NDArray[np.float64], vector: list[Field]) -> tuple[Field, Field, Field]:
    """A 3 x 3 matrix times a vector of fields."""
    m = matrix.astype(np.float32)
    x, y, z = (np.asarray(row[0] * vector[0] + row[1] * vector[1] + row[2] * vector[2]) for row in m)
    return x, y, z


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A local right-angled frame in the patient: rows of `axes` are the local x, y, z directions."""

    origin_mm: NDArray[np.float64]
    axes: NDArray[np.float64]

    def to_patient(self, local_mm: Point | NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(local_mm) @ self.axes + self.origin_mm

    def to_local(self, coordinates: tuple[Field, Field, Field]) -> tuple[Field, Field, Field]:
        shifted = [c - np.float32(o) for c, o in zip(coordinates, self.origin_mm, strict=True)]
        return _turn(self.axes, shifted)


PATIENT_FRAME = Frame(np.zeros(3), np.eye(3))


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """An isotropic scanner-aligned grid; `origin_lps_mm` is the centre of voxel (0, 0, 0)."""

    shape: tuple[int, int, int]
    origin_lps_mm: Point
    spacing_mm: float
    pose: Pose

    def axis_mm(self, axis: int) -> NDArray[np.float64]:
        """LPS positions along array axis 0 (z), 1 (y) or 2 (x)."""
        steps = np.arange(self.shape[axis], dtype=np.float64)
        return np.asarray(self.origin_lps_mm[2 - axis] + self.spacing_mm * steps)

    def window(self, low_mm: NDArray[np.float64], high_mm: NDArray[np.float64]) -> Window | None:
        """The part of the grid that covers a box given in the patient's frame; None where they do not meet."""
        corners = np.array([[(low_mm, high_mm)[(k >> i) & 1][i] for i in range(3)] for k in range(8)])
        lps = self.pose.to_lps_mm(corners)
        index = ((lps - np.asarray(self.origin_lps_mm)) / self.spacing_mm)[:, ::-1]
        start = np.maximum(np.floor(index.min(0)).astype(int), 0)
        stop = np.minimum(np.ceil(index.max(0)).astype(int) + 1, self.shape)
        if (start >= stop).any():
            return None
        z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        return z, y, x

    def part(self, window: Window) -> "Grid":
        """The window as a grid of its own."""
        z, y, x = (float(self.axis_mm(a)[window[a].start]) for a in range(3))
        shape = (window[0].stop - window[0].start, window[1].stop - window[1].start, window[2].stop - window[2].start)
        return Grid(shape, (x, y, z), self.spacing_mm, self.pose)

    @property
    def whole(self) -> Window:
        z, y, x = (slice(0, n) for n in self.shape)
        return z, y, x

    def coordinates(self, window: Window) -> tuple[Field, Field, Field]:
        """Patient x, y, z of a window; broadcastable one-dimensional arrays where the pose is untilted."""
        z, y, x = (self.axis_mm(a)[window[a]].astype(np.float32) for a in range(3))
        lps = (x[None, None, :], y[None, :, None], z[:, None, None])
        offset = self.pose.offset_mm.astype(np.float32)
        if self.pose.untilted:
            return lps[0] - offset[0], lps[1] - offset[1], lps[2] - offset[2]
        shifted = [lps[k] - offset[k] for k in range(3)]
        return _turn(self.pose.rotation.T, shifted)


def along_z(z_mm: Field, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Field:
    """A function of z alone for whole arrays, by a table of 0.25-mm steps where the array is large."""
    if z_mm.size < 5000:
        return np.asarray(function(z_mm.astype(np.float64)), dtype=np.float32)
    low, high = float(z_mm.min()), float(z_mm.max())
    table = np.asarray(function(np.arange(low, high + 0.5, 0.25)), dtype=np.float32)
    return np.asarray(table[((z_mm - np.float32(low)) * np.float32(4)).astype(np.int32)], dtype=np.float32)


def smooth_union(a: Field, b: Field, blend_mm: float) -> Field:
    """Smooth minimum of two distance fields (quadratic polynomial, Quilez 2013)."""
    mix = np.maximum(blend_mm - np.abs(a - b), 0.0) / np.float32(blend_mm)
    return np.asarray(np.minimum(a, b) - mix * mix * np.float32(0.25 * blend_mm), dtype=np.float32)


def smooth_intersection(a: Field, b: Field, blend_mm: float) -> Field:
    return -smooth_union(-a, -b, blend_mm)


@dataclass(frozen=True, slots=True)
class Bone:
    """A tapered rod between two points; `stretch` > 1 makes it wider along that local axis."""

    start: Point
    end: Point
    radius_start_mm: float
    radius_end_mm: float
    stretch: Point = (1.0, 1.0, 1.0)


def rod_distance(coordinates: tuple[Field, Field, Field], rod: Bone) -> Field:
    """Distance to a tapered rod, in the coordinates' own frame."""
    start, end, stretch = (np.asarray(v, dtype=np.float32) for v in (rod.start, rod.end, rod.stretch))
    along = (end - start) / stretch
    length2 = np.float32(max(float(along @ along), 1e-6))
    p = [(c - s) / k for c, s, k in zip(coordinates, start, stretch, strict=True)]
    t = np.clip((p[0] * along[0] + p[1] * along[1] + p[2] * along[2]) / length2, 0.0, 1.0)
    gap2 = sum((p[k] - t * along[k]) ** 2 for k in range(3))
    radius = np.float32(rod.radius_start_mm) + np.float32(rod.radius_end_mm - rod.radius_start_mm) * t
    return np.asarray(np.sqrt(gap2) - radius, dtype=np.float32)


def reach_of(rod: Bone, frame: Frame, margin_mm: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The box in the patient's frame that holds a rod with a margin round it."""
    ends = frame.to_patient(np.array([rod.start, rod.end]))
    reach = max(rod.radius_start_mm, rod.radius_end_mm) * np.asarray(rod.stretch) + margin_mm
    pad = np.abs(frame.axes).T @ reach
    return ends.min(0) - pad, ends.max(0) + pad


def draw_rod(grid: Grid, field: Field, rod: Bone, frame: Frame = PATIENT_FRAME, blend_mm: float = 0.0) -> None:
    """Join a rod to a distance field on the whole grid, in place."""
    window = grid.window(*reach_of(rod, frame, 4.0))
    if window is None:
        return
    distance = rod_distance(frame.to_local(grid.coordinates(window)), rod)
    old = field[window]
    field[window] = smooth_union(old, distance, blend_mm) if blend_mm else np.minimum(old, distance)


def unit_gradient(distance: Field, spacing_mm: float) -> Field:
    """Divide an implicit function by its gradient, so that it measures millimetres near its surface."""
    if min(distance.shape) < 2:
        return distance
    slope = np.sqrt(sum(g * g for g in np.gradient(distance, spacing_mm)))
    return np.asarray(distance / np.clip(slope, 0.5, 3.0), dtype=np.float32)
