"""How well the spine is found, named and outlined: real labelled volumes, real marked volumes, simulated patients.

    python -m tests.studies.segmentation_accuracy [--models FOLDER] [--fine FILE] [--pictures FOLDER] [--only NAME]
    python -m tests.studies.segmentation_accuracy --simulated N [--models FOLDER] [--fine FILE] [--workers 2]

Prints Markdown tables. `--models` holds coarse.safetensors and fine.safetensors; without it the committed ones are
used, which have seen the real volumes: leave-one-out figures need weights that were trained without the scored volume,
as `tests/golden/left_out_networks` holds them for `--fine`.
"""

import argparse
import itertools
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import analysis
from analysis.errors import NoVertebraError
from analysis.results import Segmentation
from analysis.segmentation import Networks, SegmentationLimits, load_networks, segment_vertebrae
from analysis.training.annotation import LEVEL_LABELS
from tests.studies.segmentation_cases import NAMES, RealCase, load_case
from tests.studies.segmentation_metrics import dice, match_level, mean_surface_distance_mm, nearest_label
from tests.studies.segmentation_pictures import overlay
from tests.studies.segmentation_simulated import score_simulated

MODELS = Path(analysis.__file__).parent / "models"

# A body without what the reader calls posterior elements of the same vertebra: each reader cuts the pedicles elsewhere.
BODY_ALONE = "body, readers' pedicles left out"


@dataclass(frozen=True, slots=True)
class OverlapRow:
    volume: str
    structure: str
    level: str
    dice: float
    distance_mm: float


def networks_from(folder: Path, fine: Path | None = None) -> Networks:
    return load_networks(folder / "coarse.safetensors", fine or folder / "fine.safetensors")


def overlap_rows(case: RealCase, segmentation: Segmentation) -> list[OverlapRow]:
    """Dice and surface distance of every structure that the truth covers, at the volume's own resolution."""
    structures = (
        ("vertebra", case.vertebrae, (1, 2, 3)),
        ("body", case.bodies, (2, 3)),
        ("cancellous", case.cancellous, (3,)),
    )
    rows = []
    for level in case.annotation.vertebrae:
        label = LEVEL_LABELS[level.level]
        known = [(name, truth[0] == label, parts) for name, truth, parts in structures if truth and label in truth[1]]
        if not known:
            continue
        outline = segmentation.labels == nearest_label(segmentation, level.centroid_lps_mm)
        for name, drawn, parts in known:
            found = outline & np.isin(segmentation.body, parts)
            rows.append(_overlap(case, name, level.level, found, drawn))
            if name == "body" and case.vertebrae is not None:
                behind = (case.vertebrae[0] == label) & ~drawn
                rows.append(_overlap(case, BODY_ALONE, level.level, found & ~behind, drawn))
    return rows


def _overlap(
    case: RealCase, structure: str, level: str, found: NDArray[np.bool_], drawn: NDArray[np.bool_]
) -> OverlapRow:
    distance = mean_surface_distance_mm(found, drawn, case.volume.spacing_mm)
    return OverlapRow(case.name, structure, level, dice(found, drawn), distance)


def print_overlap(rows: list[OverlapRow]) -> None:
    print("\n| volume | structure | level | Dice | mean surface distance mm |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.volume} | {row.structure} | {row.level} | {row.dice:.3f} | {row.distance_mm:.2f} |")
    for structure in ("vertebra", "body", BODY_ALONE, "cancellous"):
        chosen = [row for row in rows if row.structure == structure]
        if chosen:
            print_mean(f"vertebrae ({len(chosen)})", structure, chosen)
            by_volume = itertools.groupby(chosen, lambda row: row.volume)  # the rows of a volume stand together
            means = [OverlapRow(name, structure, "", *mean_overlap(list(of))) for name, of in by_volume]
            print_mean(f"volumes' means ({len(means)})", structure, means)


def print_mean(of_what: str, structure: str, rows: list[OverlapRow]) -> None:
    overlap, distance_mm = mean_overlap(rows)
    print(f"| **mean of {of_what}** | {structure} | | **{overlap:.3f}** | **{distance_mm:.2f}** |")


def mean_overlap(rows: list[OverlapRow]) -> tuple[float, float]:
    return float(np.mean([r.dice for r in rows])), float(np.mean([r.distance_mm for r in rows]))


def print_levels(case: RealCase, segmentation: Segmentation, limit: float) -> None:
    doubt = "" if case.level_sure else " (the reader's own names are in doubt)"
    print(f"\n**{case.name}**{doubt}: anchors {', '.join(segmentation.level_anchors) or 'none'}; "
          f"flags {', '.join(flag.code for flag in segmentation.flags) or 'none'}")  # fmt: skip
    print("\n| marked | found | confidence | centroid error mm | verdict |\n|---|---|---|---|---|")
    for vertebra in case.annotation.vertebrae:
        if vertebra.level == "S1":
            continue
        match = match_level(vertebra.level, vertebra.centroid_lps_mm, segmentation.levels, limit)
        cut = "" if vertebra.complete else " (cut)"
        print(
            f"| {match.marked}{cut} | {match.found} | {match.confidence:.2f} | {match.error_mm:.1f} | {match.verdict} |"
        )


def score_real(networks: Networks, names: tuple[str, ...], pictures: Path | None) -> None:
    limits = SegmentationLimits()
    rows: list[OverlapRow] = []
    for name in names:
        case = load_case(name)
        started = time.perf_counter()
        try:
            segmentation = segment_vertebrae(case.volume, networks, limits)
        except NoVertebraError as error:
            print(f"\n**{name}**: {error.code}: {error.text}")
            continue
        print_levels(case, segmentation, limits.min_level_confidence)
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in segmentation.timings_s)
        print(f"\n{time.perf_counter() - started:.1f} s ({stages})")
        rows += overlap_rows(case, segmentation)
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            overlay(case.volume, segmentation, name).savefig(pictures / f"{name}.png", dpi=60)
    print_overlap(rows)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--fine", type=Path, help="fine network instead of the one in --models")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--simulated", type=int, default=0, help="score this many simulated patients instead")
    parser.add_argument("--workers", type=int, default=1, help="simulated patients scored at once")
    parser.add_argument("--only", choices=NAMES, action="append")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    networks = networks_from(options.models, options.fine)
    for network in (networks.coarse, networks.fine):
        training = network.config.training
        data = ", ".join(training.data) or "unknown data"
        origin = f"{training.preset}, {training.iterations} iterations on {data}"
        print(f"{network.config.stage}: {origin}; SHA-256 {network.sha256[:12]}")
    if options.simulated:
        score_simulated(partial(networks_from, options.models, options.fine), options.simulated, options.workers)
    else:
        score_real(networks, tuple(options.only or NAMES), options.pictures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
