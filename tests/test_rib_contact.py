"""Ribs belong to the vertebra in whose frame their medial end lies, upright or tilted."""

import numpy as np
import pytest
import torch

from analysis.resampling import IsotropicGrid, canonical_view
from analysis.rib_contact import RibBox, rib_contact, rib_volumes_ml, sides_in_view, spine_axes
from analysis.volume import CtVolume, axial_affine

GRID = IsotropicGrid(np.zeros(3), 2.0, (100, 80, 80))
BOX = RibBox()


def rib_beside(centroid_mm: np.ndarray, axis: np.ndarray, up_mm: float) -> torch.Tensor:
    """A rod of 8 mm running sideways 32 to 60 mm left of the centroid, 35 mm behind, `up_mm` along the axis."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij"), axis=-1)
    behind = np.array([-axis[1], axis[0], 0.0])
    offset = GRID.to_axis_mm(index) - centroid_mm
    ring = (offset @ axis - up_mm) ** 2 + (offset @ behind - 35.0) ** 2 < 16.0
    return torch.from_numpy((ring & (offset[..., 2] > 32) & (offset[..., 2] < 60)).astype(np.float32))


@pytest.mark.parametrize("tilt_deg", [-35, 0, 25])
def test_a_rib_counts_for_its_own_vertebra_and_not_for_the_one_below(tilt_deg: float) -> None:
    tilt = np.deg2rad(tilt_deg)
    axis = np.array([np.cos(tilt), np.sin(tilt), 0.0])
    upper, lower = np.array([110.0, 70.0, 80.0]), np.array([110.0, 70.0, 80.0]) - 32.0 * axis
    rib = rib_beside(upper, axis, up_mm=4.0)
    in_view = (True, True)
    assert rib_contact(rib_volumes_ml(rib, GRID, upper, axis, BOX), in_view, BOX) > 0.9
    assert rib_contact(rib_volumes_ml(rib, GRID, lower, axis, BOX), in_view, BOX) < 0.1


def test_one_side_is_enough_and_a_side_out_of_view_says_nothing() -> None:
    assert rib_contact((0.0, 0.8), (True, True), BOX) > 0.9
    assert rib_contact((0.0, 0.8), (True, False), BOX) < 0.1
    assert rib_contact((0.0, 0.8), (False, False), BOX) is None


def test_a_narrow_field_of_view_hides_the_sides() -> None:
    axis = np.array([1.0, 0.0, 0.0])
    wide = canonical_view(CtVolume(np.zeros((60, 80, 80), np.int16), axial_affine((2.0, 2.0, 2.0), (0, 0, 0))))
    narrow = canonical_view(CtVolume(np.zeros((60, 80, 40), np.int16), axial_affine((2.0, 2.0, 2.0), (0, 0, 0))))
    assert sides_in_view(wide, np.array([60.0, 80.0, 80.0]), axis, BOX) == (True, True)
    assert sides_in_view(narrow, np.array([60.0, 80.0, 40.0]), axis, BOX) == (False, False)


def test_axes_follow_the_neighbours_and_are_unit_vectors() -> None:
    centroids = [np.array([90.0, 0.0, 0.0]), np.array([60.0, 10.0, 0.0]), np.array([30.0, 10.0, 0.0])]
    axes = spine_axes(centroids)
    np.testing.assert_allclose([np.linalg.norm(axis) for axis in axes], 1.0)
    assert axes[0][1] < axes[1][1] < axes[2][1] + 1e-9
    np.testing.assert_allclose(spine_axes(centroids[:1])[0], [1, 0, 0])
