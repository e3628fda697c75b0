"""The coarse network over a whole series: crop to the body, tiles along the spine, probabilities on one grid."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from analysis.resampling import CanonicalView, IsotropicGrid, covering_grid, resample
from analysis.spine_detection import CoarseMaps
from analysis.vbnet import LoadedNetwork, normalise_hu

# Between air (-1000) and fat (-100): what is denser belongs to a body, a phantom or the table.
BODY_ABOVE_HU = -400.0

# Largest number of coarse voxels in one pass of the network, some 0.7 GB of activations at 16 channels.
VOXELS_PER_TILE = 1_200_000

# Slices by which neighbouring tiles overlap, 96 mm at 4 mm; blended linearly.
TILE_OVERLAP = 24


def coarse_volume(view: CanonicalView, spacing_mm: float, device: torch.device) -> tuple[Tensor, IsotropicGrid]:
    """HU on the coarse grid, cropped to the largest body; (hu, grid)."""
    grid = covering_grid(view, spacing_mm)
    hu = resample(view, grid, device)
    box = body_box((hu > BODY_ABOVE_HU).cpu().numpy())
    start = np.array([part.start for part in box])
    shape = tuple(part.stop - part.start for part in box)
    cropped = IsotropicGrid(grid.origin_mm + start * spacing_mm, spacing_mm, (shape[0], shape[1], shape[2]))
    return hu[box].contiguous(), cropped


def body_box(dense: NDArray[np.bool_], margin: int = 2) -> tuple[slice, slice, slice]:
    """Rows and columns around the largest dense component, with all slices; everything when nothing is dense."""
    labelled, n = ndimage.label(ndimage.binary_erosion(dense))
    if n == 0:
        whole = tuple(slice(0, size) for size in dense.shape)
        return whole[0], whole[1], whole[2]
    largest = labelled == 1 + int(np.bincount(labelled.ravel())[1:].argmax())
    parts = [slice(0, dense.shape[0])]
    for axis in (1, 2):
        occupied = np.flatnonzero(largest.any(axis=tuple(a for a in range(3) if a != axis)))
        parts.append(slice(max(0, int(occupied[0]) - margin), min(dense.shape[axis], int(occupied[-1]) + margin + 1)))
    return parts[0], parts[1], parts[2]


def run_coarse(hu: Tensor, network: LoadedNetwork, precision: torch.dtype) -> CoarseMaps:
    """Probabilities of the coarse heads on the grid of `hu`, float32 on the CPU."""
    stride = network.config.stride
    inputs = normalise_hu(hu, network.config)
    tissue, centroid, level = None, None, None
    for part, weight in tiles(hu.shape, stride):
        out = _probabilities(inputs[part], network, precision)
        if tissue is None or centroid is None or level is None:
            tissue, centroid, level = (torch.zeros((len(o), *hu.shape)) for o in out)
        for whole, one in zip((tissue, centroid, level), out, strict=True):
            whole[:, part] += one * weight.view(1, -1, 1, 1)
    assert tissue is not None and centroid is not None and level is not None
    return CoarseMaps(tissue, centroid[0], level, network.config.spacing_mm)


def tiles(shape: torch.Size, stride: int) -> list[tuple[slice, Tensor]]:
    """Overlapping ranges of slices with blending weights that sum to one everywhere."""
    per_slice = int(np.prod([-(-n // stride) * stride for n in shape[1:]]))
    length = max(4 * TILE_OVERLAP, VOXELS_PER_TILE // per_slice)
    n_slices = shape[0]
    if n_slices <= length:
        return [(slice(0, n_slices), torch.ones(n_slices))]
    count = -(-(n_slices - TILE_OVERLAP) // (length - TILE_OVERLAP))
    starts = np.round(np.linspace(0, n_slices - length, count)).astype(int)
    ramps = [_ramp(int(start), length, n_slices) for start in starts]
    total = torch.zeros(n_slices)
    for start, ramp in zip(starts, ramps, strict=True):
        total[start : start + length] += ramp
    return [
        (slice(int(a), int(a) + length), ramp / total[a : a + length]) for a, ramp in zip(starts, ramps, strict=True)
    ]


def _ramp(start: int, length: int, n_slices: int) -> Tensor:
    """1 inside, falling towards the ends that are not ends of the volume."""
    position = torch.arange(length).float()
    low = (position + 1) / TILE_OVERLAP if start > 0 else torch.ones(length)
    high = (length - position) / TILE_OVERLAP if start + length < n_slices else torch.ones(length)
    return torch.minimum(low, high).clamp(1e-3, 1.0)


def _probabilities(inputs: Tensor, network: LoadedNetwork, precision: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """One pass; the tile is padded with air to whole strides and cut back."""
    stride = network.config.stride
    d, h, w = inputs.shape
    padding = [0, -w % stride, 0, -h % stride, 0, -d % stride]
    air = network.config.value_knots[0]
    padded = torch.nn.functional.pad(inputs[None, None], padding, value=air)
    padded = padded.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast(inputs.device.type, precision, enabled=precision != torch.float32):
        logits = network.network.to(inputs.device)(padded)
    cut = {name: value[0, :, :d, :h, :w].float().cpu() for name, value in logits.items()}
    return cut["tissue"].softmax(dim=0), cut["centroid"].sigmoid(), cut["level"].softmax(dim=0)
