"""Outlines on the series' own voxels: what may be a sacrum."""

import numpy as np
import torch

from analysis.resampling import IsotropicGrid, canonical_view, covering_grid
from analysis.spine_detection import SACRUM, CoarseMaps
from analysis.vertebra_labels import sacrum_on_view
from analysis.vertebra_outline import most_probable
from analysis.volume import CtVolume

LOWEST_MM = np.array([160.0, 60.0, 60.0])  # centroid of the lowest vertebra: height, back, left


def maps_with_sacrum(*heights: slice) -> tuple[CoarseMaps, IsotropicGrid, CtVolume]:
    """A series of 240 mm in slices of 4 mm whose coarse map holds blocks of sacrum at these slices."""
    volume = CtVolume(
        np.zeros((60, 30, 30), np.int16), np.array([[0, 0, 4.0, 0], [0, 4.0, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    )
    grid = covering_grid(canonical_view(volume), 4.0)
    tissue = torch.zeros(6, *grid.shape)
    for height in heights:
        tissue[SACRUM, height, 10:20, 10:20] = 0.9
    return CoarseMaps(tissue, torch.zeros(grid.shape), torch.zeros(19, *grid.shape), 4.0), grid, volume


def drawn_heights_mm(*heights: slice) -> tuple[float, float] | None:
    maps, grid, volume = maps_with_sacrum(*heights)
    view = canonical_view(volume)
    drawn = sacrum_on_view(view, maps, grid, LOWEST_MM, torch.device("cpu"))
    if drawn is None:
        return None
    box, probability = drawn
    slices = np.flatnonzero((probability > 0.5).any(dim=(1, 2)).numpy()) + box[0].start
    return float(slices[0] * 4.0), float(slices[-1] * 4.0)


def test_a_shoulder_blade_taken_for_a_sacrum_is_not_drawn_however_large_it_is() -> None:
    assert drawn_heights_mm(slice(46, 58)) is None
    assert drawn_heights_mm(slice(5, 13), slice(46, 58)) == (20.0, 48.0)


def test_the_wings_of_the_sacrum_may_stand_a_little_above_the_lowest_vertebra() -> None:
    assert drawn_heights_mm(slice(20, 43)) == (80.0, 168.0)


def test_the_most_probable_class_is_that_of_the_largest_probability_and_the_first_of_equal_ones() -> None:
    probabilities = torch.rand((6, 8, 9, 10), generator=torch.Generator().manual_seed(1))
    assert torch.equal(most_probable(probabilities).long(), probabilities.argmax(dim=0))
    assert int(most_probable(torch.tensor([0.2, 0.4, 0.4]))) == 1
