"""Time of the texture features: both 9-mm VOIs of a study of 400 slices, all 93 features and the six of the signature.

python -m tests.studies.radiomics_benchmark [--repeats 20] [--write]

Timed from the whole volume and its VOIs to the values, resampling included. `--write` writes
docs/radiomics-benchmark.md.
"""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from analysis.feature_names import FEATURE_NAMES, SIGNATURE_SEED
from analysis.radiomic_features import extract_features
from analysis.results import Voi
from analysis.voi import place_voi
from analysis.volume import CtVolume
from tests.studies.bmd_benchmark import large_study

TARGET = Path(__file__).resolve().parents[2] / "docs" / "radiomics-benchmark.md"
CASES = (("93 features", FEATURE_NAMES, 0.3), ("six features", SIGNATURE_SEED, 0.05))  # the aim in s
NOISE_SD_HU = 25.0  # the analytic spine is smooth; texture makes the matrices as full as real marrow does


def main(
    repeats: int = 20, write: Annotated[bool, typer.Option(help="write docs/radiomics-benchmark.md")] = False
) -> None:
    """Measure, print, write."""
    volume, vois = textured_study()
    rows = [row_of(volume, vois, name, features, aim_s, repeats) for name, features, aim_s in CASES]
    lines = [
        "# Extracting the texture features", "",
        f"Both 9-mm VOIs ({', '.join(f'{voi.level} {voi.volume_mm3 / 1000:.1f} cm3' for voi in vois)}) of a study of",
        f"{' x '.join(map(str, volume.hu.shape))} voxels, from volume and VOI to the values, one thread.",
        "Command: `python -m tests.studies.radiomics_benchmark --write`. The aim is held against the processor time:",
        "the clock counts what else the machine does.", "",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} when measured; "
        f"{repeats} runs.", "",
        "| | processor time, median | largest | on the clock, median | aim | reached |", "|---|---|---|---|---|---|",
        *rows,
    ]  # fmt: skip
    typer.echo("\n".join(lines))
    if write:
        TARGET.write_text("\n".join(lines) + "\n")


def textured_study() -> tuple[CtVolume, tuple[Voi, ...]]:
    """The study of the density benchmark with noise in it, and the VOIs of L1 and L2."""
    volume, segmentation = large_study()
    vois = tuple(place_voi(volume, segmentation, level) for level in ("L1", "L2"))
    noise = np.random.default_rng(1).normal(0, NOISE_SD_HU, volume.hu.shape[1:]).astype(np.int16)
    hu = volume.hu + np.stack([np.roll(noise, 37 * k) for k in range(len(volume.hu))])
    return CtVolume(hu, volume.affine), vois


def row_of(
    volume: CtVolume, vois: Sequence[Voi], name: str, features: Sequence[str], aim_s: float, repeats: int
) -> str:
    """One line of the table."""
    spent = [timed(volume, vois, features) for _ in range(repeats + 1)][1:]  # the first run loads what it needs
    cpu, wall = ([one[k] for one in spent] for k in (0, 1))
    reached = "yes" if median(cpu) < aim_s else "no"
    numbers = f"{median(cpu):.3f} s | {max(cpu):.3f} s | {median(wall):.3f} s"
    return f"| {name}, two VOIs | {numbers} | {aim_s:g} s | {reached} |"


def timed(volume: CtVolume, vois: Sequence[Voi], features: Sequence[str]) -> tuple[float, float]:
    """Processor time and time on the clock, in s."""
    cpu, wall = time.process_time(), time.perf_counter()
    for voi in vois:
        found = extract_features(volume, voi, names=features)
        if found.reason or not np.isfinite(found.values).all():
            raise SystemExit(f"{voi.level} was not described: {found.reason}")
    return time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    typer.run(main)
