"""Outlines of single vertebrae -> one label map and one body map on the series' own voxels.

VerSe numbering (Sekuboyina et al., MedIA 2021): T1 = 8 ... T12 = 19, L1 = 20 ... L5 = 24, L6 = 25, sacrum 26; T13 = 28,
all cervical vertebrae 7.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.resampling import CanonicalView, IsotropicGrid, to_view, view_box
from analysis.spine_detection import SACRUM, CoarseMaps
from analysis.vertebra_outline import POSTERIOR, FineCrop, grow, largest_component, most_probable, on_view

LABELS = {"C": 7, "T13": 28, "L6": 25} | {f"T{i}": 7 + i for i in range(1, 13)} | {f"L{i}": 19 + i for i in range(1, 6)}
SACRUM_LABEL = 26

# Smallest probability of a vertebra where it is posterior elements, and where it is the body. A network that learned on
# painted CT draws the outline 0.3 mm outside of what readers of real CT draw; these limits were the best on three
# labelled volumes that it had not seen, and change Dice by less than 0.005 within 0.05 (docs/segmentation.md).
POSTERIOR_LIMIT, BODY_LIMIT = 0.6, 0.75

# How far wings and processes of the sacrum may stand above the centroid of the lowest vertebra.
SACRUM_ABOVE_MM = 15.0

# In coarse voxels of 64 mm3: less than 1.3 ml is no sacrum.
SMALLEST_SACRUM_VOXELS = 20


def sacrum_on_view(
    view: CanonicalView,
    maps: CoarseMaps,
    grid: IsotropicGrid,
    lowest_mm: NDArray[np.float64],
    device: torch.device,
) -> tuple[tuple[slice, slice, slice], Tensor] | None:
    """The sacrum's probability on the view's voxels around it, from the coarse map; None where there is none.

    Only the largest piece below the lowest vertebra (its centroid along the view's axes) counts: specks in hips or
    femoral heads are not it, nor is a shoulder blade.
    """
    height_mm = grid.origin_mm[0] + np.arange(grid.shape[0]) * grid.spacing_mm
    below = (height_mm < lowest_mm[0] + SACRUM_ABOVE_MM)[:, None, None]
    piece = torch.from_numpy(largest_component((maps.tissue[SACRUM] > 0.5).numpy() & below, None))
    occupied = torch.nonzero(piece)
    if len(occupied) < SMALLEST_SACRUM_VOXELS:
        return None
    start, stop = occupied.min(dim=0).values.numpy() - 1, occupied.max(dim=0).values.numpy() + 2
    start, stop = np.maximum(start, 0), np.minimum(stop, grid.shape)
    part = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    shape = tuple(int(n) for n in stop - start)
    box = view_box(
        view, IsotropicGrid(grid.to_axis_mm(start), grid.spacing_mm, (shape[0], shape[1], shape[2])), 0, device
    )
    if box is None:
        return None
    return box.slices, to_view((maps.tissue[SACRUM] * grow(piece))[part][None], box)[0].cpu()


def assemble_maps(
    view: CanonicalView,
    crops: list[FineCrop],
    names: tuple[str, ...],
    sacrum: tuple[tuple[slice, slice, slice], Tensor] | None,
    device: torch.device,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels and body map on the view's grid; where outlines overlap, the more probable vertebra wins."""
    labels, body = np.zeros(view.shape, np.uint8), np.zeros(view.shape, np.uint8)
    best = np.zeros(view.shape, np.uint8)  # probability of the label set so far, 0..255
    if sacrum is not None:
        where, probability = sacrum
        labels[where][probability.numpy() > 0.5] = SACRUM_LABEL
    for crop, name in zip(crops, names, strict=True):
        placed = on_view(crop, view, 1, device)
        if placed is None:
            continue
        box, probabilities = placed
        part = (torch.clamp(1.0 - probabilities[0], 0, 1) * 255).to(torch.uint8).cpu().numpy()
        classes = (1 + most_probable(probabilities[1:])).cpu().numpy()
        limit = np.where(classes == POSTERIOR, POSTERIOR_LIMIT, BODY_LIMIT) * 255
        wins = (part > limit) & (part > best[box.slices])
        best[box.slices][wins] = part[wins]
        labels[box.slices][wins] = LABELS[name]
        body[box.slices][wins] = classes[wins]
    return labels, body
