"""Vertebrae put into a grid: bone, body map, density with texture, findings, and the truth about each.

Texture: Gaussian noise of two scales (trabecular 0.7-1.5 mm, patches of some millimetres); SD and scale are parameters.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from analysis.simulation.shapes import Bone, Field, Grid, rod_distance, smooth_union
from analysis.simulation.skeleton import BoneMap, Part, join_bone
from analysis.simulation.spine_curve import PlacedVertebra
from analysis.simulation.vertebra import VertebraField, VertebraLook, evaluate_vertebra, pedicle_centre

BODY_POSTERIOR, BODY_CORTEX, BODY_CANCELLOUS = 1, 2, 3
_CORTEX_LABEL_MM = 1.2           # apparent cortex in CT is at least twice the true 0.35-0.5 mm (Silva 1994)
_ISLAND_HU = 750.0
_CEMENT_HU = 1900.0
_METAL_HU = 3071.0


@dataclass(frozen=True, slots=True)
class MarrowSpec:
    """Cancellous bone: density in mg/cm3 K2HPO4 equivalent and its texture."""

    density_mg_cm3: float = 120.0                # of L1
    level_step_mg_cm3: float = 1.0               # per level upwards
    level_sd_mg_cm3: float = 4.0
    densities_mg_cm3: tuple[tuple[str, float], ...] = ()   # exact means by level name, override the rest
    texture_sd_mg_cm3: float = 22.0
    texture_scale_mm: float = 1.0                # Gaussian sigma of the fine texture
    patch_sd_mg_cm3: float = 6.0                 # slow variation across a body
    patch_scale_mm: float = 6.0
    endplate_gain: float = 0.10                  # denser towards the endplates


@dataclass(frozen=True, slots=True)
class Extras:
    """Findings put into the bone. Levels by name."""

    islands: tuple[tuple[str, float], ...] = ()  # level and radius in mm
    cement: tuple[str, ...] = ()
    screws: tuple[str, ...] = ()
    osteophyte_mm: float = 0.0
    facet_growth: float = 1.0
    concavity_mm: float = 2.0
    short_last_rib: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class LevelTruth:
    """Known values of one vertebra. Means are over the cancellous core without vein and islands."""

    name: str
    label: int
    centroid_lps_mm: tuple[float, float, float]
    axis_lps: tuple[float, float, float]         # unit vector towards the head
    density_mg_cm3: float
    complete: bool


@dataclass(slots=True, eq=False)
class MarrowMap:
    """What the vertebrae leave on the fine grid beside the bone map."""

    body: NDArray[np.uint8]
    density_mg_cm3: Field
    special_hu: Field
    levels: list[LevelTruth] = field(default_factory=list)


def add_vertebrae(spine: BoneMap, placed: tuple[PlacedVertebra, ...], look: tuple[MarrowSpec, Extras],
                  seed: int) -> MarrowMap:
    """Draw every vertebra that the grid reaches; each has its own random stream, so a crop changes no neighbour."""
    shape = spine.grid.shape
    result = MarrowMap(np.zeros(shape, np.uint8), np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32))
    marrow, extras = look
    for vertebra in placed[:-1]:
        rng = np.random.default_rng([seed, vertebra.label])
        concavity, lip = extras.concavity_mm * rng.uniform(0.8, 1.2), extras.osteophyte_mm * rng.uniform(0.5, 1.2)
        appearance = VertebraLook(concavity, lip, extras.facet_growth)
        target, found = _target_density(vertebra, marrow, rng), evaluate_vertebra(spine.grid, vertebra, appearance)
        if found is not None:
            _add_vertebra(spine, result, (vertebra, found), (marrow, extras, target), rng)
    return result


def _target_density(vertebra: PlacedVertebra, marrow: MarrowSpec, rng: np.random.Generator) -> float:
    drift = marrow.level_step_mg_cm3 * (13.0 - vertebra.position) + marrow.level_sd_mg_cm3 * float(rng.normal())
    usual = marrow.density_mg_cm3 + (drift if vertebra.name != "L1" else 0.0)
    return dict(marrow.densities_mg_cm3).get(vertebra.name, usual)


def _add_vertebra(spine: BoneMap, result: MarrowMap, shape: tuple[PlacedVertebra, VertebraField],
                  content: tuple[MarrowSpec, Extras, float], rng: np.random.Generator) -> None:
    (vertebra, found), (marrow, extras, target), step = shape, content, spine.grid.spacing_mm
    part = np.where(found.body < step, Part.BODY, Part.POSTERIOR).astype(np.uint8)
    join_bone(spine, found.window, smooth_union(found.body, found.posterior, 2.0), (part, vertebra.label), 1.2)
    mine = spine.labels[found.window] == vertebra.label
    view = result.body[found.window]
    view[mine] = BODY_POSTERIOR
    view[mine & (found.body < 0)] = BODY_CORTEX
    view[mine & (found.body < -_CORTEX_LABEL_MM)] = BODY_CANCELLOUS
    density, core = _density(found, marrow, target, step, rng)
    near = found.inner_body < 2 * step
    result.density_mg_cm3[found.inner][near] = density[near]
    _add_findings(result, vertebra, found, extras, rng)
    core &= ~np.isfinite(result.special_hu[found.inner])
    result.levels.append(_truth(spine.grid, vertebra, density[core]))


def _density(found: VertebraField, marrow: MarrowSpec, target: float, step_mm: float,
             rng: np.random.Generator) -> tuple[Field, NDArray[np.bool_]]:
    """Density field whose mean over the core (2 mm inside, no vein) is `target`, and that core."""
    body = found.inner_body
    values = np.full(body.shape, target, np.float32)
    scales = ((marrow.texture_sd_mg_cm3, marrow.texture_scale_mm), (marrow.patch_sd_mg_cm3, marrow.patch_scale_mm))
    for sd, scale in scales:
        noise = gaussian_filter(rng.standard_normal(body.shape, dtype=np.float32), scale / step_mm)
        values += sd * noise / max(float(noise.std()), 1e-6)
    values += marrow.endplate_gain * target * np.exp(np.clip(body, -20, 0) / 4.0)
    core = (body < -2.0) & (found.vein < 0.02)
    values += target - (float(values[core].mean()) if core.any() else target)
    return np.asarray(np.maximum(values, -120.0) * (1 - 0.7 * found.vein), dtype=np.float32), core


def _add_findings(result: MarrowMap, vertebra: PlacedVertebra, found: VertebraField, extras: Extras,
                  rng: np.random.Generator) -> None:
    view, size = result.special_hu[found.inner], vertebra.size
    x, y, z = found.local
    for _, radius in (i for i in extras.islands if i[0] == vertebra.name):
        cx, cy, cz = rng.uniform(-0.3, 0.3, 3) * (size.width_mm, size.depth_mm, size.height_mm)
        view[((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < radius**2) & (found.inner_body < -1)] = _ISLAND_HU
    if vertebra.name in extras.cement:
        blob = np.hypot(np.hypot(x - 2, y + 2), 1.2 * z) + 2.5 * np.sin(x / 2.3) * np.cos(y / 2.9) * np.sin(z / 2.1)
        view[(blob < 0.26 * size.width_mm) & (found.inner_body < -1)] = _CEMENT_HU
    if vertebra.name in extras.screws:
        for side in (-1.0, 1.0):
            view[_screw(found.local, vertebra, side) < 0] = _METAL_HU


def _screw(local: tuple[Field, Field, Field], vertebra: PlacedVertebra, side: float) -> Field:
    """A 6-mm screw through one pedicle."""
    depth = vertebra.size.depth_mm
    x, z = pedicle_centre(vertebra.size)
    tip, head = (side * 0.5 * x, -0.3 * depth, z - 3), (side * (x + 3), depth / 2 + 30, z + 1)
    return rod_distance(local, Bone(tip, head, 3.0, 3.2))


def _truth(grid: Grid, vertebra: PlacedVertebra, core: NDArray[np.float32]) -> LevelTruth:
    x, y, z = (float(v) for v in grid.pose.to_lps_mm(vertebra.frame.origin_mm))
    ax, ay, az = (float(v) for v in grid.pose.rotation @ vertebra.frame.axes[2])
    ends = _ends(grid, vertebra)
    complete = bool(((ends >= 0) & (ends < np.array(grid.shape))).all())
    mean = float(core.mean()) if core.size else float("nan")
    return LevelTruth(vertebra.name, vertebra.label, (x, y, z), (ax, ay, az), mean, complete)


def _ends(grid: Grid, vertebra: PlacedVertebra) -> NDArray[np.float64]:
    """Grid indices of the eight corners of the body's box: all inside = not cut."""
    half = np.array([vertebra.size.width_mm, vertebra.size.depth_mm, vertebra.size.height_mm]) / 2
    corners = np.array([[half[i] * (1 if (k >> i) & 1 else -1) for i in range(3)] for k in range(8)])
    lps = grid.pose.to_lps_mm(vertebra.frame.to_patient(corners))
    return np.asarray(((lps - np.asarray(grid.origin_lps_mm)) / grid.spacing_mm)[:, ::-1])
