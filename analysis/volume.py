"""A CT volume and label maps on its grid.

Convention (highdicom's): arrays are (slices, rows, columns); positions are DICOM patient coordinates (LPS) in
millimetres; the affine maps the index (slice, row, column, 1) of a voxel *centre* to LPS. Slices ascend along the
slice normal `cross(row direction, column direction)`; for axial head-first series that is from feet to head.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class CtVolume:
    """CT numbers with their geometry.

    hu : float32 or int16, (slices, rows, columns), HU after rescale; padding already replaced by -1024
    affine : float64, (4, 4), index (slice, row, column, 1) -> LPS mm
    """

    hu: NDArray[np.float32] | NDArray[np.int16]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along slices, rows and columns, mm."""
        slices_mm, rows_mm, columns_mm = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices_mm), float(rows_mm), float(columns_mm)

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_lps_mm(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Indices (..., 3) in (slice, row, column) -> LPS mm (..., 3)."""
        return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """LPS mm (..., 3) -> fractional indices (..., 3) in (slice, row, column)."""
        return (np.asarray(lps_mm) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T


def axial_affine(
    spacing_mm: tuple[float, float, float], origin_lps_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Affine of an untilted axial head-first supine volume: slices along +z (head), rows along +y, columns along +x."""
    slices_mm, rows_mm, columns_mm = spacing_mm
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = slices_mm, rows_mm, columns_mm, 1.0
    affine[:3, 3] = origin_lps_mm
    return affine
