"""The reach of a rib: from its medial end to its tip, across gaps, and unknown where the end is out of view."""

import numpy as np
import pytest
import torch

from analysis.resampling import IsotropicGrid
from analysis.rib_contact import RibBox
from analysis.rib_length import RibReach, rib_lengths_mm

GRID = IsotropicGrid(np.zeros(3), 4.0, (60, 60, 100))
UP = np.array([1.0, 0.0, 0.0])
UPPER, LOWER = np.array([140.0, 100.0, 200.0]), np.array([108.0, 100.0, 200.0])


def rod(centroid_mm: np.ndarray, from_mm: float, to_mm: float, side: int = 1, slope: float = -0.3) -> torch.Tensor:
    """A rib of 12 mm that leaves `from_mm` beside the centroid, 30 mm behind it, and sinks on its way to the side."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij"), axis=-1)
    offset = GRID.to_axis_mm(index) - centroid_mm
    aside = side * offset[..., 2]
    near = (offset[..., 0] - slope * (aside - 30.0)) ** 2 + (offset[..., 1] - 30.0) ** 2 < 36.0
    return torch.from_numpy((near & (aside >= from_mm) & (aside <= to_mm)).astype(np.float32))


def lengths(rib: torch.Tensor, hu: torch.Tensor | None = None) -> list[float | None]:
    tissue = torch.full(GRID.shape, 40.0) if hu is None else hu
    return rib_lengths_mm(rib, tissue, GRID, [(UPPER, UP), (LOWER, UP)], RibBox(), RibReach())


@pytest.mark.parametrize("reach_mm", [60.0, 110.0])
def test_a_rib_is_as_long_as_the_way_from_its_medial_end_to_its_tip(reach_mm: float) -> None:
    end = 33.0 + reach_mm / np.hypot(1.0, 0.3)
    upper, lower = lengths(rod(UPPER, 22.0, end))
    assert upper == pytest.approx(reach_mm, abs=8.0) and lower is None


def test_the_longer_side_counts() -> None:
    upper, _ = lengths(torch.maximum(rod(UPPER, 22.0, 80.0), rod(UPPER, 22.0, 130.0, side=-1)))
    assert upper == pytest.approx(101.0, abs=8.0)


def test_a_rib_in_two_pieces_is_one_rib_when_the_gap_is_short() -> None:
    whole, _ = lengths(rod(UPPER, 22.0, 130.0))
    broken, _ = lengths(torch.maximum(rod(UPPER, 22.0, 70.0), rod(UPPER, 80.0, 130.0)))
    apart, _ = lengths(torch.maximum(rod(UPPER, 22.0, 70.0), rod(UPPER, 110.0, 130.0)))
    assert broken == pytest.approx(whole, abs=1.0)
    assert apart is not None and whole is not None and apart < whole - 40.0


def test_a_rib_that_leaves_the_series_or_ends_at_its_padding_has_no_length() -> None:
    assert lengths(rod(UPPER, 22.0, 250.0, slope=0.0)) == [None, None]
    padded = torch.full(GRID.shape, 40.0)
    padded[:, :, 75:] = -1024.0
    assert lengths(rod(UPPER, 22.0, 98.0, slope=0.0), padded) == [None, None]


def test_each_vertebra_has_its_own_rib() -> None:
    upper, lower = lengths(torch.maximum(rod(UPPER, 22.0, 150.0), rod(LOWER, 22.0, 90.0)))
    assert upper is not None and lower is not None and upper > lower + 40.0


def test_a_rib_that_the_network_lost_although_its_bone_goes_on_has_no_length() -> None:
    """Otherwise half of an 11th rib would pass for a 12th, and every name below would be one too high."""
    found, whole = rod(UPPER, 22.0, 70.0), rod(UPPER, 22.0, 150.0)
    bone = torch.where(whole > 0, 350.0, 40.0)
    assert lengths(found, bone) == [None, None]
    assert lengths(whole, bone)[0] == pytest.approx(122.0, abs=8.0)
