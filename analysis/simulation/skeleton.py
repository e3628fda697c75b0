"""Ribs, sacrum, pelvis, sternum, shoulder blades: tapered rods, joined bone by bone into one distance field.

Ribs hang on the vertebra of their own number: head at the upper edge of the body, tubercle at the tip of the transverse
process (not for the two lowest), then along the chest wall downwards to the front.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from analysis.simulation.shapes import (
    FAR_MM,
    PATIENT_FRAME,
    Bone,
    Field,
    Frame,
    Grid,
    Point,
    Window,
    along_z,
    draw_rod,
    reach_of,
    smooth_union,
    unit_gradient,
)
from analysis.simulation.spine_curve import LevelSize, PlacedVertebra, SpineSpec, centre_at, height_of, position_at
from analysis.simulation.vertebra import VertebraLook, body_distance


class Part(IntEnum):
    """What a bone voxel belongs to."""

    POSTERIOR = 1
    BODY = 2
    SACRUM = 3
    RIB = 4
    PELVIS = 5
    OTHER = 6


@dataclass(slots=True, eq=False)
class BoneMap:
    """All bone of one grid: distance to the nearest bone surface, its part and its vertebra label (0: none)."""

    grid: Grid
    distance: Field
    part: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def empty_bone_map(grid: Grid) -> BoneMap:
    return BoneMap(grid, np.full(grid.shape, FAR_MM, np.float32), np.zeros(grid.shape, np.uint8),
                   np.zeros(grid.shape, np.uint8))


def join_bone(bones: BoneMap, window: Window, distance: Field, kind: tuple[int | NDArray[np.uint8], int],
              gap_mm: float) -> None:
    """Add a bone (part, label) and keep a joint space of `gap_mm` to what is there."""
    old = bones.distance[window]
    new = np.maximum(distance, (distance - old + gap_mm) / 2)
    old = np.maximum(old, (old - distance + gap_mm) / 2)
    nearer = new < old
    near = nearer & (new < bones.grid.spacing_mm)
    np.copyto(bones.part[window], np.asarray(kind[0], np.uint8), where=near)
    bones.labels[window][nearer & (new < 0)] = kind[1]
    bones.distance[window] = np.minimum(new, old)


def join_rods(bones: BoneMap, rods: list[Bone], kind: tuple[int, int], frame: Frame = PATIENT_FRAME,
              blend_mm: float = 0.0) -> None:
    """Unite rods in one field and join it as one bone, with a joint space of 1.2 mm."""
    reaches = [reach_of(rod, frame, 4.0) for rod in rods]
    window = bones.grid.window(np.min([r[0] for r in reaches], axis=0), np.max([r[1] for r in reaches], axis=0))
    if window is None:
        return
    part = bones.grid.part(window)
    field = np.full(part.shape, FAR_MM, np.float32)
    for rod in rods:
        draw_rod(part, field, rod, frame, blend_mm)
    join_bone(bones, window, field, kind, 1.2)


def chain_of(points: NDArray[np.float64], radii_mm: NDArray[np.float64], stretch: Point) -> list[Bone]:
    """Rods between successive points (n, 3)."""
    ends = [(float(p[0]), float(p[1]), float(p[2])) for p in points]
    radii = [float(r) for r in radii_mm]
    return [Bone(ends[k], ends[k + 1], radii[k], radii[k + 1], stretch) for k in range(len(ends) - 1)]


# --- chest -----------------------------------------------------------------------------------------------------------

_CAGE_AT = np.array([0.0, 1, 2, 4, 6, 8, 10, 12, 14, 16])
_CAGE_WIDTH = np.array([48.0, 62, 84, 110, 125, 133, 136, 132, 124, 118])      # half width, mm, of a man
_CAGE_DEPTH = np.array([30.0, 38, 52, 72, 84, 92, 96, 94, 88, 84])             # half depth
_RIB_DROP_MM = np.array([38.0, 60, 78, 92, 102, 110, 116, 118, 116, 104, 70, 36])
_RIB_END_DEG = np.array([150.0, 156, 158, 158, 156, 154, 150, 140, 130, 118, 84, 55])


@dataclass(frozen=True, slots=True, eq=False)
class Chest:
    """The inner surface of the rib cage as a stack of superellipses along the spine."""

    spine: tuple[PlacedVertebra, ...]
    scale: float

    def section(self, z_mm: Field) -> tuple[Field, Field, Field]:
        """Half width, half depth and centre y at given patient heights."""
        half_width = along_z(z_mm, lambda heights: self._radius(heights, _CAGE_WIDTH))
        half_depth = along_z(z_mm, lambda heights: self._radius(heights, _CAGE_DEPTH))
        return half_width, half_depth, centre_at(self.spine, z_mm, 1) + np.float32(46) - half_depth

    def _radius(self, z_mm: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
        position = position_at(self.spine, z_mm.astype(np.float32))
        return np.asarray(np.interp(position, _CAGE_AT, table) * self.scale)

    def distance(self, coordinates: tuple[Field, Field, Field]) -> Field:
        """Distance to the cage's surface, negative inside."""
        x, y, z = coordinates
        half_width, half_depth, centre = self.section(z)
        rho = ((np.abs(x) / half_width) ** 2.4 + (np.abs(y - centre) / half_depth) ** 2.4) ** np.float32(1 / 2.4) + 1e-3
        return np.asarray(np.hypot(x, y - centre) * (1 - 1 / rho), dtype=np.float32)


def rib_path(vertebra: PlacedVertebra, chest: Chest, side: float) -> NDArray[np.float64]:
    """Points (n, 3) along one rib from its head to its bony end, patient frame."""
    size, number = vertebra.size, min(vertebra.rib, 12)
    back = size.depth_mm / 2
    head = vertebra.frame.to_patient((side * (size.width_mm / 2 + 2.5), back - 4, size.height_mm / 2 - 2))
    reach = size.transverse_span_mm / 2
    outer = (reach + 1.0, back + size.canal_depth_mm - 5) if number < 11 else (size.width_mm / 2 + 17, back + 12)
    tubercle = vertebra.frame.to_patient((side * outer[0], outer[1], size.height_mm / 2 - 4))
    end = np.radians(_RIB_END_DEG[number - 1] * (0.6 if vertebra.rib == 13 else 1.0))
    angle = np.linspace(np.radians(20), end, 20)
    drop = _RIB_DROP_MM[number - 1] * ((angle - angle[0]) / (angle[-1] - angle[0]))
    z = tubercle[2] - 3 - drop
    half_width, half_depth, centre = chest.section(z.astype(np.float32))
    x = side * half_width * np.abs(np.sin(angle)) ** (2 / 2.4)
    y = centre + half_depth * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / 2.4)
    return np.vstack([head, tubercle, np.column_stack([x, y, z])])


def add_ribs(bones: BoneMap, spine: tuple[PlacedVertebra, ...], chest: Chest, short_last: float) -> None:
    """Both ribs of every rib-bearing level; `short_last` scales the length of the lowest pair."""
    lowest = max(v.rib for v in spine)
    for vertebra in (v for v in spine if v.rib):
        for side in (-1.0, 1.0):
            path = rib_path(vertebra, chest, side)
            if vertebra.rib == lowest:
                path = path[: max(4, round(short_last * len(path)))]
            radii = np.concatenate([[5.0, 4.2], np.linspace(3.6, 3.9, len(path) - 2)])
            join_rods(bones, chain_of(path, radii, (1.0, 1.0, 1.55)), (Part.RIB, 0))


def add_chest_front(bones: BoneMap, spine: tuple[PlacedVertebra, ...], chest: Chest) -> None:
    """Sternum, collar bones and shoulder blades, roughly."""
    z = height_of(spine, np.array([3.0, 4.0, 6.0, 8.0, 9.2]))
    _, half_depth, centre = chest.section(z.astype(np.float32))
    front = np.column_stack([np.zeros(5), centre - half_depth - 4, z])
    join_rods(bones, chain_of(front, np.array([6.0, 5.5, 5, 5, 3]), (3.2, 1.0, 1.0)), (Part.OTHER, 0))
    for side in (-1.0, 1.0):
        outer = front[0] + (side * 150 * chest.scale, 55, 22)
        join_rods(bones, chain_of(np.array([front[0] + (side * 22, 0, 4), outer]), np.array([7.0, 6]), (1, 1, 1)),
                  (Part.OTHER, 0))
        join_rods(bones, _shoulder_blade(spine, chest, side), (Part.OTHER, 0))


def _shoulder_blade(spine: tuple[PlacedVertebra, ...], chest: Chest, side: float) -> list[Bone]:
    rods: list[Bone] = []
    for share in np.linspace(0, 1, 22):
        z = np.linspace(float(height_of(spine, 2.2)), float(height_of(spine, 7.6 - 3.5 * share)), 6)
        half_width, half_depth, centre = chest.section(z.astype(np.float32))
        angle = np.radians(38 + 42 * share - np.linspace(0, 6, 6))
        path = np.column_stack([side * (half_width + 20) * np.sin(angle) ** 0.83,
                                centre + (half_depth + 17) * np.cos(angle) ** 0.83, z])
        rods += chain_of(path, np.full(6, 2.6 + 2.5 * (share > 0.95)), (1, 1, 1))
    return rods


# --- sacrum and pelvis -----------------------------------------------------------------------------------------------

_SACRAL_TILT_CHANGE_DEG = (3.0, 12.0, 6.0, -14.0, -40.0)     # of S1..S5 against the sacral endplate
_SACRAL_WIDTH_MM = (48.0, 40, 32, 26, 20)
_SACRAL_DEPTH_MM = (29.0, 21, 16, 12, 9)
_SACRAL_HEIGHT_MM = (29.0, 25, 21, 19, 17)
_ALA_REACH_MM = (52.0, 46, 38, 29, 21)
# control net of an iliac wing relative to the middle of the sacral endplate: rows from crest to socket, columns from
# back to front; (left, back, head) in mm and the half thickness
_ILIUM = np.array([
    [(47, 62, -20, 6), (70, 40, 18, 5.5), (112, 2, 38, 5), (130, -40, 20, 6), (122, -74, -22, 6.5)],
    [(46, 56, -38, 8), (60, 30, -18, 7.5), (94, -6, -10, 3.6), (112, -42, -20, 4), (114, -72, -44, 5.5)],
    [(50, 44, -58, 7), (58, 20, -50, 8.5), (82, -8, -54, 5.5), (96, -38, -58, 6), (101, -66, -68, 6.5)],
    [(60, 30, -82, 7), (64, 12, -86, 9), (84, -10, -90, 12), (93, -32, -92, 13), (93, -52, -90, 9)],
], dtype=float)


def sacral_frames(sacrum: PlacedVertebra, spec: SpineSpec) -> list[Frame]:
    """Frames in the centres of S1..S5 (S1 first), the curve hollow to the front."""
    place, frames = sacrum.frame.origin_mm, []
    for change, height in zip(_SACRAL_TILT_CHANGE_DEG, _SACRAL_HEIGHT_MM, strict=True):
        lean = np.radians(spec.sacral_slope_deg + change)
        up = np.array([0.0, -np.sin(lean), np.cos(lean)])
        axes = np.array([[1.0, 0, 0], np.cross(up, [1.0, 0, 0]), up])
        frames.append(Frame(place - up * height * spec.size / 2, axes))
        place = place - up * height * spec.size
    return frames


def add_sacrum(bones: BoneMap, sacrum: PlacedVertebra, spec: SpineSpec) -> None:
    """Five fused segments with wings, canal and foramina, label 26."""
    frames = sacral_frames(sacrum, spec)
    middle = frames[1].origin_mm
    window = bones.grid.window(middle - np.array([75.0, 75, 75]), middle + np.array([75.0, 75, 75]))
    if window is None:
        return
    part = bones.grid.part(window)
    solid, hollow = (np.full(part.shape, FAR_MM, np.float32) for _ in range(2))
    for k, frame in enumerate(frames):
        local = frame.to_local(part.coordinates(part.whole))
        solid = smooth_union(solid, unit_gradient(body_distance(local, _sacral_size(k, spec.size), VertebraLook(1.2)),
                                                  bones.grid.spacing_mm), 4.0)
        for rod in _sacral_segment(k, spec.size):
            draw_rod(part, solid, rod, frame, 5.0)
        for rod in _sacral_holes(k, spec.size):
            draw_rod(part, hollow, rod, frame)
    join_bone(bones, window, np.maximum(solid, -hollow), (Part.SACRUM, sacrum.label), 1.5)


def _sacral_size(k: int, size: float) -> LevelSize:
    """The fused body of one segment in the terms of a vertebral body, lengthened so that neighbours meet."""
    width, depth, height = (size * t[k] for t in (_SACRAL_WIDTH_MM, _SACRAL_DEPTH_MM, _SACRAL_HEIGHT_MM))
    tall = height + (0.4 if k == 0 else 1.6)
    return LevelSize(width, depth, tall, 1.04 * tall, 0.0, 20, 12, 8, 10, 60, 10, 0, 3)


def _sacral_segment(k: int, size: float) -> list[Bone]:
    width, depth, height = (size * t[k] for t in (_SACRAL_WIDTH_MM, _SACRAL_DEPTH_MM, _SACRAL_HEIGHT_MM))
    radius, reach = depth / 2, size * _ALA_REACH_MM[k]
    rods = [Bone((0, 0, 0), (0, 0, -height / 2), 0.6 * radius, 0.6 * radius, (width / depth, 1.0, 1.0))]
    crest = ((0.0, depth / 2 + 16 - 2 * k, 3.0), (0.0, depth / 2 + 18 - 3 * k, -height / 2))
    rods.append(Bone(*crest, 4.2 - 0.4 * k, 3.8, (1, 1, 2.2)))
    thick = 13.0 - 2.0 * k
    for side in (-1.0, 1.0):
        rods.append(Bone((side * width * 0.35, depth * 0.1, -2), (side * (reach - 8), depth * 0.55, -5), thick, thick,
                         (1.0, 0.9, 1.1)))
        lamina = ((side * (13 - k), depth / 2 + 15 - 2 * k, -2.0), (side * (reach - 14), depth * 0.75, -4.0))
        rods.append(Bone(*lamina, 4.0, 6.0, (1, 1, 1.8)))
    return rods


def _sacral_holes(k: int, size: float) -> list[Bone]:
    depth, height, width = (size * t[k] for t in (_SACRAL_DEPTH_MM, _SACRAL_HEIGHT_MM, _SACRAL_WIDTH_MM))
    middle, radius = depth / 2 + 6.5 - 0.8 * k, 6.5 - 1.1 * k
    holes = [Bone((0, middle, height / 2 + 6), (0, middle, -height / 2), radius, radius - 0.8, (1.8, 1, 1))]
    if k < 4:
        for side in (-1.0, 1.0):
            x = side * (width / 2 + 1)
            ends = ((x, -depth, -height / 2), (x * 0.9, depth + 8, -height / 2))
            holes.append(Bone(*ends, 4.5 - 0.6 * k, 4.0 - 0.5 * k))
    return holes


def add_pelvis(bones: BoneMap, sacrum: PlacedVertebra, size: float) -> None:
    """Iliac wings from crest to hip socket, and the heads of the thigh bones."""
    rows, columns = np.meshgrid(np.linspace(0, 3, 12), np.linspace(0, 4, 44), indexing="ij")
    net = np.stack([map_coordinates(_ILIUM[..., k], [rows, columns], order=2, mode="nearest") for k in range(4)], -1)
    for side in (-1.0, 1.0):
        points = sacrum.frame.origin_mm + net[..., :3] * size * np.array([side, 1.0, 1.0])
        rods = [rod for c in range(points.shape[1]) for rod in chain_of(points[:, c], net[:, c, 3], (1, 1, 1))]
        join_rods(bones, rods, (Part.PELVIS, 0))
        head = sacrum.frame.origin_mm + np.array([side * 92.0, -22, -122]) * size
        shaft = head + np.array([side * 45.0, 10, -45]) * size
        join_rods(bones, chain_of(np.array([head, shaft]), np.array([24.0, 16]), (1, 1, 1)), (Part.OTHER, 0))
