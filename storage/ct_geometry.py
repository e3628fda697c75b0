"""Where the slices of a CT series lie: order, spacing, gaps and tilt, from ImagePositionPatient alone.

InstanceNumber is never used. DICOM PS3.3 C.7.6.2: Image Plane module.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from analysis.errors import UnusableSeriesError

POSITION_TOLERANCE_MM = 0.1  # scanners write ImagePositionPatient rounded to 0.1 mm or better
DIRECTION_TOLERANCE = 1e-3  # of a unit vector's component
TILT_TOLERANCE_DEG = 0.5
MINIMUM_SLICES = 3


@dataclass(frozen=True, slots=True, eq=False)
class SliceStack:
    """The order of the slices (indices into the given datasets) and the affine of the stack."""

    order: tuple[int, ...]
    affine: NDArray[np.float64]
    spacing_mm: float


def stack_slices(datasets: Sequence[Dataset], minimum: int = MINIMUM_SLICES) -> SliceStack:
    """Order the slices along their normal and check that at least `minimum` of them make one regular volume.

    Raises
    ------
    UnusableSeriesError : TOO_FEW_SLICES, MIXED_GEOMETRY, DUPLICATE_SLICE, SLICE_GAP, UNEVEN_SPACING, GANTRY_TILT
    """
    if len(datasets) < minimum:
        raise UnusableSeriesError(
            "TOO_FEW_SLICES", f"{len(datasets)} slices found; at least {minimum} expected; send the whole series"
        )
    rows_direction, columns_direction, pixel_spacing_mm = _common_plane(datasets)
    normal = np.cross(rows_direction, columns_direction)
    positions = np.array([[float(v) for v in ds.ImagePositionPatient] for ds in datasets])
    along_mm = positions @ normal
    order = np.argsort(along_mm, kind="stable")
    if len(datasets) > 1:
        spacing_mm = _regular_spacing_mm(along_mm[order])
        _check_tilt(positions[order], normal)
    else:
        spacing_mm = _thickness_mm(datasets[0])
    affine = np.eye(4)
    affine[:3, 0] = normal * spacing_mm
    affine[:3, 1] = columns_direction * pixel_spacing_mm[0]
    affine[:3, 2] = rows_direction * pixel_spacing_mm[1]
    affine[:3, 3] = positions[order[0]]
    return SliceStack(tuple(int(i) for i in order), affine, spacing_mm)


def _common_plane(datasets: Sequence[Dataset]) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Row direction (along columns), column direction (along rows) and (row, column) spacing shared by all slices."""
    try:
        orientations = np.array([[float(v) for v in ds.ImageOrientationPatient] for ds in datasets])
        spacings_mm = np.array([[float(v) for v in ds.PixelSpacing] for ds in datasets])
        sizes = {(int(ds.Rows), int(ds.Columns)) for ds in datasets}
        positions = np.array([[float(v) for v in ds.ImagePositionPatient] for ds in datasets])
    except (AttributeError, TypeError, ValueError) as error:
        raise UnusableSeriesError("MIXED_GEOMETRY", _what_is_absent(datasets)) from error
    if orientations.shape[1:] != (6,) or not np.isfinite(orientations).all() or not np.isfinite(positions).all():
        raise UnusableSeriesError(
            "MIXED_GEOMETRY", "ImageOrientationPatient or ImagePositionPatient is not a finite vector"
        )
    if (
        len(sizes) > 1
        or np.ptp(orientations, axis=0).max() > DIRECTION_TOLERANCE
        or np.ptp(spacings_mm, axis=0).max() > 1e-3
    ):
        raise UnusableSeriesError(
            "MIXED_GEOMETRY",
            f"slices of {len(sizes)} matrix sizes or of several orientations or pixel spacings; one expected",
        )
    if spacings_mm.min() <= 0 or not np.isfinite(spacings_mm).all():
        raise UnusableSeriesError(
            "MIXED_GEOMETRY", f"PixelSpacing {spacings_mm[0].tolist()} found; positive numbers expected"
        )
    row, column = orientations.mean(axis=0).reshape(2, 3)
    return (
        row / np.linalg.norm(row),
        column / np.linalg.norm(column),
        (float(spacings_mm[0, 0]), float(spacings_mm[0, 1])),
    )


def _what_is_absent(datasets: Sequence[Dataset]) -> str:
    wanted = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    counts = {keyword: sum(not ds.get(keyword) for ds in datasets) for keyword in wanted}
    absent = ", ".join(f"{keyword} absent in {n}" for keyword, n in counts.items() if n)
    found = absent or "position or spacing of wrong form in some"
    return f"{found} of {len(datasets)} slices; without a place in the patient they make no volume"


def _thickness_mm(ds: Dataset) -> float:
    """The depth of a single slice; 1 mm where it is not stated, for a volume needs one."""
    return max(float(ds.get("SliceThickness") or 0.0), 1.0)


def _regular_spacing_mm(along_mm: NDArray[np.float64]) -> float:
    gaps_mm = np.diff(along_mm)
    median_mm = float(np.median(gaps_mm))
    if gaps_mm.min() < POSITION_TOLERANCE_MM:
        where_mm = along_mm[int(gaps_mm.argmin())]
        raise UnusableSeriesError(
            "DUPLICATE_SLICE", f"two slices lie at {where_mm:.2f} mm; one expected at each position"
        )
    if gaps_mm.max() > 1.5 * median_mm:
        where_mm = along_mm[int(gaps_mm.argmax())]
        raise UnusableSeriesError(
            "SLICE_GAP",
            f"gap of {gaps_mm.max():.2f} mm after {where_mm:.2f} mm; {median_mm:.2f} mm expected; slices are missing",
        )
    spacing_mm = float((along_mm[-1] - along_mm[0]) / (len(along_mm) - 1))
    ideal_mm = along_mm[0] + spacing_mm * np.arange(len(along_mm))
    if np.abs(along_mm - ideal_mm).max() > POSITION_TOLERANCE_MM:
        raise UnusableSeriesError(
            "UNEVEN_SPACING",
            f"slice spacing varies {gaps_mm.min():.2f}-{gaps_mm.max():.2f} mm; uniform within "
            f"{POSITION_TOLERANCE_MM} mm expected",
        )
    return spacing_mm


def _check_tilt(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """A tilted gantry moves the slices along a line that is not their normal (a sheared volume)."""
    stack = positions[-1] - positions[0]
    cosine = float(np.clip(stack @ normal / np.linalg.norm(stack), -1.0, 1.0))
    tilt_deg = float(np.degrees(np.arccos(cosine)))
    if tilt_deg > TILT_TOLERANCE_DEG:
        raise UnusableSeriesError(
            "GANTRY_TILT",
            f"slices are sheared by {tilt_deg:.1f} degrees; under {TILT_TOLERANCE_DEG} expected; scan without tilt",
        )
