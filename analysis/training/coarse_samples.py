"""Coarse samples: a window of a torso with a random field of view, painted or taken from a real CT."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from analysis.training.anatomy import BODY, SACRUM
from analysis.training.paint import AIR_HU, Scene, TextureBank, paint_body, random_scanner, scan
from analysis.training.samples import IGNORE, Sample
from analysis.vbnet import VBNetConfig, normalise_hu

FIRST_LEVEL = 7  # VerSe number of the first class of the level head (C7 stands for all cervical vertebrae)
HEAT_SD_CELLS = 1.5


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
    start[0] = rng.integers(-8, n[0] - patch[0] + 1) if n[0] > patch[0] else rng.integers(n[0] - patch[0], 1)
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
