"""A small torso as label maps: seven stacked vertebrae with canal, ribs, a liver and a lung, every size known."""

import numpy as np
from numpy.typing import NDArray

from analysis.training.anatomy import CODE, RIB_BASE, Anatomy, derive_anatomy

SPACING_MM = 2.0
FIRST_LEVEL, LAST_LEVEL = 18, 23  # T11 ... L4
BODY_HEIGHT, DISC_HEIGHT = 12, 4  # voxels of 2 mm


def small_labels() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Tissue codes and levels, (slices, rows, columns) at 2 mm; T11 on top."""
    n_levels = LAST_LEVEL - FIRST_LEVEL + 1
    shape = (n_levels * (BODY_HEIGHT + DISC_HEIGHT) + DISC_HEIGHT, 90, 100)
    tissue, levels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    tissue[:, 12:38, 15:55] = CODE["liver"]
    tissue[shape[0] // 2 :, 12:38, 56:85] = CODE["lung"]
    tissue[:, 60:66, 47:53] = CODE["canal"]
    for number in range(n_levels):
        z = DISC_HEIGHT + number * (BODY_HEIGHT + DISC_HEIGHT)
        level = LAST_LEVEL - number
        _add_vertebra(tissue, levels, slice(z, z + BODY_HEIGHT), level)
    return tissue, levels


def _add_vertebra(tissue: NDArray[np.uint8], levels: NDArray[np.uint8], z: slice, level: int) -> None:
    body = (z, slice(42, 58), slice(40, 60))
    arch = (z, slice(58, 74), slice(43, 57))
    for box in (body, arch):
        bone = tissue[box] != CODE["canal"]
        tissue[box] = np.where(bone, CODE["vertebra"], tissue[box])
        levels[box] = np.where(bone, level, levels[box])
    if level <= 19:
        for columns in (slice(20, 40), slice(60, 80)):
            box = (slice(z.start, z.start + 4), slice(62, 66), columns)
            tissue[box] = CODE["rib"]
            levels[box] = RIB_BASE + level - 7


def small_anatomy() -> Anatomy:
    tissue, levels = small_labels()
    return derive_anatomy("small", SPACING_MM, tissue, levels, margin_mm=20.0)
