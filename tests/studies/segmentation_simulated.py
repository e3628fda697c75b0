"""The simulated test set: patients of fixed seeds that no training uses, four fields of view, with exact truth.

    python -m tests.studies.segmentation_simulated FOLDER [--count 100]     simulate once, keep as .npz

`segmentation_accuracy --simulated N --set FOLDER` scores them.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.errors import NoVertebraError
from analysis.segmentation import Networks, SegmentationLimits, segment_vertebrae
from analysis.simulation.patient import PatientSpec, random_patient, simulate_patient
from analysis.volume import CtVolume
from tests.studies.segmentation_metrics import LevelMatch, dice, match_level

# Training draws its patients from other seeds.
FIRST_SEED = 7000
FIELDS = (("T10", "S"), ("T8", "L3"), ("T11", "S"), ("T7", "L2"))


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedCase:
    """One patient: CT, maps and the truth of every vertebra in view."""

    name: str
    volume: CtVolume
    labels: NDArray[np.uint8]
    body: NDArray[np.uint8]
    levels: tuple[tuple[str, tuple[float, float, float], bool], ...]  # name, centroid LPS mm, complete


def case_spec(index: int) -> PatientSpec:
    first, last = FIELDS[index % len(FIELDS)]
    return random_patient(FIRST_SEED + index, first, last)


def save_case(index: int, folder: Path) -> Path:
    """Simulate one patient unless its file is there."""
    path = folder / f"{FIRST_SEED + index}.npz"
    if not path.exists():
        patient = simulate_patient(case_spec(index))
        temporary = path.with_suffix(".part.npz")
        np.savez_compressed(
            temporary,
            hu=np.round(patient.volume.hu).astype(np.int16),
            affine=patient.volume.affine,
            labels=patient.labels,
            body=patient.body,
            names=[vertebra.name for vertebra in patient.truth],
            centroids=[vertebra.centroid_lps_mm for vertebra in patient.truth],
            complete=[vertebra.complete for vertebra in patient.truth],
        )
        temporary.replace(path)
    return path


def read_case(path: Path) -> SimulatedCase:
    with np.load(path) as stored:
        levels = tuple(
            (str(name), (float(c[0]), float(c[1]), float(c[2])), bool(whole))
            for name, c, whole in zip(stored["names"], stored["centroids"], stored["complete"], strict=True)
            if str(name) not in ("S", "S1", "sacrum")
        )
        volume = CtVolume(stored["hu"], stored["affine"])
        return SimulatedCase(path.stem, volume, stored["labels"], stored["body"], levels)


@dataclass(frozen=True, slots=True)
class CaseScore:
    name: str
    matches: tuple[LevelMatch, ...]
    vertebra_dice: tuple[float, ...]
    body_dice: tuple[float, ...]
    flags: tuple[str, ...]
    seconds: float


def score_case(case: SimulatedCase, networks: Networks, limits: SegmentationLimits) -> CaseScore:
    """Levels of all vertebrae in view; overlap of the complete ones, apart from their names."""
    try:
        segmentation = segment_vertebrae(case.volume, networks, limits)
    except NoVertebraError as error:
        missed = tuple(LevelMatch(name, "-", 0.0, float("inf"), "missed") for name, _, _ in case.levels)
        return CaseScore(case.name, missed, (), (), (error.code,), 0.0)
    limit = limits.min_level_confidence
    matches = tuple(match_level(name, centroid, segmentation.levels, limit) for name, centroid, _ in case.levels)
    by_name = {level.name: level.label for level in segmentation.levels}
    vertebra, body = [], []
    true_body = case.body >= 2
    for (_, centroid, whole), match in zip(case.levels, matches, strict=True):
        if whole and match.found != "-":
            true_label = _label_at(case, centroid)
            found, true = segmentation.labels == by_name[match.found], case.labels == true_label
            vertebra.append(dice(found, true))
            body.append(dice(found & (segmentation.body >= 2), true & true_body))
    seconds = sum(t for _, t in segmentation.timings_s)
    codes = tuple(flag.code for flag in segmentation.flags)
    return CaseScore(case.name, matches, tuple(vertebra), tuple(body), codes, seconds)


def _label_at(case: SimulatedCase, centroid: tuple[float, float, float]) -> int:
    index = case.volume.to_index(np.array(centroid)).round().astype(int)
    box = tuple(slice(max(0, i - 3), i + 4) for i in index)
    values = case.labels[box][case.labels[box] > 0]
    return int(np.bincount(values).argmax()) if values.size else 0


def print_scores(scores: list[CaseScore]) -> None:
    """One line per patient that is not all right, then totals."""
    print(
        "\n| patient | L1, L2 | other levels not right | vertebra Dice | body Dice | flags |\n|---|---|---|---|---|---|"
    )
    for score in scores:
        odd = [f"{m.marked}={m.found} {m.confidence:.2f} {m.verdict}" for m in score.matches if m.verdict != "right"]
        wanted = [f"{m.marked} {m.verdict}" for m in score.matches if m.marked in ("L1", "L2")]
        numbers = [f"{np.mean(d):.3f}" if d else "-" for d in (score.vertebra_dice, score.body_dice)]
        if odd or min(score.vertebra_dice, default=0) < 0.9:
            print(
                f"| {score.name} | {', '.join(wanted)} | {'; '.join(odd)} | {numbers[0]} | {numbers[1]} "
                f"| {' '.join(score.flags)} |"
            )
    for title, levels in (("L1 and L2", ("L1", "L2")), ("all levels", None)):
        matches = [m for s in scores for m in s.matches if levels is None or m.marked in levels]
        counts = {v: sum(m.verdict == v for m in matches) for v in ("right", "uncertain", "wrong", "missed")}
        print(
            f"\n{title}: {len(matches)} vertebrae, "
            + ", ".join(f"{k} {n} ({n / len(matches):.1%})" for k, n in counts.items())
        )
    vertebra = [d for s in scores for d in s.vertebra_dice]
    body = [d for s in scores for d in s.body_dice]
    if vertebra:
        for title, values in (("vertebra", vertebra), ("body", body)):
            print(f"\n{title} Dice, {len(values)} complete ones: {np.mean(values):.3f}", end="")
            print(f", 5th percentile {np.percentile(values, 5):.3f}")
    print(f"\n{np.mean([score.seconds for score in scores]):.1f} s per series")


def score_simulated(networks: Networks, folder: Path, count: int) -> list[CaseScore]:
    """Score the first `count` patients kept in `folder`; those not there are simulated."""
    limits = SegmentationLimits()
    scores = [score_case(read_case(save_case(index, folder)), networks, limits) for index in range(count)]
    print_scores(scores)
    return scores


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for index in range(options.count):
        print(save_case(index, options.folder), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
