"""A procedural torso as label maps: every vertebra, rib and organ where anatomy puts it, with known density.

Two grids: organs on a coarse one, the spine with sacrum and rib heads on one of half the spacing. Distances to the bone
surface are kept, so that thin cortex can be painted with its true thickness on either grid.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from analysis.simulation.marrow import Extras, LevelTruth, MarrowSpec, add_vertebrae
from analysis.simulation.organs import Body, BuildSpec, Tissue, TissueMap
from analysis.simulation.shapes import Bone, Field, Grid, Pose, draw_rod, pose_from_angles, rod_distance
from analysis.simulation.skeleton import (
    BoneMap,
    Chest,
    add_chest_front,
    add_pelvis,
    add_ribs,
    add_sacrum,
    empty_bone_map,
)
from analysis.simulation.soft_tissue import paint_tissue
from analysis.simulation.spine_curve import PlacedVertebra, SpineSpec, place_spine


@dataclass(frozen=True, slots=True)
class TorsoSpec:
    """Everything about the patient's body. `first` and `last` level bound the field of view ("S" = sacrum)."""

    spine: SpineSpec = field(default_factory=SpineSpec)
    build: BuildSpec = field(default_factory=BuildSpec)
    marrow: MarrowSpec = field(default_factory=MarrowSpec)
    extras: Extras = field(default_factory=Extras)
    first: str = "T10"
    last: str = "S"
    margin_mm: float = 12.0
    angles_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spine_only: bool = False                     # leave out organs far from the spine (small fields of view)
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Torso:
    """Label maps with known density.

    organs, bones : coarse grid; the bones of the coarse grid lack vertebrae and sacrum
    spine : fine grid inside the coarse one (bone distance, part, VerSe labels)
    spine_tissue : tissue between the bones on the fine grid
    body : 0 none, 1 posterior elements, 2 body cortex, 3 body cancellous bone, fine grid
    density_mg_cm3 : cancellous density on the fine grid, defined one voxel beyond the body, else 0
    special_hu : HU of islands, cement and metal on the fine grid, NaN elsewhere
    corner : index of the fine grid's first voxel in coarse voxels
    """

    organs: TissueMap
    bones: BoneMap
    spine: BoneMap
    spine_tissue: NDArray[np.uint8]
    body: NDArray[np.uint8]
    density_mg_cm3: Field
    special_hu: Field
    corner: tuple[int, int, int]
    levels: tuple[LevelTruth, ...]
    placed: tuple[PlacedVertebra, ...]


def make_torso(spec: TorsoSpec, spacing_mm: float = 0.75) -> Torso:
    """Build the label maps. `spacing_mm` is that of the fine grid; the coarse one has twice as much."""
    placed = place_spine(spec.spine)
    chest = Chest(placed, spec.build.size * (1.0 if spec.build.male else 0.94))
    coarse = _coarse_grid(spec, placed, 2 * spacing_mm)
    organs = TissueMap(coarse, np.zeros(coarse.shape, np.uint8))
    rng = np.random.default_rng([spec.seed, spec.build.bowel_seed, 901])
    paint_tissue(organs, Body(placed, chest, spec.build), rng)
    bones = empty_bone_map(coarse)
    corner, fine = _fine_grid(spec, placed, coarse)
    spine = empty_bone_map(fine)
    marrow = add_vertebrae(spine, placed, (spec.marrow, spec.extras), spec.seed)
    for target in (bones, spine):
        if target is spine:
            add_sacrum(spine, placed[-1], spec.spine)
        add_ribs(target, placed, chest, spec.extras.short_last_rib)
        add_pelvis(target, placed[-1], spec.spine.size)
    add_chest_front(bones, placed, chest)
    tissue = _spine_tissue(organs, corner, fine, placed)
    return Torso(organs, bones, spine, tissue, marrow.body, marrow.density_mg_cm3, marrow.special_hu, corner,
                 tuple(marrow.levels), placed)


def _pose(spec: TorsoSpec, placed: tuple[PlacedVertebra, ...]) -> Pose:
    """Turn round the middle of the field of view, then shift."""
    low, high = _extent(spec, placed)
    pose = pose_from_angles(spec.angles_deg, (0.0, 0.0, (low + high) / 2))
    return Pose(pose.rotation, pose.offset_mm + np.asarray(spec.shift_mm))


def _extent(spec: TorsoSpec, placed: tuple[PlacedVertebra, ...]) -> tuple[float, float]:
    """Patient z of the lower and upper end of the field of view."""
    by_name = {v.name: v for v in placed}
    first, last = by_name[spec.first], by_name[spec.last]
    high = first.frame.origin_mm[2] + first.size.height_mm / 2 + spec.margin_mm
    drop = 105.0 * spec.spine.size if last.name == "S" else last.size.height_mm / 2
    return float(last.frame.origin_mm[2] - drop - spec.margin_mm), float(high)


def _half_widths(spec: TorsoSpec, height_mm: float) -> tuple[float, float, float]:
    """Half width, front and back of the coarse grid; a tilted patient needs more room."""
    if spec.spine_only:
        return 75.0, -85.0, 105.0
    build = spec.build
    about_x, about_y, _ = np.abs(np.sin(np.radians(spec.angles_deg))) * height_mm / 2
    arms = 75.0 if build.arms == "down" else 0.0
    front = -150.0 * build.size - 2.2 * build.fat_mm - 30.0 - about_x
    return 185.0 * build.size + build.fat_mm + 10 + arms + about_y, front, 140.0 * build.size + build.fat_mm + about_x


def _coarse_grid(spec: TorsoSpec, placed: tuple[PlacedVertebra, ...], spacing_mm: float) -> Grid:
    low, high = _extent(spec, placed)
    x, front, back = _half_widths(spec, high - low)
    size = np.array([high - low, back - front, 2 * x])
    shape = tuple(int(n) for n in np.ceil(size / spacing_mm))
    sx, sy, sz = spec.shift_mm
    return Grid((shape[0], shape[1], shape[2]), (-x + sx, front + sy, low + sz), spacing_mm, _pose(spec, placed))


def _fine_grid(spec: TorsoSpec, placed: tuple[PlacedVertebra, ...], coarse: Grid) -> tuple[tuple[int, int, int], Grid]:
    """The box round the spine, aligned with the coarse voxels."""
    low, high = _extent(spec, placed)
    seen = [v for v in placed if low - 40 < v.frame.origin_mm[2] < high + 60] or list(placed)
    points = coarse.pose.to_lps_mm(np.array([v.frame.origin_mm for v in seen]))
    reach_y = 62 if spec.last == "S" else 0
    first = np.array([points[:, 0].min() - 62, points[:, 1].min() - 32, coarse.origin_lps_mm[2]])
    last = np.array([points[:, 0].max() + 62, max(points[:, 1].max() + 86, points[-1, 1] + reach_y + 24), np.inf])
    index = [(p - np.asarray(coarse.origin_lps_mm)) / coarse.spacing_mm for p in (first, last)]
    limit = np.array(coarse.shape)[::-1]
    start = np.clip(np.floor(index[0]), 0, limit - 1).astype(int)[::-1]
    stop = np.clip(np.ceil(np.minimum(index[1], limit)), 1, limit).astype(int)[::-1]
    corner, half = (int(start[0]), int(start[1]), int(start[2])), coarse.spacing_mm / 2
    origin = [coarse.origin_lps_mm[k] + corner[2 - k] * coarse.spacing_mm - half / 2 for k in range(3)]
    n = 2 * (stop - start)
    return corner, Grid((int(n[0]), int(n[1]), int(n[2])), (origin[0], origin[1], origin[2]), half, coarse.pose)


def _spine_tissue(organs: TissueMap, corner: tuple[int, int, int], fine: Grid,
                  placed: tuple[PlacedVertebra, ...]) -> NDArray[np.uint8]:
    """Soft tissue of the fine grid: the coarse map, then discs, canal fat, dural sac and cord."""
    z, y, x = (slice(c, c + n // 2) for c, n in zip(corner, fine.shape, strict=True))
    tissue = organs.tissue[z, y, x].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    _paint_canal(fine, tissue, placed)
    for upper, lower in zip(placed[:-1], placed[1:], strict=True):
        _paint_disc(fine, tissue, upper, lower)
    return tissue


def _paint_disc(fine: Grid, tissue: NDArray[np.uint8], upper: PlacedVertebra, lower: PlacedVertebra) -> None:
    """An oval plate between two endplates, reaching a little into both (the bone is painted over it)."""
    bottom = upper.frame.to_patient((0.0, 0.0, -upper.size.height_mm / 2))
    top = lower.frame.to_patient((0.0, 0.0, lower.size.height_mm / 2 if lower.name != "S" else 0.0))
    ends = [tuple(float(v) for v in p + s * (bottom - top) * 0.6) for p, s in ((bottom, 1), (top, -1))]
    half_depth = upper.size.depth_mm / 2
    rod = Bone(ends[0], ends[1], half_depth, half_depth, (upper.size.width_mm / upper.size.depth_mm, 1.0, 0.05))  # type: ignore[arg-type]
    reach = np.array([upper.size.width_mm, upper.size.depth_mm, 20.0])
    window = fine.window((bottom + top) / 2 - reach, (bottom + top) / 2 + reach)
    if window is not None:
        part = fine.part(window)
        tissue[window][np.broadcast_to(rod_distance(part.coordinates(part.whole), rod) < 0, part.shape)] = Tissue.DISC


def _paint_canal(fine: Grid, tissue: NDArray[np.uint8], placed: tuple[PlacedVertebra, ...]) -> None:
    """Fat, dural sac and (down to L1) cord along the canal; nerve-root fat in the foramina."""
    points = [v.frame.to_patient((0.0, v.size.depth_mm * 0.46 + v.size.canal_depth_mm / 2, 0.0)) for v in placed[:-1]]
    points.append(placed[-1].frame.to_patient((0.0, 23.0, -10.0)))
    points.append(placed[-1].frame.to_patient((0.0, 30.0, -40.0)))
    ends = [(float(p[0]), float(p[1]), float(p[2])) for p in points]
    last_cord = max(k for k, v in enumerate(placed) if v.position <= 13.1)
    for kind, radius, stop in ((Tissue.FAT, 10.0, 99), (Tissue.CSF, 6.6, 99), (Tissue.CORD, 4.2, last_cord)):
        field_mm = np.full(fine.shape, 9.0, np.float32)
        for k in range(min(len(ends) - 1, stop)):
            wide = 2.2 if kind is Tissue.FAT else 1.25
            draw_rod(fine, field_mm, Bone(ends[k], ends[k + 1], radius, radius, (wide, 1.0, 1.0)))
        tissue[field_mm < 0] = kind
