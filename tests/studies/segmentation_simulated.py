"""The simulated test set: patients of fixed seeds that no training uses, four fields of view, with exact truth.

`python -m tests.studies.segmentation_accuracy --simulated 100 --workers 2` simulates and scores them.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.errors import NoVertebraError
from analysis.segmentation import Networks, SegmentationLimits, segment_vertebrae
from analysis.simulation.patient import PatientSpec, random_patient, simulate_patient
from analysis.volume import CtVolume
from node.process_memory import keep_freed_memory
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


def simulate_case(index: int) -> SimulatedCase:
    """Simulate one patient of the set."""
    patient = simulate_patient(case_spec(index))
    levels = tuple(
        (vertebra.name, vertebra.centroid_lps_mm, vertebra.complete)
        for vertebra in patient.truth
        if vertebra.name not in ("S", "S1", "sacrum")
    )
    return SimulatedCase(str(FIRST_SEED + index), patient.volume, patient.labels, patient.body, levels)


@dataclass(frozen=True, slots=True)
class CaseScore:
    name: str
    matches: tuple[LevelMatch, ...]
    vertebra_dice: tuple[float, ...]
    body_dice: tuple[float, ...]
    flags: tuple[str, ...]
    seconds: float
    missed_whole: tuple[str, ...]  # levels that no edge of the series cuts


def score_case(case: SimulatedCase, networks: Networks, limits: SegmentationLimits) -> CaseScore:
    """Levels of all vertebrae in view; overlap of the complete ones, apart from their names."""
    try:
        segmentation = segment_vertebrae(case.volume, networks, limits)
    except NoVertebraError as error:
        missed = tuple(LevelMatch(name, "-", 0.0, float("inf"), "missed") for name, _, _ in case.levels)
        return CaseScore(case.name, missed, (), (), (error.code,), 0.0, missed_whole_levels(case, missed))
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
    missed_whole = missed_whole_levels(case, matches)
    return CaseScore(case.name, matches, tuple(vertebra), tuple(body), codes, seconds, missed_whole)


def missed_whole_levels(case: SimulatedCase, matches: tuple[LevelMatch, ...]) -> tuple[str, ...]:
    pairs = zip(case.levels, matches, strict=True)
    return tuple(match.marked for (_, _, whole), match in pairs if whole and match.verdict == "missed")


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
    print_names(scores)
    print_overlap(scores)
    print(f"\n{np.mean([score.seconds for score in scores]):.1f} s per series")


def print_names(scores: list[CaseScore]) -> None:
    """Names whatever their confidence, and whole vertebrae that were not found."""
    found = [m for s in scores for m in s.matches if m.verdict != "missed"]
    named = sum(m.found == m.marked for m in found)
    print(f"\nnamed as they are, sure or not: {named} of {len(found)} found ({named / max(1, len(found)):.1%})")
    missed = [f"{s.name} {level}" for s in scores for level in s.missed_whole]
    print(f"\nwhole vertebrae not found: {len(missed)} {', '.join(missed)}")


def print_overlap(scores: list[CaseScore]) -> None:
    for title in ("vertebra", "body"):
        values = [d for s in scores for d in getattr(s, f"{title}_dice")]
        if values:
            print(f"\n{title} Dice, {len(values)} complete ones: {np.mean(values):.3f}", end="")
            print(f", 5th percentile {np.percentile(values, 5):.3f}")


def score_index(index: int, networks: Callable[[], Networks], threads: int) -> CaseScore:
    """Simulate and score one patient; what a worker process does."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    return score_case(simulate_case(index), networks(), SegmentationLimits())


def score_simulated(networks: Callable[[], Networks], count: int, workers: int) -> list[CaseScore]:
    """Score the first `count` patients of the set, `workers` at once; each worker loads its own networks."""
    one = partial(score_index, networks=networks, threads=max(1, (os.cpu_count() or 1) // workers))
    scores = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for score in pool.map(one, range(count)):
            scores.append(score)
            print(score.name, [m.verdict for m in score.matches], flush=True, file=sys.stderr)
    print_scores(scores)
    return scores
