"""Between the series' grid and the networks' grid: positions, aliasing, orientation, edges."""

import numpy as np
import pytest
import torch

from analysis.resampling import (
    IsotropicGrid,
    axis_to_lps_mm,
    box_around,
    canonical_view,
    covering_grid,
    from_canonical,
    interpolation_matrix,
    resample,
    to_view,
    view_box,
)
from analysis.volume import CtVolume, axial_affine

CPU = torch.device("cpu")


def ramp_volume(affine: np.ndarray, shape: tuple[int, int, int]) -> CtVolume:
    """HU = 2 x + 3 y - z + 50 at every voxel centre, whatever the orientation."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    volume = CtVolume(np.zeros(shape, np.float32), affine)
    hu = volume.to_lps_mm(index.astype(float)) @ np.array([2.0, 3.0, -1.0]) + 50
    return CtVolume(hu.astype(np.float32), affine)


def affine_of(directions: list[list[float]], spacing: tuple[float, float, float]) -> np.ndarray:
    """Columns: unit LPS vectors of slices, rows and columns."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(directions, float).T * spacing
    affine[:3, 3] = (12.0, -30.0, 7.0)
    return affine


ORIENTATIONS = {
    "axial": [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    "axial feet first": [[0, 0, -1], [0, 1, 0], [-1, 0, 0]],
    "prone": [[0, 0, 1], [0, -1, 0], [-1, 0, 0]],
    "sagittal": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "coronal": [[0, -1, 0], [0, 0, -1], [1, 0, 0]],
    "oblique by 10 degrees": [[0, 0.1736, 0.9848], [0, 0.9848, -0.1736], [1, 0, 0]],
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_linear_field_keeps_its_values_at_every_position_in_any_orientation(name: str) -> None:
    """Positions are right within 0.05 mm (the smoothing kernel is not quite symmetric); the field rises 3.7 HU/mm."""
    volume = ramp_volume(affine_of(ORIENTATIONS[name], (2.5, 0.8, 0.9)), (30, 40, 36))
    view = canonical_view(volume)
    grid = covering_grid(view, 3.0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    lps = axis_to_lps_mm(view, grid.to_axis_mm(index))
    expected = lps @ np.array([2.0, 3.0, -1.0]) + 50
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(resample(view, grid, CPU).numpy()[inner], expected[inner], atol=0.2)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_canonical_view_ascends_to_head_back_and_left_and_leads_back(name: str) -> None:
    volume = ramp_volume(affine_of(ORIENTATIONS[name], (2.5, 0.8, 0.9)), (6, 7, 8))
    view = canonical_view(volume)
    assert (np.diag(view.affine[:3, :3][::-1]) > 0).all()
    labels = (volume.hu.astype(int) % 251).astype(np.uint8)
    seen = canonical_view(CtVolume(labels.astype(np.int16), volume.affine)).hu.astype(np.uint8)
    np.testing.assert_array_equal(from_canonical(seen, view), labels)


def test_fine_stripes_do_not_alias_into_coarse_voxels() -> None:
    """A checkered pattern of 1 mm has mean 0; at 4 mm nothing of it may remain."""
    hu = np.indices((80, 80, 80)).sum(axis=0) % 2 * 2000.0 - 1000.0
    view = canonical_view(CtVolume(hu.astype(np.float32), axial_affine((1.0, 1.0, 1.0), (0, 0, 0))))
    coarse = resample(view, covering_grid(view, 4.0), CPU)[1:-1, 1:-1, 1:-1]
    assert float(coarse.abs().max()) < 20


def test_what_lies_outside_the_series_is_air() -> None:
    view = canonical_view(CtVolume(np.full((10, 10, 10), 40, np.int16), axial_affine((2.0, 2.0, 2.0), (0, 0, 0))))
    box = box_around(np.array([0.0, 9.0, 9.0]), 1.0, (16, 16, 16))
    hu = resample(view, box, CPU)
    assert float(hu[0].max()) == -1024 and float(hu[-1].min()) == 40


def test_probabilities_return_to_the_voxels_they_came_from() -> None:
    view = canonical_view(CtVolume(np.zeros((30, 60, 60), np.int16), axial_affine((2.5, 0.75, 0.75), (0, 0, 0))))
    grid = box_around(np.array([40.0, 22.0, 22.0]), 1.2, (24, 24, 24))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    field = torch.from_numpy(grid.to_axis_mm(index)[..., 0]).float()[None]
    box = view_box(view, grid, 1, CPU)
    assert box is not None
    slices_mm = np.arange(view.shape[0])[box.slices[0]] * 2.5
    np.testing.assert_allclose(
        to_view(field, box)[0].numpy(), slices_mm[:, None, None] + np.zeros(box.shape), atol=0.35
    )


def test_a_grid_beside_the_series_covers_no_voxel() -> None:
    view = canonical_view(CtVolume(np.zeros((10, 10, 10), np.int16), axial_affine((1.0, 1.0, 1.0), (0, 0, 0))))
    assert view_box(view, IsotropicGrid(np.array([500.0, 0, 0]), 1.0, (8, 8, 8)), 0, CPU) is None


@pytest.mark.parametrize("width", [0.5, 1.0, 2.7, 4.0])
def test_weights_of_every_sample_sum_to_one_also_beyond_the_edge(width: float) -> None:
    matrix = interpolation_matrix(np.linspace(-3, 22, 40), 20, width)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-5)
    assert (matrix >= 0).all()
