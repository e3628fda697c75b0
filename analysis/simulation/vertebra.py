"""The shape of one vertebra: body, pedicles, laminae, articular, transverse and spinous processes, canal, vein.

Local frame: origin in the centre of the body, x to the left, y to the back, z to the head along the vertebra's axis.
Dimensions come from `LevelSize` (Panjabi 1991/92); endplate concavity 1-4 mm; waist about 9 % of the endplate width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.simulation.shapes import (
    FAR_MM,
    Bone,
    Field,
    Grid,
    Window,
    draw_rod,
    smooth_intersection,
    unit_gradient,
)
from analysis.simulation.spine_curve import LevelSize, PlacedVertebra

_SQUARENESS = 2.3                # exponent of the superellipse of the body's section
_WAIST = 0.09                    # relative narrowing at mid height


@dataclass(frozen=True, slots=True)
class VertebraLook:
    """What varies beside size."""

    concavity_mm: float = 2.0                    # of each endplate
    osteophyte_mm: float = 0.0                   # lip at the anterior and lateral rims
    facet_growth: float = 1.0                    # thickness of the articular processes
    vein_mm: float = 2.2                         # half height of the basivertebral foramen


@dataclass(frozen=True, slots=True, eq=False)
class VertebraField:
    """Distance fields (mm, negative inside) of one vertebra.

    body, posterior : on `window` of the grid
    inner_body, vein, local : on `inner`, the smaller window round body and canal; `vein` is its share of the marrow
    """

    window: Window
    body: Field
    posterior: Field
    inner: Window
    inner_body: Field
    vein: Field
    local: tuple[Field, Field, Field]


def evaluate_vertebra(grid: Grid, vertebra: PlacedVertebra, look: VertebraLook) -> VertebraField | None:
    """Distance fields of one vertebra; None where the grid does not reach its body."""
    size = vertebra.size
    window, inner = (grid.window(*_reach(vertebra, inside)) for inside in (False, True))
    if window is None or inner is None:
        return None
    part, core = grid.part(window), grid.part(inner)
    local = vertebra.frame.to_local(core.coordinates(core.whole))
    vein = _vein_share(local, size, look)
    opening = np.where(local[1] > 0.3 * size.depth_mm, 3.0 * vein - 1.5, -FAR_MM)
    solid = unit_gradient(body_distance(local, size, look), grid.spacing_mm)
    inner_body = np.maximum(solid, opening).astype(np.float32)
    posterior = np.full(part.shape, FAR_MM, dtype=np.float32)
    for rod, blend_mm in _posterior_rods(vertebra, look):
        draw_rod(part, posterior, rod, vertebra.frame, blend_mm)
    within = _relative(inner, window)
    posterior[within] = smooth_intersection(posterior[within], -_canal_distance(local, size), 1.0)
    body = np.full(part.shape, FAR_MM, dtype=np.float32)
    body[within] = inner_body
    return VertebraField(window, body, posterior, inner, inner_body, vein, local)


def _relative(inner: Window, outer: Window) -> Window:
    z, y, x = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return z, y, x


def _reach(vertebra: PlacedVertebra, inside: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Box in the patient's frame: of the whole vertebra, or (inside) of its body and canal."""
    size = vertebra.size
    side = size.width_mm / 2 + 7 if inside else size.transverse_span_mm / 2 + 8
    back = size.depth_mm / 2 + size.canal_depth_mm + (5 if inside else size.spinous_length_mm + 14)
    low = np.array([-side, -size.depth_mm / 2 - 7, -size.height_mm / 2 - (12 if inside else 32)])
    high = np.array([side, back, size.height_mm / 2 + (12 if inside else 16)])
    corners = np.array([[(low, high)[(k >> i) & 1][i] for i in range(3)] for k in range(8)])
    patient = vertebra.frame.to_patient(corners)
    outer_low, outer_high = patient.min(0), patient.max(0)
    return (outer_low, outer_high) if not inside else (outer_low + 1e-6, outer_high - 1e-6)


def body_distance(local: tuple[Field, Field, Field], size: LevelSize, look: VertebraLook) -> Field:
    """Implicit function of the body: kidney-shaped section with a waist, wedge, concave endplates, lipped rims."""
    x, y, z = local
    half_width, half_depth = size.width_mm / 2, size.depth_mm / 2
    height = size.posterior_height_mm + (size.anterior_height_mm - size.posterior_height_mm) * np.clip(
        0.5 - y / size.depth_mm, -0.1, 1.1)
    level = np.clip(2 * z / height, -1.15, 1.15)
    flare = 1 - _WAIST * (1 - level * level) - 0.015 * level
    lip = look.osteophyte_mm * np.exp(-(((np.abs(level) - 0.95) / 0.2) ** 2)) * (y < 0.25 * size.depth_mm)
    a, b = half_width * flare + lip, half_depth * (1 - 0.7 * (1 - flare)) + lip
    hollow = 0.09 * size.depth_mm * np.exp(-((x / (0.42 * half_width)) ** 2))
    along = np.where(y > 0, y + hollow * np.clip(y / half_depth, 0, 1.3), y)
    rho = ((np.abs(x) / a) ** _SQUARENESS + (np.abs(along) / b) ** _SQUARENESS) ** (1 / _SQUARENESS) + 1e-3
    side = np.hypot(x, along) * (1 - 1 / rho)
    bowl = np.clip(1 - rho * rho, 0, 1)
    middle = size.middle_loss_mm / 2
    top = z - height / 2 + (look.concavity_mm + middle) * bowl
    bottom = -z - height / 2 + (1.25 * look.concavity_mm + middle) * bowl
    return smooth_intersection(side.astype(np.float32), np.maximum(top, bottom).astype(np.float32), 2.5)


def _vein_share(local: tuple[Field, Field, Field], size: LevelSize, look: VertebraLook) -> Field:
    """Basivertebral vein: a flat fan from the middle of the posterior wall to the centre of the body."""
    x, y, z = local
    depth = size.depth_mm / 2 - y
    half_width = 1.5 + 0.35 * np.clip(depth, 0, None)
    inside = np.clip(1.5 - np.abs(x) / half_width, 0, 1) * np.clip(1.5 - np.abs(z) / look.vein_mm, 0, 1)
    reach = np.clip((0.42 * size.depth_mm - depth) / 3.0, 0, 1) * (depth > -5)
    return np.asarray(inside * reach, dtype=np.float32)


def _canal_distance(local: tuple[Field, Field, Field], size: LevelSize) -> Field:
    """The vertebral canal: an oval that narrows to the back, along the local axis."""
    x, y, _ = local
    half_width, half_depth = size.canal_width_mm / 2, size.canal_depth_mm / 2
    along = (y - size.depth_mm * 0.46 - half_depth) / half_depth
    width = half_width * np.clip(1 - 0.28 * along, 0.4, 1.15)
    rho = np.sqrt((x / width) ** 2 + along * along) + 1e-3
    return np.asarray(np.hypot(x, along * half_depth) * (1 - 1 / rho), dtype=np.float32)


def _posterior_rods(vertebra: PlacedVertebra, look: VertebraLook) -> list[tuple[Bone, float]]:
    """All rods of the arch with the radius of their blending."""
    rods = [(_spinous(vertebra.size, vertebra.position), 3.0)]
    for side in (-1.0, 1.0):
        rods += [(_pedicle(vertebra.size, side), 2.0), (_lamina(vertebra.size, side), 3.0),
                 (_transverse(vertebra, side), 3.0)]
        rods += [(rod, 1.5) for rod in _articular(vertebra, look, side)]
    return rods


def pedicle_centre(size: LevelSize) -> tuple[float, float]:
    """Local |x| and z of the pedicle's axis."""
    x = size.canal_width_mm / 2 + 0.45 * size.pedicle_width_mm
    return x, size.height_mm / 2 - size.pedicle_height_mm / 2 - 1.5


def _pedicle(size: LevelSize, side: float) -> Bone:
    x, z = pedicle_centre(size)
    back = size.depth_mm / 2
    radius = size.pedicle_width_mm / 2
    upright = size.pedicle_height_mm / size.pedicle_width_mm
    inner = min(x, size.width_mm / 2 - radius)
    return Bone((side * inner, back - 7, z), (side * x, back + 0.5 * size.canal_depth_mm, z), radius, radius,
                (1.0, 1.0, upright))


def _lamina(size: LevelSize, side: float) -> Bone:
    back, deep = size.depth_mm / 2, size.canal_depth_mm
    return Bone((side * (size.canal_width_mm / 2 + 2), back + 0.6 * deep, -0.02 * size.height_mm),
                (side * 1.5, back + deep + 2.5, -0.3 * size.height_mm), 3.0, 3.2, (1.0, 1.0, 0.115 * size.height_mm))


def _lumbar_share(position: float) -> float:
    return float(np.clip(position - 11.0, 0, 1))


def _spinous(size: LevelSize, position: float) -> Bone:
    lumbar = _lumbar_share(position)
    start_y, start_z = size.depth_mm / 2 + size.canal_depth_mm + 2, -0.28 * size.height_mm
    slope = np.radians(size.spinous_slope_deg)
    end = (0.0, start_y + size.spinous_length_mm * np.cos(slope), start_z - size.spinous_length_mm * np.sin(slope))
    return Bone((0.0, start_y, start_z), (end[0], float(end[1]), float(end[2])), 2.8, 3.0 + 0.5 * lumbar,
                (1.0, 1.0, 1.6 + 0.9 * lumbar))


def _transverse(vertebra: PlacedVertebra, side: float) -> Bone:
    size, lumbar = vertebra.size, _lumbar_share(vertebra.position)
    x, z = pedicle_centre(size)
    back, deep, reach = size.depth_mm / 2, size.canal_depth_mm, size.transverse_span_mm / 2 - 3.5
    start = (side * (x + 1), back + (0.75 - 0.25 * lumbar) * deep, z - 2)
    end = (side * reach, back + deep * (1.05 - 0.45 * lumbar) + 6 * (1 - lumbar) + 3, z + 2 * (1 - lumbar))
    return Bone(start, end, 4.5, 5.0 - 2.0 * lumbar, (1.0, 1.0 - 0.2 * lumbar, 1.0 + 0.5 * lumbar))


def _articular(vertebra: PlacedVertebra, look: VertebraLook, side: float) -> tuple[Bone, Bone]:
    """Superior process (outside, in front) and inferior process (inside, behind) of one side."""
    size, lumbar = vertebra.size, _lumbar_share(vertebra.position)
    half, gap = size.height_mm / 2, size.disc_below_mm
    back, deep, canal = size.depth_mm / 2, size.canal_depth_mm, size.canal_width_mm / 2
    radius = (3.2 + 1.9 * lumbar) * look.facet_growth
    upper_x = canal + 2 + 4.5 * lumbar
    upper = Bone((side * upper_x, back + 0.72 * deep, half - 6),
                 (side * (upper_x + lumbar), back + (0.95 - 0.1 * lumbar) * deep, half + 0.6 * gap + 2),
                 radius, 0.8 * radius, (1.0, 1.15, 1.0))
    lower_x = canal - 0.5 - 1.0 * lumbar
    lower = Bone((side * lower_x, back + deep + 1.5, -0.25 * half * 2),
                 (side * (lower_x + 1.5 * lumbar), back + deep + 3.5, -half - gap - 2), radius, 0.85 * radius)
    return upper, lower
