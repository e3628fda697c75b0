"""Random bodies from one anatomy: size, posture, fractures, ribs, and organs that move independently of the spine.

The level of a vertebra must not be readable from one memorised rib cage and organ layout; so the soft organs slide by
up to 1.5 levels along the spine, the last ribs shrink or disappear, and every level is stretched on its own.
Ranges: scale z 0.82-1.25, xy 0.8-1.3, elastic 0-5 mm on a 40-mm grid and 0-1.6 mm on an 18-mm grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from analysis.training.anatomy import BODY, CODE, POSTERIOR, RIB_BASE, Anatomy

# Tissues that stay with the skeleton; the others slide.
WITH_SPINE = ("disc", "canal", "back muscle", "cartilage", "vertebra", "sacrum", "rib", "other bone")
_NODE_MM = 8.0
_LAST_RIB = RIB_BASE + 12


@dataclass(frozen=True, slots=True)
class DeformationRanges:
    """Half widths or standard deviations of the random body; lengths in mm, angles in degrees."""

    scale_xy: tuple[float, float] = (0.86, 1.16)
    scale_z: tuple[float, float] = (0.86, 1.18)
    spine_scale_xy: tuple[float, float] = (0.86, 1.18)
    level_scale_sd: float = 0.07
    bend_mm: float = 9.0
    scoliosis_mm: float = 25.0
    rotation_deg: float = 4.5
    elastic_mm: tuple[float, float] = (2.5, 0.7)
    organ_shift_mm: float = 45.0
    fracture_probability: float = 0.4
    missing_rib_probability: float = 0.12
    short_rib_probability: float = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class DeformedTorso:
    """A deformed anatomy on a coarser grid (`labels` as in `Anatomy`) and its mirror-free random history."""

    anatomy: Anatomy
    organ_shift_mm: float


def deform(
    anatomy: Anatomy, rng: np.random.Generator, spacing_mm: float, ranges: DeformationRanges | None = None
) -> DeformedTorso:
    """A random body at `spacing_mm`; the same generator state gives the same body."""
    ranges = ranges or DeformationRanges()
    scale = np.array([rng.uniform(*ranges.scale_z), *(rng.uniform(*ranges.scale_xy) for _ in range(2))])
    extent_mm = np.array(anatomy.tissue.shape) * anatomy.spacing_mm
    shape = tuple(int(n) for n in extent_mm * scale / spacing_mm)
    source = _source_field(anatomy, rng, (shape, spacing_mm, scale), ranges)
    index = _flat_index(source, shape, anatomy.tissue.shape)
    shift_mm = float(rng.uniform(-1, 1) * ranges.organ_shift_mm)
    source[0] += shift_mm / anatomy.spacing_mm
    source[1:] += torch.from_numpy(rng.normal(0, 4, (2, 1, 1, 1)).astype(np.float32))
    organ_index = _flat_index(source, shape, anatomy.tissue.shape)
    deformed = _gather(anatomy, index, organ_index, spacing_mm)
    return DeformedTorso(_drop_ribs(deformed, rng, ranges), shift_mm)


def _source_field(
    anatomy: Anatomy, rng: np.random.Generator, grid: tuple[tuple[int, ...], float, NDArray[np.float64]],
    ranges: DeformationRanges,
) -> Tensor:  # fmt: skip
    """Source voxel coordinates (3, d, h, w) on a grid of nodes about 8 mm apart."""
    shape, spacing_mm, scale = grid
    nodes = [max(4, round(n * spacing_mm / _NODE_MM)) for n in shape]
    extent = np.array(anatomy.tissue.shape) * anatomy.spacing_mm
    axes = [np.linspace(-0.5, 0.5, n) * e for n, e in zip(nodes, extent, strict=True)]
    z, y, x = (a.astype(np.float32) for a in np.meshgrid(*axes, indexing="ij"))
    z, y, x = _rotate((z, y, x), rng.normal(0, ranges.rotation_deg, 3))
    z = _stretch_levels(z, rng, extent[0], ranges.level_scale_sd)
    scoliosis = ranges.scoliosis_mm * rng.uniform() if rng.uniform() < 0.2 else 0.0
    x = x + _bend(z, rng, ranges.bend_mm + scoliosis)
    y = y + _bend(z, rng, ranges.bend_mm)
    centres = _spine_line(anatomy)
    z, y, x = _scale_spine((z, y, x), centres, rng.uniform(*ranges.spine_scale_xy), extent)
    for size_mm, sd_mm in zip((40.0, 18.0), ranges.elastic_mm, strict=True):
        z, y, x = (c + _elastic(rng, c.shape, size_mm, sd_mm * rng.uniform()) for c in (z, y, x))
    if rng.uniform() < ranges.fracture_probability:
        z = _fracture((z, y), centres, rng, extent)
    centre = (np.array(anatomy.tissue.shape) - 1) / 2
    field = np.stack([z, y, x]) / anatomy.spacing_mm + centre[:, None, None, None]
    return torch.from_numpy(field.astype(np.float32))


def _rotate(coordinates: tuple[NDArray[np.float32], ...], angles_deg: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    rotated = list(coordinates)
    for (a, b), angle in zip(((0, 1), (0, 2), (1, 2)), np.deg2rad(angles_deg), strict=True):
        p, q = rotated[a], rotated[b]
        rotated[a], rotated[b] = p * np.cos(angle) - q * np.sin(angle), p * np.sin(angle) + q * np.cos(angle)
    return [c.astype(np.float32) for c in rotated]


def _stretch_levels(z: NDArray[np.float32], rng: np.random.Generator, extent: float, sd: float) -> NDArray[np.float32]:
    knots = np.arange(-extent, extent, 2.0)
    nodes = np.arange(-extent, extent + 45.0, 45.0)
    rate = np.exp(np.interp(knots, nodes, rng.normal(0, sd, nodes.size)))
    warped = np.cumsum(rate / rate.mean()) * 2.0 - extent
    return np.interp(z, knots, warped).astype(np.float32)


def _bend(z: NDArray[np.float32], rng: np.random.Generator, amplitude_mm: float) -> NDArray[np.float32]:
    bend = np.zeros_like(z)
    for _ in range(2):
        wavelength, phase = rng.uniform(250, 700), rng.uniform(0, 2 * np.pi)
        bend += rng.normal(0, amplitude_mm / 1.5) * np.sin(2 * np.pi * z / wavelength + phase, dtype=np.float32)
    return bend


def _elastic(rng: np.random.Generator, shape: tuple[int, ...], size_mm: float, sd_mm: float) -> NDArray[np.float32]:
    coarse = [max(2, round(n * _NODE_MM / size_mm)) for n in shape]
    noise = torch.from_numpy(rng.normal(0, sd_mm, coarse).astype(np.float32))[None, None]
    smooth = F.interpolate(noise, size=shape, mode="trilinear", align_corners=True)
    return np.asarray(smooth[0, 0].numpy())


def _spine_line(anatomy: Anatomy) -> NDArray[np.float64]:
    """Body centres (n, 3) in mm from the centre of the map, from feet to head."""
    centre = (np.array(anatomy.tissue.shape) - 1) / 2
    points = np.array(list(anatomy.centroids().values()))
    return np.asarray((points - centre)[np.argsort(points[:, 0])] * anatomy.spacing_mm)


def _scale_spine(
    coordinates: tuple[NDArray[np.float32], ...], line: NDArray[np.float64], scale: float, extent: NDArray[np.float64]
) -> tuple[NDArray[np.float32], ...]:
    """Magnify what lies within 60 mm of the spine, fading out at 130 mm."""
    z, y, x = coordinates
    dy = y - (np.interp(z, line[:, 0], line[:, 1]) + 15.0)
    dx = x - np.interp(z, line[:, 0], line[:, 2])
    weight = np.clip((130.0 - np.hypot(dy, dx)) / 70.0, 0, 1)
    factor = (1 / scale - 1) * weight
    return z, (y + dy * factor).astype(np.float32), (x + dx * factor).astype(np.float32)


def _fracture(
    zy: tuple[NDArray[np.float32], NDArray[np.float32]], line: NDArray[np.float64], rng: np.random.Generator,
    extent: NDArray[np.float64],
) -> NDArray[np.float32]:  # fmt: skip
    """Lower one or two bodies by up to 35 % (wedge: more in front); the neighbouring discs take the space."""
    z, y = zy
    for centre in line[rng.choice(len(line), size=min(len(line), int(rng.integers(1, 3))), replace=False)]:
        distance = z - centre[0] - 0.0
        loss = rng.uniform(0.1, 0.35) * np.clip(0.75 - rng.uniform(-0.5, 1.0) * (y - centre[1]) / 30.0, 0, 1.3)
        loss = loss * np.clip((45.0 - np.abs(y - centre[1])) / 20.0, 0, 1)
        weight = np.clip((24.0 - np.abs(distance)) / 10.0, 0, 1)
        z = z + (distance * weight * loss / (1 - 0.7 * loss)).astype(np.float32)
    return z


def _flat_index(source: Tensor, shape: tuple[int, ...], source_shape: tuple[int, ...]) -> Tensor:
    """Nearest source voxel of every output voxel, as an index into the flattened source; clamped at the border."""
    index = torch.zeros(shape, dtype=torch.int64)
    for axis, n in enumerate(source_shape):
        fine = F.interpolate(source[None, axis : axis + 1], size=shape, mode="trilinear", align_corners=True)[0, 0]
        index.mul_(n).add_(fine.add_(0.5).long().clamp_(0, n - 1))
    return index


def _gather(anatomy: Anatomy, index: Tensor, organ_index: Tensor, spacing_mm: float) -> Anatomy:
    def pick(array: NDArray[np.generic], where: Tensor) -> NDArray[np.generic]:
        return torch.take(torch.from_numpy(array), where).numpy()

    fixed = np.isin(np.arange(256), [CODE[name] for name in WITH_SPINE])
    tissue = pick(anatomy.tissue, index).astype(np.uint8)
    soft = pick(anatomy.soft, organ_index).astype(np.uint8)
    soft = np.where(fixed[soft], CODE["none"], soft).astype(np.uint8)
    soft = np.where(fixed[tissue], pick(anatomy.soft, index), soft).astype(np.uint8)
    tissue = np.where(fixed[tissue], tissue, soft).astype(np.uint8)
    bone = None if anatomy.bone_hu is None else pick(anatomy.bone_hu, index).astype(np.int16)
    vertebra, part, depth = (pick(a, index).astype(np.uint8) for a in (anatomy.vertebra, anatomy.part, anatomy.depth))
    return Anatomy(anatomy.name, spacing_mm, tissue, vertebra, part, depth, soft, bone)


def _drop_ribs(anatomy: Anatomy, rng: np.random.Generator, ranges: DeformationRanges) -> Anatomy:
    """Remove or shorten the twelfth ribs, each side on its own."""
    last = anatomy.vertebra == _LAST_RIB
    if not last.any():
        return anatomy
    columns = np.arange(last.shape[2])[None, None, :]
    middle = float(np.argwhere(anatomy.part == BODY)[:, 2].mean())
    gone = np.zeros_like(last)
    for side in (columns < middle, columns >= middle):
        chance = rng.uniform()
        reach_mm = rng.uniform(28, 70)
        if chance < ranges.missing_rib_probability:
            gone |= last & side
        elif chance < ranges.missing_rib_probability + ranges.short_rib_probability:
            gone |= last & side & (np.abs(columns - middle) * anatomy.spacing_mm > reach_mm)
    anatomy.tissue[gone] = CODE["muscle"]
    anatomy.vertebra[gone] = 0
    return anatomy


def coarse_target(anatomy: Anatomy, factor: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Tissue class and VerSe level per cell of `factor`^3 voxels: the most frequent, background only above half."""
    classes = np.zeros(256, np.uint8)
    for tissue, value in (("sacrum", 3), ("rib", 4), ("other bone", 5)):
        classes[CODE[tissue]] = value
    label = classes[anatomy.tissue]
    label[anatomy.tissue == CODE["vertebra"]] = POSTERIOR
    label[anatomy.part == BODY] = BODY
    shares = np.stack([_cells(label == value, factor) for value in range(6)])
    shares[0] *= 0.8
    tissue = shares.argmax(axis=0).astype(np.uint8)
    offset = factor // 2
    level = np.where(anatomy.part > 0, anatomy.vertebra, 0)[offset::factor, offset::factor, offset::factor]
    level = level[: tissue.shape[0], : tissue.shape[1], : tissue.shape[2]]
    return tissue, np.where((tissue == BODY) | (tissue == POSTERIOR), level, 0).astype(np.uint8)


def _cells(mask: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    return np.asarray(F.avg_pool3d(torch.from_numpy(mask)[None, None].float(), factor)[0, 0].numpy())
