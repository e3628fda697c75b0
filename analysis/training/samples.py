"""Training samples: a network input with its targets, drawn from anatomies (painted) or from labelled CT.

Sample `i` of a run is a function of (seed, i) alone, so a resumed run sees exactly what an uninterrupted one would.
Label values of `IGNORE` carry no supervision.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from analysis.training.anatomy import BODY, CODE, POSTERIOR, SACRUM, Anatomy
from analysis.training.paint import AIR_HU, Scene, TextureBank, paint_body, random_scanner, scan
from analysis.vbnet import VBNetConfig, centroid_cue, normalise_hu

IGNORE = 255
FIRST_LEVEL = 7  # VerSe number of the first class of the level head (C7 stands for all cervical vertebrae)
HEAT_SD_CELLS = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """image (channels, D, H, W) float32; targets by head: class maps int64 (D, H, W), heat map float32 (D, H, W).

    `centroid` is NaN where unknown.
    """

    image: Tensor
    targets: dict[str, Tensor]


# --- coarse: whole torsos -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class CoarseCase:
    """A torso on two grids: labels (or HU) at half the network's spacing, targets at the network's spacing.

    fine : arrays of `Scene` (synthetic) or {"hu": int16} (a real CT), all of one shape
    target, level : uint8 at the network's spacing; tissue class and VerSe level, `IGNORE` where unknown
    centroids : (n, 3) voxel index on the fine grid
    centroids_known : False when vertebrae in view may lack a centroid
    """

    fine: dict[str, NDArray[np.generic]]
    target: NDArray[np.uint8]
    level: NDArray[np.uint8]
    centroids: NDArray[np.float64]
    centroids_known: bool = True


def load_coarse_case(path: Path) -> CoarseCase:
    with np.load(path) as stored:
        fine = {name: stored[name] for name in ("tissue", "vertebra", "part", "depth", "hu") if name in stored.files}
        known = bool(stored["centroids_known"]) if "centroids_known" in stored.files else True
        return CoarseCase(fine, stored["target"], stored["level"], stored["centroids"].reshape(-1, 3), known)


def coarse_sample(case: CoarseCase, config: VBNetConfig, rng: np.random.Generator, bank: TextureBank) -> Sample:
    """One patch: window, field of view, paint, scan, mirror. Only what the field of view needs is painted."""
    window = _coarse_window(case, config.patch_size, rng)
    keep = _field_of_view(case, window, config, rng)
    box = _covering_box(keep)
    keep, window = keep[box], window + np.array([side.start for side in box])
    size = np.array(keep.shape)
    fine = {name: _cut(array, window * 2, size * 2, _FILL[name]) for name, array in case.fine.items()}
    hu = _coarse_hu(fine, config.spacing_mm / 2, rng, bank)
    hu = torch.where(keep, hu, torch.tensor(float(rng.choice([-1024.0, AIR_HU]))))
    target, level = _cut(case.target, window, size, 0), _cut(case.level, window, size, 0)
    inside = keep.numpy()
    heat = _heat(case, window, keep.shape)
    targets = {
        "tissue": torch.from_numpy(np.where(inside | (target == IGNORE), target, 0)).long(),
        "centroid": torch.where(keep | heat.isnan(), heat, torch.tensor(0.0)),
        "level": _level_classes(np.where(inside, level, 0).astype(np.uint8)),
    }
    image = normalise_hu(hu, config)[None]
    if rng.uniform() < 0.5:
        image, targets = image.flip(3), {name: value.flip(2) for name, value in targets.items()}
    return Sample(image, targets)


def _covering_box(keep: Tensor) -> tuple[slice, slice, slice]:
    """A box about the field of view, whole or reduced along z and in the plane (few sizes: kernels are cached)."""
    extents = []
    for axis in range(3):
        inside = torch.nonzero(_any_along(keep, axis))
        extents.append((int(inside.min()), int(inside.max()) + 1))
    whole = tuple(keep.shape)
    small = (whole[0] // 2, 48, 48)
    fits = [high - low <= side < n for (low, high), side, n in zip(extents, small, whole, strict=True)]
    reduced = (fits[0], fits[1] and fits[2], fits[1] and fits[2])
    sizes = [side if less else n for side, n, less in zip(small, whole, reduced, strict=True)]
    lows = [max(0, min(low, n - size)) for (low, _), n, size in zip(extents, whole, sizes, strict=True)]
    z, y, x = (slice(low, low + size) for low, size in zip(lows, sizes, strict=True))
    return z, y, x


def _any_along(keep: Tensor, axis: int) -> Tensor:
    """Which positions of one axis hold anything."""
    return keep.movedim(axis, 0).flatten(1).any(dim=1)


_FILL = {"tissue": 0, "vertebra": 0, "part": 0, "depth": 255, "hu": -1024}


def _coarse_window(case: CoarseCase, patch: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
    """First cell of the patch: anywhere along z that shows bone, near the middle of the body in rows and columns."""
    n = np.array(case.target.shape)
    start = np.zeros(3, np.int64)
    start[0] = (
        rng.integers(min(-8, n[0] - patch[0]), max(8, n[0] - patch[0]) + 1)
        if n[0] > patch[0]
        else rng.integers(n[0] - patch[0], 1)
    )
    middle = case.centroids.mean(axis=0) / 2 if len(case.centroids) else n / 2
    start[1] = int(middle[1] - rng.uniform(0.5, 0.75) * patch[1])
    start[2] = int(middle[2] - rng.uniform(0.42, 0.58) * patch[2])
    return start


def _cut(
    array: NDArray[np.generic], start: NDArray[np.int64], size: NDArray[np.int64] | tuple[int, ...], fill: int
) -> NDArray[np.generic]:
    out = np.full(tuple(size), fill, array.dtype)
    low = np.maximum(start, 0)
    high = np.minimum(start + np.asarray(size), array.shape)
    if (high > low).all():
        inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        out[inside] = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return out


def _coarse_hu(
    fine: dict[str, NDArray[np.generic]], half_mm: float, rng: np.random.Generator, bank: TextureBank
) -> Tensor:
    if "hu" in fine:
        hu = torch.from_numpy(fine["hu"].astype(np.float32)) + float(rng.normal(0, 8))
        noise_sd = (0.5, 12.0)
    else:
        tensors = {name: torch.from_numpy(array) for name, array in fine.items()}
        hu = paint_body(Scene(half_mm, **tensors), rng, bank)
        _table(hu, rng, half_mm)
        noise_sd = (1.0, 30.0)
    rows_halved = F.avg_pool3d(hu[None, None], (1, 2, 2))[0, 0]
    image = scan(rows_halved, (half_mm, 2 * half_mm), rng, random_scanner(rng, noise_sd))
    return F.avg_pool3d(image[None, None], (2, 1, 1))[0, 0]


def _table(hu: Tensor, rng: np.random.Generator, spacing_mm: float) -> None:
    """A thin curved plate behind the body."""
    if rng.uniform() < 0.4:
        return
    occupied = torch.nonzero((hu > -400).any(dim=0).any(dim=1))
    if occupied.numel() == 0:
        return
    top = float(occupied.max()) + rng.uniform(-4, 6) / spacing_mm
    rows, columns = torch.arange(hu.shape[1])[:, None], torch.arange(hu.shape[2])[None]
    sag = ((columns - hu.shape[2] / 2) * spacing_mm).pow(2) / rng.uniform(800, 6000)
    depth_mm = (rows - top) * spacing_mm + sag
    plate = ((depth_mm > 0) & (depth_mm < 3)) | ((depth_mm > 25) & (depth_mm < 28))
    hu.copy_(torch.where(plate[None] & (hu < -900), torch.tensor(float(rng.uniform(-300, 200))), hu))


def _heat(case: CoarseCase, window: NDArray[np.int64], patch: tuple[int, ...]) -> Tensor:
    """Largest of Gaussians of peak 1 at the body centroids; NaN everywhere else when not all centroids are known."""
    heat = torch.zeros(patch)
    for centroid in (case.centroids - 0.5) / 2 - window:
        lows = [max(0, int(c) - 6) for c in centroid]
        highs = [min(n, int(c) + 8) for c, n in zip(centroid, patch, strict=True)]
        if any(high <= low for low, high in zip(lows, highs, strict=True)):
            continue
        profiles = [
            torch.exp(-0.5 * ((torch.arange(low, high) - c) / HEAT_SD_CELLS) ** 2)
            for low, high, c in zip(lows, highs, centroid, strict=True)
        ]
        blob = torch.einsum("i,j,k->ijk", *profiles)
        box = tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))
        heat[box] = torch.maximum(heat[box], blob.float())
    if not case.centroids_known:
        column = torch.from_numpy(_cut(case.target, window, patch, 0))
        doubtful = ((column == BODY) | (column == IGNORE)) & (heat < 0.01)
        heat[doubtful] = torch.nan
    return heat


def _field_of_view(
    case: CoarseCase, window: NDArray[np.int64], config: VBNetConfig, rng: np.random.Generator
) -> Tensor:
    """What the scan covers: a slab along z, and in the plane everything, a circle, or a box about the spine."""
    patch = config.patch_size
    keep = torch.ones(patch, dtype=torch.bool)
    if rng.uniform() < 0.5:
        height = int(rng.integers(20, patch[0]))
        low = int(rng.integers(0, patch[0] - height + 1))
        keep[:low] = False
        keep[low + height :] = False
    if case.centroids.shape[0] == 0:
        return keep
    centre = (case.centroids.mean(axis=0) / 2 - window)[1:]
    chance = rng.uniform()
    rows, columns = torch.arange(patch[1])[:, None], torch.arange(patch[2])[None]
    if chance < 0.3:
        reach = rng.uniform(45, 120, 4) / config.spacing_mm
        inside = (rows > centre[0] - reach[0]) & (rows < centre[0] + reach[1] + 4)
        inside = inside & (columns > centre[1] - reach[2]) & (columns < centre[1] + reach[3])
        keep &= inside[None]
    elif chance < 0.5:
        middle = np.array(patch[1:]) / 2 + rng.normal(0, 5, 2)
        radius = rng.uniform(130, 220) / config.spacing_mm
        keep &= ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2)[None]
    return keep


def _level_classes(level: NDArray[np.uint8]) -> Tensor:
    """VerSe numbers -> classes of the level head; `IGNORE` off the vertebrae."""
    known = (level >= FIRST_LEVEL) & (level < SACRUM)
    return torch.from_numpy(np.where(known, level.astype(np.int64) - FIRST_LEVEL, IGNORE))


# --- fine: one vertebra ---------------------------------------------------------------------------------------------

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


def fine_sample(
    anatomy: Anatomy, centroid: NDArray[np.float64], level: int, config: VBNetConfig, rng: np.random.Generator,
    bank: TextureBank,
) -> Sample:  # fmt: skip
    """One crop about the body of `level` whose centroid (voxel index) is given, deformed and painted."""
    placement = place(centroid, anatomy.spacing_mm, config, rng, FineRanges())
    scene, kinds = fine_scene(anatomy, level, placement, config, rng)
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
    return (z * weight * loss / (1 - 0.7 * loss)).astype(np.float32)


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
    shares = F.one_hot(torch.from_numpy(kinds).long(), len(_SMOOTH)).permute(3, 0, 1, 2).float()
    smooth = sample_linear(shares, local).argmax(dim=0).to(torch.uint8)
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
