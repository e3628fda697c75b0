"""Builders of small CT series in DICOM: any size, spacing, orientation, rescale and padding."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from analysis.volume import CtVolume, axial_affine
from node.simulated_series import SimulatedIdentity, default_header, write_series

ACQUIRED = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


def ramp_volume(
    shape: tuple[int, int, int] = (6, 16, 24), spacing_mm: tuple[float, float, float] = (2.5, 0.8, 0.8)
) -> CtVolume:
    """A volume in which every voxel has its own HU, so that any wrong order or flip shows."""
    hu = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 900
    return CtVolume(hu, axial_affine(spacing_mm, (-10.0, -20.0, -300.0)))


def identity(**changes: object) -> SimulatedIdentity:
    values = {
        "patient_id": "TEST-1",
        "patient_name": "Test^Patient",
        "series_description": "ABDOMEN 1.25",
        "acquired": ACQUIRED,
    }
    return SimulatedIdentity(**(values | changes))  # type: ignore[arg-type]


def write_ct(
    folder: Path, volume: CtVolume | None = None, change: Callable[[int, Dataset], None] | None = None, **who: object
) -> tuple[Path, ...]:
    """Write a series; `change(index, dataset)` may spoil each slice before it is saved again."""

    paths = write_series(volume or ramp_volume(), default_header(), identity(**who), folder)
    if change:
        for index, path in enumerate(paths):
            ds = dcmread(path)
            change(index, ds)
            ds.save_as(path)
    return paths
