"""How often would rudimentary 12th ribs, which nobody sees, shift the names of a chest or abdomen without sacrum?

    python -m tests.studies.rudimentary_ribs [--spines 300]

Spines are drawn as evidence, without images: sizes, distances of neighbours and reaches of ribs from the chain's own
distributions, four fields of view without first rib and sacrum. Counted are names of L1 at 0.90 or more, by which of
the lowest two ribs that are seen has been measured, and by what the network thinks: nothing, the truth, or one off.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from analysis.segmentation import SegmentationLimits
from analysis.spine_chain import name_levels
from analysis.spine_evidence import RIB_REACH_MM, ChainLimits, VertebraEvidence
from tests.spine_builders import chain_of, levels_between

FIELDS = (("T9", "L3"), ("T7", "L2"), ("T5", "L2"), ("T8", "L1"))
DISTANCE_SD = 0.04  # of the distance of neighbours, over what the size says


def draw_spine(
    measured: tuple[str, ...], rudimentary: bool, shift: int | None, rng: np.random.Generator
) -> tuple[tuple[VertebraEvidence, ...], tuple[str, ...]]:
    """Evidence and true names of one spine; measured : the ribs whose reach is known."""
    size = float(np.exp(rng.normal(0.0, ChainLimits().scale_log_sd)))
    names = levels_between(*FIELDS[int(rng.integers(len(FIELDS)))])
    reaches_mm = {level: max(20.0, float(rng.normal(*RIB_REACH_MM[level]))) * size for level in measured}
    ribless = ("T12",) if rudimentary else ()
    usual = chain_of(names, ribless=ribless, network_shift=shift, reaches_mm=reaches_mm)
    place_mm, spine = usual[0].centroid_mm, [usual[0]]
    for above, below in zip(usual[:-1], usual[1:], strict=True):
        place_mm = place_mm + (below.centroid_mm - above.centroid_mm) * size * rng.normal(1.0, DISTANCE_SD)
        spine.append(replace(below, centroid_mm=place_mm))
    return tuple(spine), names


def named_l1(spine: tuple[VertebraEvidence, ...], names: tuple[str, ...]) -> str:
    """Whether L1 is named rightly with confidence, wrongly with confidence, or not with confidence."""
    chain, place = name_levels(spine), names.index("L1")
    if chain.confidences[place] < SegmentationLimits().min_level_confidence:
        return "uncertain"
    return "right" if chain.names[place] == "L1" else "wrong"


def rows(count: int) -> Iterator[str]:
    cases = ((False, ("T12",)), (False, ("T11",)), (True, ("T11",)), (True, ("T10",)))
    opinions = (("none", None), ("right", 0), ("one too high", -1), ("one too low", 1))
    for rudimentary, measured in cases:
        for opinion, shift in opinions:
            rng = np.random.default_rng(0)
            found = [named_l1(*draw_spine(measured, rudimentary, shift, rng)) for _ in range(count)]
            counts = " | ".join(str(found.count(verdict)) for verdict in ("right", "uncertain", "wrong"))
            yield f"| {'rudimentary' if rudimentary else 'usual'} | {measured[0]} | {opinion} | {counts} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--spines", type=int, default=300)
    print("| 12th ribs | measured | network's opinion | right | uncertain | wrong |\n|---|---|---|---|---|---|")
    for line in rows(parser.parse_args().spines):
        print(line, flush=True)
