"""Time from vertebra masks to the BMD summary: two vertebrae in a study of 400 slices of 512 x 512.

python -m tests.studies.bmd_benchmark
"""

import time

import numpy as np

from analysis.bmd import SummaryContext, measure_vertebra, summarise
from analysis.results import BmdSummary, ChosenCalibration, Segmentation
from analysis.vertebra_checks import check_vertebra
from analysis.voi import place_voi
from analysis.volume import CtVolume
from node.process_memory import keep_freed_memory
from tests.voi_builders import SpineGrid, SpineShape, build_spine, chosen_calibration

SHAPE, CORNER = (400, 512, 512), (150, 200, 200)


def large_study() -> tuple[CtVolume, Segmentation]:
    """The analytic spine of four vertebrae inside an otherwise empty volume."""
    built = build_spine(SpineShape(), SpineGrid(spacing_mm=(1.25, 0.977, 0.977)))
    hu, labels, body = np.full(SHAPE, -1000, np.int16), np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    box = tuple(slice(a, a + n) for a, n in zip(CORNER, built.volume.hu.shape, strict=True))
    hu[box], labels[box], body[box] = built.volume.hu, built.segmentation.labels, built.segmentation.body
    affine = built.volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(CORNER)
    return CtVolume(hu, affine), Segmentation(labels, body, built.segmentation.levels, (), ())


def masks_to_bmd(volume: CtVolume, segmentation: Segmentation, chosen: ChosenCalibration) -> BmdSummary:
    """Checks, VOI, BMD and summary of L1 and L2."""
    vertebrae = []
    for level in ("L1", "L2"):
        reasons = check_vertebra(volume, segmentation, level)
        if reasons:
            raise SystemExit(f"{level} was rejected: {reasons}")
        vertebrae.append(measure_vertebra(volume, place_voi(volume, segmentation, level), chosen))
    return summarise(vertebrae, SummaryContext(chosen))


def main() -> None:
    keep_freed_memory()  # as the worker process does
    volume, segmentation = large_study()
    chosen = chosen_calibration()
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        summary = masks_to_bmd(volume, segmentation, chosen)
        spent = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{summary.bmd_mg_cm3:.1f} mg/cm3: {spent[0]:.2f} s wall, {spent[1]:.2f} s CPU")


if __name__ == "__main__":
    main()
