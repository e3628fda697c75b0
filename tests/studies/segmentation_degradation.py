"""Does a bad series give the right level, an uncertain one or "no spine", and never a wrong one with confidence?

python -m tests.studies.segmentation_degradation [--models FOLDER]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from analysis.errors import NoVertebraError
from analysis.segmentation import Networks, SegmentationLimits, segment_vertebrae
from analysis.training.volume_files import read_ct
from analysis.volume import CtVolume
from tests import segmentation_builders as build
from tests.data import SHARED_DATA
from tests.studies.segmentation_accuracy import MODELS, networks_from
from tests.studies.segmentation_cases import RealCase, load_case
from tests.studies.segmentation_metrics import match_level


def degraded(case: RealCase) -> dict[str, Callable[[], CtVolume]]:
    """What can be done to a volume in which L1 and L2 are whole."""
    marks = {vertebra.level: vertebra.centroid_lps_mm for vertebra in case.annotation.vertebrae}
    volume, thickness = case.volume, case.volume.spacing_mm[0]
    low, high = -10_000.0, 10_000.0
    return {
        "as it is": lambda: volume,
        "noise of SD 60 HU": lambda: build.with_noise(volume, 60.0),
        f"slices of {thickness * max(2, round(5 / thickness)):.1f} mm": lambda: build.thick_slices(
            volume, max(2, round(5 / thickness))
        ),
        "pedicle screws in L2": lambda: build.with_pedicle_screws(volume, marks["L2"]),
        "lower half of L1 and all below cut off": lambda: build.slices_between(volume, marks["L1"][2], high),
        "upper half of L1 and all above cut off": lambda: build.slices_between(volume, low, marks["L1"][2]),
        "only L1 to L3": lambda: build.slices_between(volume, marks["L3"][2] - 20, marks["L1"][2] + 20),
        "field of view of 10 cm about the spine": lambda: build.around(volume, marks["L2"], 50.0),
    }


def spineless() -> dict[str, Callable[[], CtVolume]]:
    return {
        "empty water bath": build.water_bath,
        "torso-shaped water body on a rod phantom": build.rod_phantom,
        "head (stand-in)": build.head,
        "noise only": build.noise_only,
        "air only": build.air_only,
        "CT QA phantom, three slices": lambda: read_ct(SHARED_DATA / "phantom-ctqa"),
        "40-mm slab with one vertebra": lambda: read_ct(SHARED_DATA / "slab-dicom"),
    }


def describe(volume: CtVolume, networks: Networks, case: RealCase | None) -> str:
    """Table cells: what was found, L1, L2, flags, verdict."""
    limits = SegmentationLimits()
    try:
        segmentation = segment_vertebrae(volume, networks, limits)
    except NoVertebraError as error:
        return f"{error.code} | | | | {'no spine' if case is None else 'refused'} |"
    levels = segmentation.levels
    sure = [level for level in levels if level.confidence >= limits.min_level_confidence]
    found = f"{levels[0].name} to {levels[-1].name}, {min(v.confidence for v in levels):.2f}"
    flags = " ".join(flag.code for flag in segmentation.flags)
    if case is None:
        return f"{found} | | | {flags} | {'WRONG: named with confidence' if sure else 'uncertain'} |"
    marks = {v.level: v for v in case.annotation.vertebrae}
    matches = [
        match_level(n, v.centroid_lps_mm, levels, limits.min_level_confidence) for n, v in marks.items() if n != "S1"
    ]
    cells = [
        next(f"{m.found} {m.confidence:.2f} ({m.error_mm:.1f} mm)" for m in matches if m.marked == n)
        for n in ("L1", "L2")
    ]
    wrong = [f"{m.marked} called {m.found} {m.confidence:.2f}" for m in matches if m.verdict == "wrong"]
    wanted = {m.verdict for m in matches if m.marked in ("L1", "L2")}
    verdict = "WRONG: " + ", ".join(wrong) if wrong else " and ".join(sorted(wanted))
    return f"{found} | {cells[0]} | {cells[1]} | {flags} | {verdict} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=MODELS)
    networks = networks_from(parser.parse_args(arguments).models)
    print("| series | found, lowest confidence | L1 | L2 | flags | verdict |\n|---|---|---|---|---|---|")
    for name in ("acrin-flt-001", "crlm-1004", "abdomen-3mm"):
        case = load_case(name)
        for title, make in degraded(case).items():
            print(f"| {name}: {title} | {describe(make(), networks, case)}", flush=True)
    for title, make in spineless().items():
        print(f"| {title} | {describe(make(), networks, None)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
