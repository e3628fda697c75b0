"""Tissues, the build of the trunk, and the brushes that paint rods and ellipsoids into a tissue map.

Places hang on the spine's level scale (T1 = 1 ... L1 = 13 ... S1 = 18), so that organs follow posture and body length.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from analysis.simulation.shapes import PATIENT_FRAME, Bone, Field, Grid, Point, along_z, reach_of, rod_distance
from analysis.simulation.skeleton import Chest
from analysis.simulation.spine_curve import PlacedVertebra, centre_at, height_of, position_at


class Tissue(IntEnum):
    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    LUNG = 4
    LIVER = 5
    SPLEEN = 6
    KIDNEY = 7
    AORTA = 8
    VEIN = 9
    HEART = 10
    BOWEL = 11
    BOWEL_GAS = 12
    STOOL = 13
    STOMACH = 14
    PANCREAS = 15
    GALLBLADDER = 16
    BLADDER = 17
    DISC = 18
    CSF = 19
    CORD = 20
    CARTILAGE = 21
    PARASPINAL = 22
    TABLE = 23
    MATTRESS = 24
    BONE = 25
    METAL = 26
    CEMENT = 27
    VISCERAL_FAT = 28


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """Soft-tissue build. `fat_mm` is the subcutaneous layer at the flank; jitter numbers are drawn by the caller."""

    male: bool = True
    size: float = 1.0
    fat_mm: float = 14.0
    visceral_fat: float = 1.0                    # > 1: more fat between the organs
    arms: str = "up"                             # "up" (out of the field) | "down"
    bowel_gas: float = 0.25                      # share of bowel loops with gas
    bowel_seed: int = 0                          # other loops in the same body


_OUTLINE_AT = np.array([-1.0, 0, 1, 3, 6, 9, 12, 13.5, 15, 17, 18.5, 21])
_HALF_WIDTH_MM = np.array([62.0, 80, 130, 168, 168, 158, 148, 140, 138, 150, 164, 168])
_HALF_DEPTH_MM = np.array([58.0, 62, 74, 92, 106, 108, 104, 98, 96, 96, 98, 96])


@dataclass(slots=True, eq=False)
class TissueMap:
    grid: Grid
    tissue: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """What every organ needs: the spine, the chest and the build."""

    spine: tuple[PlacedVertebra, ...]
    chest: Chest
    build: BuildSpec

    @property
    def back_mm(self) -> float:
        """y of the skin of the back."""
        return 86.0 * self.build.size + 0.5 * self.build.fat_mm

    def outline(self, coordinates: tuple[Field, Field, Field]) -> Field:
        """Distance to the skin."""
        x, y, z = coordinates
        half_width = along_z(z, lambda heights: self._section(heights)[0])
        half_depth = along_z(z, lambda heights: self._section(heights)[1])
        back = along_z(z, lambda heights: self._section(heights)[2])
        centre = back - half_depth + np.float32(6)
        rho = ((np.abs(x) / half_width) ** 2.5 + (np.abs(y - centre) / half_depth) ** 2.5) ** np.float32(0.4) + 1e-3
        distance = np.hypot(x, y - centre) * (1 - 1 / rho)
        return np.asarray(np.maximum(distance, y - back), dtype=np.float32)

    def _section(self, z_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Half width, half depth and y of the back at heights z: the chest wall lies over the rib cage."""
        z, size, fat = z_mm.astype(np.float32), self.build.size, self.build.fat_mm
        position = position_at(self.spine, z)
        extra = fat + 6.0 * (self.build.visceral_fat - 1.0)
        half_width = np.interp(position, _OUTLINE_AT, _HALF_WIDTH_MM) * size + extra
        half_depth = np.interp(position, _OUTLINE_AT, _HALF_DEPTH_MM) * size + extra
        back = self.back_mm + np.interp(position, [16, 19, 22], [0, 14.0, 22])
        back += np.minimum(centre_at(self.spine, z, 1) + 76.0 - 86.0 * size, 0) * np.clip((11 - position) / 3, 0, 1)
        _, cage_depth, cage_centre = self.chest.section(z)
        to_front = (back + 6 - (cage_centre - cage_depth - 14 - 0.8 * fat)) / 2
        in_chest = np.clip(position - 1, 0, 1) * np.clip((12.5 - position) / 3, 0, 1)
        return half_width, half_depth + in_chest * np.clip(to_front - half_depth, 0, None), back

    def at(self, position: float, x_mm: float, y_mm: float) -> Point:
        """A point beside the spine: offsets from the middle of the body at a place on the level scale."""
        z = np.array([float(height_of(self.spine, position))], dtype=np.float32)
        return (x_mm * self.build.size + float(centre_at(self.spine, z, 0)[0]),
                y_mm * self.build.size + float(centre_at(self.spine, z, 1)[0]), float(z[0]))


def paint_ellipsoid(tissues: TissueMap, tissue: Tissue, centre: Point, semi: Point,
                    lean: Point = (0.0, 0.0, 1.0)) -> None:
    """An ellipsoid whose long axis is `lean`."""
    up = np.asarray(lean) / np.linalg.norm(lean)
    half = max(semi[2] - min(semi[:2]), 0.1) * up
    start, end = (tuple(float(v) for v in np.asarray(centre) + s * half) for s in (-1, 1))
    radius = min(semi[:2])
    rod = Bone(start, end, radius * 0.85, radius, (semi[0] / radius, semi[1] / radius, 1.0))  # type: ignore[arg-type]
    paint_rod(tissues, tissue, rod)


def paint_rod(tissues: TissueMap, tissue: Tissue, rod: Bone, over: tuple[Tissue, ...] = ()) -> None:
    """One rod; with `over`, only where one of those tissues lies."""
    window = tissues.grid.window(*reach_of(rod, PATIENT_FRAME, 2.0))
    if window is None:
        return
    view = tissues.tissue[window]
    inside = np.broadcast_to(rod_distance(tissues.grid.coordinates(window), rod) < 0, view.shape)
    view[inside & np.isin(view, over) if over else inside] = tissue


def paint_tube(tissues: TissueMap, tissue: Tissue, points: list[Point], radii_mm: list[float],
          stretch: Point = (1.0, 1.0, 1.0)) -> None:
    """Rods through successive points."""
    for k in range(len(points) - 1):
        paint_rod(tissues, tissue, Bone(points[k], points[k + 1], radii_mm[k], radii_mm[k + 1], stretch))
