"""What is known of the vertebrae before they have names: evidence of each, landmarks in view, prior knowledge.

Landmarks tie the count to the body: first rib, last rib, sacrum. A step between neighbours that does not fit their
names breaks the count across it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# From head to feet. "C" stands for all cervical vertebrae.
LEVELS = ("C", *(f"T{i}" for i in range(1, 14)), *(f"L{i}" for i in range(1, 7)))
INDEX = {name: i for i, name in enumerate(LEVELS)}
VARIANTS = ("T13", "L6")

# Distance to the next centroid below in mm, median of six real spines of 160 to 185 cm; T12, T13 -> L1 alike.
SPACING_MM = (17, 20, 20, 20, 20.5, 21, 21.5, 22, 22.5, 24, 26, 28.5, 31.5, 32, 34.5, 36.5, 37, 37, 36, 36)


# Rib contact above and below which a rib counts as seen and as absent, for the anchors; between them it is unclear.
RIB_PRESENT, RIB_ABSENT = 0.65, 0.35

# Reach of a rib from the side of its vertebra to its tip (`analysis.rib_length`): mean and SD in mm at the scale of
# `SPACING_MM`. Measured on the two label maps and the real volumes (11th 127 to 176, 12th 60 to 112), with the wide
# spread of the 12th that anatomy books give; a rib at L1 is a stub or a transverse process taken for one.
RIB_REACH_MM = {
    "T10": (180.0, 28.0),
    "T11": (145.0, 25.0),
    "T12": (85.0, 30.0),
    "T13": (45.0, 20.0),
    "L1": (30.0, 15.0),
}

# Density per mm of a reach that says nothing: all other levels, and measurements that went wrong.
ANY_REACH_PER_MM = 1.0 / 250.0


@dataclass(frozen=True, slots=True)
class ChainLimits:
    """Prior knowledge of the chain; every figure is a probability unless its name has a unit.

    Prevalence of variants: 11 or 13 pairs of ribs 1 to 2 % each, 4 or 6 lumbar vertebrae 3 to 5 % each (Carrino et al.,
    Radiology 2011; Thawait et al. 2012). `network_weight` tempers the network: its errors are the same for all
    vertebrae of a scan, so a chain of n vertebrae counts as at most `network_votes` independent ones. `regular_step`:
    distance of neighbours over the one expected for their names and the person's size; outside of it a vertebra was
    found twice or missed (two fractured neighbours reach 0.65), and no count goes across it. `thickest_slice_mm`: the
    discs about T12 and L1 are 5 to 8 mm high; in slices of 8.5 mm a body was found twice in such a way that no step
    was odd enough to tell. `eleventh_reach_mm`: where the tip of the last rib is lost, a rib above it that is shorter
    is an 11th; with rudimentary 12th ribs names are then wrong as seldom as where the last rib itself is measured
    (tests.studies.rudimentary_ribs). `reach_against`: how many times likelier a reach may be for the 11th than for the
    12th rib, or the other way round, before the name that it got stands alone against it (the same study).
    """

    eleven_ribs: float = 0.015
    thirteen_ribs: float = 0.012
    four_lumbar: float = 0.03
    six_lumbar: float = 0.03
    missed_vertebra: float = 0.01
    rib_seen_thoracic: float = 0.97
    rib_seen_t12: float = 0.88
    rib_seen_l1: float = 0.04
    rib_seen_elsewhere: float = 0.01
    rib_reach_wrong: float = 0.05
    sacrum_false: float = 0.005
    network_weight: float = 0.6
    network_votes: float = 2.5
    network_floor: float = 0.02
    spacing_log_sd: float = 0.12
    spacing_weight: float = 0.5
    scale_log_sd: float = 0.08
    no_anchor_confidence: float = 0.7
    disagreement_confidence: float = 0.8
    ribs_alone_confidence: float = 0.85
    regular_step: tuple[float, float] = (0.62, 1.5)
    thickest_slice_mm: float = 6.0
    eleventh_reach_mm: float = 135.0
    reach_against: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class VertebraEvidence:
    """What is known of one vertebra, before names.

    centroid_mm : (3,), along canonical axes (head, back, left), mm
    network_levels : probability per level of the network: cervical, T1..T12, L1..L5, L6 (19 values)
    rib_contact : 0..1, None where the sides are not in the volume
    rib_length_mm : reach of its longer rib, None where it has none or its end is not in view
    sacrum_below : 0..1, None where the volume ends before a sacrum could be seen
    cut : the body reaches the edge of the series, so that the centroid is that of what is left of it
    """

    centroid_mm: NDArray[np.float64]
    network_levels: NDArray[np.float64]
    rib_contact: float | None = None
    rib_length_mm: float | None = None
    sacrum_below: float | None = None
    cut: bool = False


def find_anchors(vertebrae: tuple[VertebraEvidence, ...]) -> tuple[str, ...]:
    """Landmarks in view that tie the chain to the body, among "first rib", "last rib", "sacrum"."""
    ribs = [vertebra.rib_contact for vertebra in vertebrae]
    anchors = []
    if _first_rib_in_view(ribs):
        anchors.append("first rib")
    if last_rib(vertebrae) is not None:
        anchors.append("last rib")
    if (vertebrae[-1].sacrum_below or 0.0) >= 0.5:
        anchors.append("sacrum")
    return tuple(anchors)


def _first_rib_in_view(ribs: list[float | None]) -> bool:
    """Whether the chain begins with up to four ribless vertebrae (cervical ones), next to one that surely has a rib."""
    above = [contact for contact in ribs[:5] if contact is not None]
    ribless = next((i for i, contact in enumerate(above) if contact >= RIB_ABSENT), len(above))
    return 0 < ribless < len(above) and above[ribless] > RIB_PRESENT


def last_rib(vertebrae: tuple[VertebraEvidence, ...]) -> int | None:
    """Index of the lowest vertebra with a rib when the next below is seen to have none, else None."""
    ribs = [vertebra.rib_contact for vertebra in vertebrae]
    for i in range(len(ribs) - 1, 0, -1):
        above, below = ribs[i - 1], ribs[i]
        if above is not None and below is not None and above > RIB_PRESENT and below < RIB_ABSENT:
            return i - 1
    return None


def anchors_disagree(vertebrae: tuple[VertebraEvidence, ...], names: tuple[str, ...]) -> bool:
    """Last rib and sacrum both in view, and not five lumbar vertebrae between them by count of the found ones."""
    last = last_rib(vertebrae)
    if last is None or (vertebrae[-1].sacrum_below or 0.0) < 0.5:
        return False
    skipped = sum(
        max(0, INDEX[b] - INDEX[a] - 1) for a, b in zip(names[last:-1], names[last + 1 :], strict=True)
        if not (a == "T12" and b == "L1") and not (a == "T11" and b == "L1")
    )  # fmt: skip
    return len(vertebrae) - 1 - last + skipped != 5


def broken_counts(
    vertebrae: tuple[VertebraEvidence, ...], path: tuple[int, ...], limits: ChainLimits
) -> tuple[int, ...]:
    """Indices of the vertebrae whose distance to the next below does not fit their names.

    The step to a cut vertebra at either end says nothing: its centroid is too near.
    """
    centroids = [vertebra.centroid_mm for vertebra in vertebrae]
    distances = [float(np.linalg.norm(b - a)) for a, b in zip(centroids[:-1], centroids[1:], strict=True)]
    expected = [_way_mm(a, b) for a, b in zip(path[:-1], path[1:], strict=True)]
    ratios = np.array(distances) / np.array(expected, dtype=np.float64)
    size = float(np.median(ratios)) if len(ratios) > 3 else 1.0
    low, high = limits.regular_step
    odd = np.flatnonzero((ratios < low * size) | (ratios > high * size))
    return tuple(int(i) for i in odd if not (vertebrae[i].cut or vertebrae[i + 1].cut))


def _way_mm(above: int, below: int) -> float:
    """Typical distance between two levels; a 13th thoracic vertebra lies on the way only where it is named."""
    passed = [level for level in range(above, max(below, above + 1)) if level != INDEX["T13"] or level == above]
    return float(sum(SPACING_MM[level] for level in passed))


def last_rib_fits(
    vertebrae: tuple[VertebraEvidence, ...], names: tuple[str, ...], scale: float, limits: ChainLimits
) -> bool:
    """Whether it is known how far the last rib reaches, in a person of this size, and that allows its name.

    Where that is not known, the rib above it may be too short for a 10th.
    """
    last = last_rib(vertebrae)
    if last is None:
        return False
    reach_mm = vertebrae[last].rib_length_mm
    if reach_mm is not None:
        density = {level: reach_density(reach_mm / scale, level) for level in ("T11", "T12")}
        return density.get(names[last], np.inf) * limits.reach_against >= max(density.values())
    above_mm = vertebrae[last - 1].rib_length_mm if last > 0 else None
    return above_mm is not None and above_mm < limits.eleventh_reach_mm


def reach_density(reach_mm: float, level: str) -> float:
    """Density per mm of a rib's reach, at the scale of `SPACING_MM`, for a level of `RIB_REACH_MM`."""
    mean_mm, sd_mm = RIB_REACH_MM[level]
    return float(np.exp(-0.5 * ((reach_mm - mean_mm) / sd_mm) ** 2) / (sd_mm * np.sqrt(2 * np.pi)))
