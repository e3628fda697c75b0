"""What a segmentation may meet: degraded series, and series without a spine. All from a volume or from nothing."""

import numpy as np
from numpy.typing import NDArray

from analysis.volume import CtVolume, axial_affine


def with_noise(volume: CtVolume, sd_hu: float, seed: int = 1) -> CtVolume:
    noise = np.random.default_rng(seed).normal(0, sd_hu, volume.hu.shape)
    return CtVolume(np.clip(volume.hu + noise, -1024, 3071).astype(np.int16), volume.affine)


def thick_slices(volume: CtVolume, factor: int) -> CtVolume:
    """Mean of `factor` neighbouring slices."""
    n = volume.hu.shape[0] // factor * factor
    hu = volume.hu[:n].reshape(-1, factor, *volume.hu.shape[1:]).mean(axis=1)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (factor - 1) / 2
    affine[:3, 0] *= factor
    return CtVolume(hu.astype(np.int16), affine)


def slices_between(volume: CtVolume, low_mm: float, high_mm: float) -> CtVolume:
    """The axial slices whose z lies between two heights."""
    z = volume.affine[2, 3] + volume.affine[2, 0] * np.arange(volume.hu.shape[0])
    keep = np.flatnonzero((z >= low_mm) & (z <= high_mm))
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * keep[0]
    return CtVolume(volume.hu[keep[0] : keep[-1] + 1], affine)


def around(volume: CtVolume, centre_lps_mm: tuple[float, float, float], reach_mm: float) -> CtVolume:
    """A narrow field of view in the plane: everything further than `reach_mm` from the centre is padding."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape[1:]), indexing="ij"), axis=-1)
    _, row, column = volume.to_index(np.array(centre_lps_mm))
    _, rows_mm, columns_mm = volume.spacing_mm
    distance = np.hypot((index[..., 0] - row) * rows_mm, (index[..., 1] - column) * columns_mm)
    return CtVolume(np.where(distance[None] < reach_mm, volume.hu, -1024).astype(np.int16), volume.affine)


def with_pedicle_screws(volume: CtVolume, centroid_lps_mm: tuple[float, float, float]) -> CtVolume:
    """Two rods of metal of 5 mm behind one body with dark and bright streaks in their slices."""
    hu = volume.hu.astype(np.float32)
    for side in (-15.0, 15.0):
        start = np.array(centroid_lps_mm) + np.array([side, 0.0, 4.0])
        points = start + np.linspace(0, 1, 60)[:, None] * np.array([side * 0.5, 45.0, 0.0])
        for point in points:
            _paint_ball(hu, volume, point, 2.5, 3071.0)
    rows = np.abs(hu).max(axis=(1, 2)) >= 3071
    columns = np.arange(hu.shape[2])
    streaks = 120.0 * np.sin(columns / 3.0) + 60.0 * np.sin(columns / 7.1)
    hu[rows] += streaks[None, None, :].astype(np.float32)
    return CtVolume(np.clip(hu, -1024, 3071).astype(np.int16), volume.affine)


def _paint_ball(
    hu: NDArray[np.float32], volume: CtVolume, centre: NDArray[np.float64], radius: float, value: float
) -> None:
    index = volume.to_index(centre)
    reach = np.ceil(radius / np.array(volume.spacing_mm)).astype(int) + 1
    start = np.maximum(np.round(index).astype(int) - reach, 0)
    stop = np.minimum(np.round(index).astype(int) + reach + 1, hu.shape)
    grid = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(start, stop, strict=True)), indexing="ij"), axis=-1)
    inside = np.linalg.norm((grid - index) * np.array(volume.spacing_mm), axis=-1) <= radius
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    hu[box][inside] = value


# --- series without a spine -----------------------------------------------------------------------------------------


def _empty(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> tuple[CtVolume, NDArray[np.float64]]:
    """Air with noise of 12 HU, and the positions (slices, rows, columns) in mm from the middle."""
    rng = np.random.default_rng(3)
    hu = np.clip(rng.normal(-1000, 12, shape), -1024, None).astype(np.int16)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    positions = (index - (np.array(shape) - 1) / 2) * spacing_mm
    return CtVolume(hu, axial_affine(spacing_mm, (0.0, 0.0, 0.0))), positions


def water_bath(shape: tuple[int, int, int] = (60, 128, 128)) -> CtVolume:
    """A round water phantom of 32 cm."""
    volume, position = _empty(shape, (4.0, 3.0, 3.0))
    inside = np.hypot(position[..., 1], position[..., 2]) < 160
    volume.hu[inside] += 1000
    return volume


def rod_phantom(shape: tuple[int, int, int] = (60, 128, 128)) -> CtVolume:
    """A torso-shaped water body on a pad with five rods of 0 to 400 HU along the table."""
    volume, position = _empty(shape, (4.0, 3.0, 3.0))
    torso = (position[..., 1] / 100) ** 2 + (position[..., 2] / 150) ** 2 < 1
    pad = (np.abs(position[..., 1] - 118) < 14) & (np.abs(position[..., 2]) < 130)
    volume.hu[torso | pad] += 1000
    for i in range(5):
        rod = np.hypot(position[..., 1] - 118, position[..., 2] - (i - 2) * 40.0) < 9
        volume.hu[rod] += 100 * i
    return volume


def head(shape: tuple[int, int, int] = (50, 96, 96)) -> CtVolume:
    """A skull of 6 mm around a brain with ventricles; no neck."""
    volume, position = _empty(shape, (4.0, 3.0, 3.0))
    radius = np.sqrt((position[..., 0] / 85) ** 2 + (position[..., 1] / 95) ** 2 + (position[..., 2] / 75) ** 2)
    for limit, hu in ((1.08, 30), (1.0, 900), (0.93, 35)):
        inside = radius < limit
        volume.hu[inside] = (volume.hu[inside] % 25) + hu
    ventricles = (np.abs(position[..., 2]) < 15) & (np.abs(position[..., 1]) < 30) & (np.abs(position[..., 0]) < 20)
    volume.hu[ventricles] = 8
    return volume


def noise_only(shape: tuple[int, int, int] = (60, 96, 96)) -> CtVolume:
    hu = np.random.default_rng(4).normal(0, 300, shape)
    return CtVolume(np.clip(hu, -1024, 3071).astype(np.int16), axial_affine((4.0, 4.0, 4.0), (0.0, 0.0, 0.0)))


def air_only(shape: tuple[int, int, int] = (40, 64, 64)) -> CtVolume:
    return CtVolume(np.full(shape, -1000, np.int16), axial_affine((4.0, 4.0, 4.0), (0.0, 0.0, 0.0)))
