"""The fine network on one vertebra after the other: tissues in a crop, cleaned and measured."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from analysis.resampling import CanonicalView, IsotropicGrid, ViewBox, box_around, resample, to_view, view_box
from analysis.vbnet import LoadedNetwork, centroid_cue, normalise_hu

# Classes of the fine tissue head, see `analysis.vbnet.FINE_TISSUES`.
POSTERIOR, CORTEX, CANCELLOUS, NEIGHBOUR, RIB = 1, 2, 3, 4, 5


@dataclass(frozen=True, slots=True, eq=False)
class FineCrop:
    """One vertebra after the fine network.

    grid : the crop's grid along the view's axes
    probabilities : float32, (6, D, H, W)
    centroid_mm : (3,) of the body along the view's axes
    body_ml : volume of body cortex and cancellous bone
    touches_edge : the body reaches the first or last voxels of the series
    """

    grid: IsotropicGrid
    probabilities: Tensor
    centroid_mm: NDArray[np.float64]
    body_ml: float
    touches_edge: bool


def crop_grid(network: LoadedNetwork, centroid_mm: NDArray[np.float64]) -> IsotropicGrid:
    """The crop around a body centroid, shifted to hold the posterior elements as in training."""
    config = network.config
    return box_around(centroid_mm + np.array(config.crop_offset_mm), config.spacing_mm, config.patch_size)


def crop_input(view: CanonicalView, grid: IsotropicGrid, network: LoadedNetwork, device: torch.device) -> Tensor:
    """(2, D, H, W): normalised CT and the Gaussian that marks the target."""
    config = network.config
    offset = tuple(-c for c in config.crop_offset_mm)
    cue = centroid_cue(config, (offset[0], offset[1], offset[2]), grid.shape).to(device)
    return torch.stack((normalise_hu(resample(view, grid, device), config), cue))


def most_probable(probabilities: Tensor) -> Tensor:
    """Index of the largest of (classes, ...), the first of equal ones; uint8; ten times as fast as argmax."""
    best, classes = probabilities[0].clone(), torch.zeros_like(probabilities[0], dtype=torch.uint8)
    for number in range(1, len(probabilities)):
        higher = probabilities[number] > best
        classes.masked_fill_(higher, number)
        torch.maximum(best, probabilities[number], out=best)
    return classes


def keep_target(probabilities: Tensor, network: LoadedNetwork) -> Tensor:
    """Keep the body component nearest the cue and the posterior elements connected to it, nothing else.

    Voxels outside are given to the background. Components are those of the argmax classes, grown by two voxels so that
    the soft rim of the kept part survives.
    """
    classes = most_probable(probabilities).cpu().numpy()
    body = (classes == CORTEX) | (classes == CANCELLOUS)
    body = largest_component(body, _cue_index(network, probabilities))
    target = largest_component(body | (classes == POSTERIOR), None)
    rim = ndimage.binary_dilation(target, iterations=2)
    keep = torch.from_numpy(rim).to(probabilities.device)
    result = probabilities.clone()
    removed = result[1:4].sum(dim=0) * ~keep
    result[1:4] *= keep
    result[0] += removed
    return result


def _cue_index(network: LoadedNetwork, probabilities: Tensor) -> NDArray[np.float64]:
    config = network.config
    shape = np.array(probabilities.shape[1:])
    index: NDArray[np.float64] = (shape - 1) / 2 - np.array(config.crop_offset_mm) / config.spacing_mm
    return index


def largest_component(mask: NDArray[np.bool_], near: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """The largest 6-connected component; with `near`, sizes fall with distance from that index (1/e at 12 voxels)."""
    labelled, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(labelled.ravel())[1:].astype(np.float64)
    if near is not None:
        centres = np.array(ndimage.center_of_mass(mask, labelled, range(1, n + 1)))
        sizes *= np.exp(-np.linalg.norm(centres - near, axis=1) / 12.0)
    result: NDArray[np.bool_] = labelled == 1 + int(sizes.argmax())
    return result


def grow(mask: Tensor) -> Tensor:
    """The mask and its 26 neighbours, as float32: the soft rim of a thresholded probability."""
    return torch.nn.functional.max_pool3d(mask.float()[None, None], 3, stride=1, padding=1)[0, 0]


def summarise(view: CanonicalView, grid: IsotropicGrid, probabilities: Tensor, network: LoadedNetwork) -> FineCrop:
    """Clean the crop and measure it."""
    cleaned = keep_target(probabilities, network)
    body = cleaned[CORTEX] + cleaned[CANCELLOUS]
    voxel_ml = grid.spacing_mm**3 / 1000.0
    body_ml = float(body.sum()) * voxel_ml
    index = weighted_centre(body)
    edge = _touches_edge(view, grid, (body > 0.5).cpu().numpy())
    return FineCrop(grid, cleaned, grid.to_axis_mm(index), body_ml, edge)


def weighted_centre(weights: Tensor) -> NDArray[np.float64]:
    """Centre of mass in voxels; the middle of the box when empty."""
    total = float(weights.sum())
    if total < 1e-3:
        return (np.array(weights.shape) - 1) / 2.0
    sums = [
        float((weights.sum(dim=[a for a in range(3) if a != axis]) * torch.arange(n, device=weights.device)).sum())
        for axis, n in enumerate(weights.shape)
    ]
    return np.array(sums) / total


def _touches_edge(view: CanonicalView, grid: IsotropicGrid, body: NDArray[np.bool_]) -> bool:
    """The body has voxels within one voxel (of the coarser kind) of the series' border, along any axis."""
    for axis in range(3):
        occupied = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        if occupied.size == 0:
            continue
        ends_mm = grid.origin_mm[axis] + occupied[[0, -1]] * grid.spacing_mm
        margin_mm = max(grid.spacing_mm, 0.75 * float(view.spacing_mm[axis]))
        last_mm = (view.shape[axis] - 1) * float(view.spacing_mm[axis])
        if ends_mm[0] < margin_mm or ends_mm[1] > last_mm - margin_mm:
            return True
    return False


def on_view(crop: FineCrop, view: CanonicalView, margin: int, device: torch.device) -> tuple[ViewBox, Tensor] | None:
    """The crop on the series' own voxels: (box, probabilities of background, posterior, cortex, cancellous)."""
    box = view_box(view, crop.grid, margin, device)
    if box is None:
        return None
    kept = torch.cat(
        (crop.probabilities[:1] + crop.probabilities[4:].sum(dim=0, keepdim=True), crop.probabilities[1:4])
    )
    return box, to_view(kept, box)
