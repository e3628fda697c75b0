"""Fine samples: one vertebra, deformed at random, painted, scanned; structures sampled smoothly."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from analysis.training.anatomy import BODY, CODE, POSTERIOR, Anatomy
from analysis.training.paint import AIR_HU, Scene, TextureBank, paint_body, random_scanner, scan
from analysis.training.samples import Sample
from analysis.vbnet import VBNetConfig, centroid_cue, normalise_hu
from analysis.vertebra_outline import most_probable

# Structures that are sampled smoothly, in this order; 0 is everything else.
_SMOOTH = ("else", "body", "posterior", "other body", "other posterior", "sacrum", "rib", "other bone", "disc", "canal")


@dataclass(frozen=True, slots=True)
class FineRanges:
    """Random geometry about one vertebra; mm and degrees, SD unless a range."""

    scale_xy: tuple[float, float] = (0.82, 1.25)
    scale_z: tuple[float, float] = (0.82, 1.22)
    rotation_deg: float = 8.0
    elastic_mm: tuple[float, float] = (2.0, 0.9)
    cue_error_mm: float = 3.0
    largest_cue_error_mm: float = 8.0
    crop_jitter_mm: float = 4.0
    organ_shift_mm: float = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where the cue and the true centroid are, mm from the centre of the crop, and the source coordinates (voxels)."""

    cue_mm: NDArray[np.float64]
    source: Tensor  # (D, H, W, 3)


@dataclass(frozen=True, slots=True, eq=False)
class FineTarget:
    """A vertebra to centre a crop on; centroid of its body as voxel index."""

    anatomy: Anatomy
    level: int
    centroid: NDArray[np.float64]


def fine_sample(target: FineTarget, config: VBNetConfig, rng: np.random.Generator, bank: TextureBank) -> Sample:
    """One crop about the target's body, deformed and painted."""
    placement = place(target.centroid, target.anatomy.spacing_mm, config, rng, FineRanges())
    scene, kinds = fine_scene(target.anatomy, target.level, placement, config, rng)
    hu = paint_body(scene, rng, bank)
    hu = scan(hu, (config.spacing_mm,) * 2, rng, random_scanner(rng, (5.0, 70.0)))
    return finish_fine(hu, fine_target(kinds), placement.cue_mm, config, rng)


def finish_fine(
    hu: Tensor, target: NDArray[np.uint8], cue_mm: NDArray[np.float64], config: VBNetConfig, rng: np.random.Generator
) -> Sample:
    """Cut the field of view now and then, normalise, add the cue, mirror at random."""
    if rng.uniform() < 0.15:
        cut = int(rng.integers(4, 20))
        outside = slice(0, cut) if rng.uniform() < 0.5 else slice(hu.shape[0] - cut, None)
        hu[outside] = AIR_HU
        target[outside] = 0
    cue = centroid_cue(config, (cue_mm[0], cue_mm[1], cue_mm[2]), (hu.shape[0], hu.shape[1], hu.shape[2]))
    image = torch.stack((normalise_hu(hu, config), cue))
    tissue = torch.from_numpy(target).long()
    if rng.uniform() < 0.5:
        image, tissue = image.flip(3), tissue.flip(2)
    return Sample(image, {"tissue": tissue})


def place(
    centroid: NDArray[np.float64], spacing_mm: float, config: VBNetConfig, rng: np.random.Generator, ranges: FineRanges
) -> Placement:
    limit = ranges.largest_cue_error_mm
    cue = -np.array(config.crop_offset_mm) + rng.uniform(-1, 1, 3) * ranges.crop_jitter_mm
    true = cue + np.clip(rng.normal(0, ranges.cue_error_mm, 3), -limit, limit)
    nodes = [max(4, round(n * config.spacing_mm / 6.0)) for n in config.patch_size]
    axes = [
        (np.linspace(-0.5, 0.5, m) * (n - 1) * config.spacing_mm) for m, n in zip(nodes, config.patch_size, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")) - true[:, None, None, None]
    matrix = _rotation(rng.normal(0, ranges.rotation_deg, 3)) @ np.diag(
        1 / np.array([rng.uniform(*ranges.scale_z), *rng.uniform(*ranges.scale_xy, 2)])
    )
    field = np.einsum("ij,jzyx->izyx", matrix, grid).astype(np.float32)
    field[0] += _compression(grid, rng)
    for size_mm, sd_mm in zip((32.0, 14.0), ranges.elastic_mm, strict=True):
        field += _smooth_noise(rng, nodes, size_mm / 6.0, sd_mm * rng.uniform())
    field = field / spacing_mm + centroid[:, None, None, None].astype(np.float32)
    source = F.interpolate(
        torch.from_numpy(field.astype(np.float32))[None], size=config.patch_size, mode="trilinear", align_corners=True
    )
    return Placement(cue, source[0].permute(1, 2, 3, 0).contiguous())


def _compression(grid: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """A fracture: the target's body loses up to 40 % of its height, more in front, behind or in the middle."""
    if rng.uniform() > 0.25:
        return np.zeros(grid.shape[1:], np.float32)
    z, y, _ = grid
    form = rng.uniform(-0.6, 1.0)
    loss = rng.uniform(0.1, 0.4) * np.clip(0.8 - form * y / 25.0, 0, 1.2) * np.clip((34.0 - np.abs(y)) / 16.0, 0, 1)
    weight = np.clip((24.0 - np.abs(z)) / 10.0, 0, 1)
    shift: NDArray[np.float32] = (z * weight * loss / (1 - 0.7 * loss)).astype(np.float32)
    return shift


def _rotation(angles_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(3)
    for (a, b), angle in zip(((0, 1), (0, 2), (1, 2)), np.deg2rad(angles_deg), strict=True):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _smooth_noise(rng: np.random.Generator, nodes: list[int], size: float, sd: float) -> NDArray[np.float32]:
    coarse = [max(2, round(n / size)) for n in nodes]
    noise = torch.from_numpy(rng.normal(0, sd, (1, 3, *coarse)).astype(np.float32))
    return np.asarray(F.interpolate(noise, size=nodes, mode="trilinear", align_corners=True)[0].numpy())


def fine_scene(
    anatomy: Anatomy, level: int, placement: Placement, config: VBNetConfig, rng: np.random.Generator
) -> tuple[Scene, NDArray[np.uint8]]:
    """The crop's labels: bones, discs and canal by smooth sampling, everything else by the nearest voxel."""
    low = np.maximum(np.floor(placement.source.amin((0, 1, 2)).numpy()).astype(int) - 2, 0)
    high = np.minimum(np.ceil(placement.source.amax((0, 1, 2)).numpy()).astype(int) + 3, anatomy.tissue.shape)
    low = np.minimum(low, np.array(anatomy.tissue.shape) - 4)
    box = tuple(slice(a, b) for a, b in zip(low, np.maximum(high, low + 4), strict=True))
    local = placement.source - torch.from_numpy(low.astype(np.float32))
    kinds = _kinds(anatomy, box, level)
    shares = (torch.from_numpy(kinds) == torch.arange(len(_SMOOTH)).view(-1, 1, 1, 1)).float()
    smooth = most_probable(sample_linear(shares, local))
    index = _nearest(local, kinds.shape)
    shift = local + torch.tensor([float(rng.uniform(-1, 1) * FineRanges().organ_shift_mm / anatomy.spacing_mm), 0, 0])
    soft = _pick(anatomy.soft[box], _nearest(shift, kinds.shape))
    fixed = torch.tensor([CODE["disc"], CODE["canal"]], dtype=torch.uint8)
    soft = torch.where(torch.isin(soft, fixed), torch.tensor(CODE["none"], dtype=torch.uint8), soft)
    tissue = torch.where(smooth > 0, _TISSUE_OF_KIND[smooth.long()], soft)
    part = _PART_OF_KIND[smooth.long()]
    bone = None
    if anatomy.bone_hu is not None:
        bone = sample_linear(torch.from_numpy(anatomy.bone_hu[box].astype(np.float32))[None], local)[0]
    outside = ((local < -0.5) | (local > torch.tensor(kinds.shape) - 0.5)).any(dim=-1)
    depth = torch.where(outside, torch.tensor(0, dtype=torch.uint8), _pick(anatomy.depth[box], index))
    vertebra = torch.where(part > 0, _pick(anatomy.vertebra[box], index), torch.tensor(0, dtype=torch.uint8))
    scene = Scene(config.spacing_mm, tissue, vertebra, part, depth, bone)
    return scene, smooth.numpy()


_TISSUE_OF_KIND = torch.tensor(
    [
        0,
        *(
            CODE[n]
            for n in ("vertebra", "vertebra", "vertebra", "vertebra", "sacrum", "rib", "other bone", "disc", "canal")
        ),
    ],
    dtype=torch.uint8,
)
_PART_OF_KIND = torch.tensor([0, BODY, POSTERIOR, BODY, POSTERIOR, 0, 0, 0, 0, 0], dtype=torch.uint8)


def _kinds(anatomy: Anatomy, box: tuple[slice, ...], level: int) -> NDArray[np.uint8]:
    tissue, part, vertebra = anatomy.tissue[box], anatomy.part[box], anatomy.vertebra[box]
    kinds = np.zeros(tissue.shape, np.uint8)
    for name in ("sacrum", "rib", "other bone", "disc", "canal"):
        kinds[tissue == CODE[name]] = _SMOOTH.index(name)
    bone = tissue == CODE["vertebra"]
    kinds[bone] = np.where(part[bone] == BODY, 3, 4)
    kinds[bone & (vertebra == level)] -= 2
    return kinds


def sample_linear(channels: Tensor, index: Tensor) -> Tensor:
    """Trilinear values of (C, d, h, w) at voxel indices (D, H, W, 3); the border value outside."""
    size = torch.tensor(channels.shape[1:], dtype=torch.float32)
    grid = (2 * index / (size - 1) - 1).flip(-1)
    sampled = F.grid_sample(channels[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)
    return sampled[0]


def _nearest(index: Tensor, shape: tuple[int, ...]) -> Tensor:
    flat = torch.zeros(index.shape[:3], dtype=torch.int64)
    for axis, n in enumerate(shape):
        flat = flat * n + index[..., axis].round().long().clamp(0, n - 1)
    return flat


def _pick(array: NDArray[np.uint8], flat: Tensor) -> Tensor:
    return torch.take(torch.from_numpy(np.ascontiguousarray(array)), flat)


def fine_target(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes of the fine head; the cortex is the outer 1.5 voxels (1.8 mm) of the body."""
    body = kinds == 1
    core = ndimage.binary_erosion(body, ndimage.generate_binary_structure(3, 2))
    target = np.zeros(kinds.shape, np.uint8)
    target[np.isin(kinds, (3, 4, 5))] = 4
    target[kinds == 6] = 5
    target[kinds == 2] = 1
    target[body] = 2
    target[core] = 3
    return target
