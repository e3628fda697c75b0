"""Which vertebra is which: a hidden Markov chain along the spine, evaluated over all its paths.

Vertebrae come in order from head to feet. Each carries evidence: what the network thinks of its level, whether a rib
touches it, whether the sacrum begins below it, how far the next one is. The forward-backward algorithm (Rabiner,
Proc. IEEE 77, 1989) gives the probability of every level for every vertebra from all of it together; Viterbi's path
gives the names. Variants (11 or 13 pairs of ribs, 4 or 6 lumbar vertebrae) are ordinary, rare transitions, so that
ribs and sacrum that disagree pull the probability apart instead of being overruled.
"""

from dataclasses import dataclass, field

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
_ANY_REACH_PER_MM = 1.0 / 250.0


@dataclass(frozen=True, slots=True)
class ChainLimits:
    """Prior knowledge of the chain; every figure is a probability unless its name has a unit.

    Prevalence of variants: 11 or 13 pairs of ribs 1 to 2 % each, 4 or 6 lumbar vertebrae 3 to 5 % each (Carrino et al.,
    Radiology 2011; Thawait et al. 2012). `network_weight` tempers the network: its errors are the same for all
    vertebrae of a scan, so a chain of n vertebrae counts as at most `network_votes` independent ones. `regular_step`:
    distance of neighbours over the one expected for their names and the person's size; outside of it a vertebra was
    found twice or missed (two fractured neighbours reach 0.65), and no count goes across it.
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


@dataclass(frozen=True, slots=True, eq=False)
class VertebraEvidence:
    """What is known of one vertebra, before names.

    centroid_mm : (3,), along canonical axes (head, back, left), mm
    network_levels : probability per level of the network: cervical, T1..T12, L1..L5, L6 (19 values)
    rib_contact : 0..1, None where the sides are not in the volume
    rib_length_mm : reach of its longer rib, None where it has none or its end is not in view
    sacrum_below : 0..1, None where the volume ends before a sacrum could be seen
    """

    centroid_mm: NDArray[np.float64]
    network_levels: NDArray[np.float64]
    rib_contact: float | None = None
    rib_length_mm: float | None = None
    sacrum_below: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NamedChain:
    """The answer: names along the best path, their probability, and what they rest on.

    anchors_disagree : last rib and sacrum are both in view, but not five lumbar vertebrae apart
    probabilities : (vertebrae, levels)
    variant : probability of any numbering variant (13 or 11 ribs, 4 or 6 lumbar vertebrae)
    """

    names: tuple[str, ...]
    confidences: tuple[float, ...]
    anchors: tuple[str, ...]
    anchors_disagree: bool
    variant: float
    probabilities: NDArray[np.float64] = field(repr=False)


def name_levels(vertebrae: tuple[VertebraEvidence, ...], limits: ChainLimits | None = None) -> NamedChain:
    """Names and probabilities for vertebrae in order from head to feet (at least one)."""
    limits = limits or ChainLimits()
    unary = np.array([_log_unary(vertebra, vertebrae, limits) for vertebra in vertebrae])
    ends = _log_end(vertebrae[-1], limits)
    scales = np.exp(np.linspace(-2, 2, 9) * limits.scale_log_sd)
    solved = [
        _solve(unary + log_reach(vertebrae, scale, limits), _log_steps(vertebrae, scale, limits), ends)
        for scale in scales
    ]
    evidence = np.array([s.log_evidence for s in solved]) - 0.5 * np.linspace(-2, 2, 9) ** 2
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    probabilities = np.einsum("s,svl->vl", weights, np.array([s.probabilities for s in solved]))
    variant = float(weights @ np.array([s.variant for s in solved]))
    path = solved[int(np.argmax(evidence))].path
    return _named(vertebrae, path, probabilities, variant, limits)


def _named(
    vertebrae: tuple[VertebraEvidence, ...],
    path: tuple[int, ...],
    probabilities: NDArray[np.float64],
    variant: float,
    limits: ChainLimits,
) -> NamedChain:
    anchors = find_anchors(vertebrae)
    names = tuple(LEVELS[level] for level in path)
    broken = broken_counts(vertebrae, path, limits)
    disagree = anchors_disagree(vertebrae, names) or any(path[i + 1] >= INDEX["T11"] for i in broken)
    counted = tuple(anchor for anchor in anchors if not (anchor == "first rib" and broken))
    ceiling = _ceiling(counted, disagree, _last_reach_mm(vertebrae) is not None, limits)
    confidences = tuple(float(min(probabilities[i, level], ceiling)) for i, level in enumerate(path))
    return NamedChain(names, confidences, anchors, disagree, variant, probabilities)


def _ceiling(anchors: tuple[str, ...], disagree: bool, reach_known: bool, limits: ChainLimits) -> float:
    """The highest confidence that the landmarks in view allow. One end of the rib cage alone is not enough: with
    rudimentary 12th ribs, which a network overlooks, the last rib seen is the 11th and every name one level too low.
    When it is known how far the last rib reaches, the chain has weighed that already.
    """
    if not anchors:
        return limits.no_anchor_confidence
    if disagree:
        return limits.disagreement_confidence
    alone = anchors == ("first rib",) or (anchors == ("last rib",) and not reach_known)
    return limits.ribs_alone_confidence if alone else 1.0


def broken_counts(
    vertebrae: tuple[VertebraEvidence, ...], path: tuple[int, ...], limits: ChainLimits
) -> tuple[int, ...]:
    """Indices of the vertebrae whose distance to the next below does not fit their names."""
    centroids = [vertebra.centroid_mm for vertebra in vertebrae]
    distances = [float(np.linalg.norm(b - a)) for a, b in zip(centroids[:-1], centroids[1:], strict=True)]
    expected = [_way_mm(a, b) for a, b in zip(path[:-1], path[1:], strict=True)]
    ratios = np.array(distances) / np.array(expected, dtype=np.float64)
    size = float(np.median(ratios)) if len(ratios) > 3 else 1.0
    low, high = limits.regular_step
    return tuple(int(i) for i in np.flatnonzero((ratios < low * size) | (ratios > high * size)))


def _way_mm(above: int, below: int) -> float:
    """Typical distance between two levels; a 13th thoracic vertebra lies on the way only where it is named."""
    passed = [level for level in range(above, max(below, above + 1)) if level != INDEX["T13"] or level == above]
    return float(sum(SPACING_MM[level] for level in passed))


def _last_reach_mm(vertebrae: tuple[VertebraEvidence, ...]) -> float | None:
    last = last_rib(vertebrae)
    return None if last is None else vertebrae[last].rib_length_mm


# --- evidence -------------------------------------------------------------------------------------------------------


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


def _log_unary(
    vertebra: VertebraEvidence, vertebrae: tuple[VertebraEvidence, ...], limits: ChainLimits
) -> NDArray[np.float64]:
    votes = limits.network_weight * min(1.0, limits.network_votes / len(vertebrae))
    return votes * _log_network(vertebra.network_levels, limits) + _log_rib(vertebra.rib_contact, limits)


def _log_network(network_levels: NDArray[np.float64], limits: ChainLimits) -> NDArray[np.float64]:
    """The network's 19 classes on the chain's 20 levels; T13 has no class and borrows from T12 and L1."""
    thirteenth = (network_levels[12] + network_levels[13]) / 2
    levels = np.concatenate([network_levels[:13], [thirteenth], network_levels[13:]])
    result: NDArray[np.float64] = np.log(levels + limits.network_floor)
    return result


def rib_probability(limits: ChainLimits) -> NDArray[np.float64]:
    """P(a rib is seen to touch | level)."""
    seen = np.full(len(LEVELS), limits.rib_seen_elsewhere)
    seen[INDEX["T1"] : INDEX["T12"]] = limits.rib_seen_thoracic
    seen[INDEX["T12"]] = seen[INDEX["T13"]] = limits.rib_seen_t12
    seen[INDEX["L1"]] = limits.rib_seen_l1
    return seen


def _log_rib(contact: float | None, limits: ChainLimits) -> NDArray[np.float64]:
    if contact is None:
        return np.zeros(len(LEVELS))
    seen = rib_probability(limits)
    result: NDArray[np.float64] = np.log(contact * seen + (1.0 - contact) * (1.0 - seen))
    return result


def log_reach(vertebrae: tuple[VertebraEvidence, ...], scale: float, limits: ChainLimits) -> NDArray[np.float64]:
    """log P(length of the rib | level) of each vertebra, in a person of a given size; (vertebrae, levels)."""
    usual = np.full((len(vertebrae), len(LEVELS)), _ANY_REACH_PER_MM)
    for i, vertebra in enumerate(vertebrae):
        if vertebra.rib_length_mm is None:
            continue
        for level, (mean_mm, sd_mm) in RIB_REACH_MM.items():
            z = (vertebra.rib_length_mm / scale - mean_mm) / sd_mm
            usual[i, INDEX[level]] = np.exp(-0.5 * z**2) / (sd_mm * np.sqrt(2 * np.pi))
    result: NDArray[np.float64] = np.log(
        (1 - limits.rib_reach_wrong) * usual + limits.rib_reach_wrong * _ANY_REACH_PER_MM
    )
    return result


def _log_end(last: VertebraEvidence, limits: ChainLimits) -> NDArray[np.float64]:
    """Evidence on the level of the lowest vertebra from what lies below it."""
    if last.sacrum_below is None:
        return np.zeros(len(LEVELS))
    above_sacrum = np.full(len(LEVELS), limits.sacrum_false)
    above_sacrum[INDEX["L4"]] = limits.four_lumbar
    above_sacrum[INDEX["L5"]] = above_sacrum[INDEX["L6"]] = 1.0 - limits.sacrum_false
    s = last.sacrum_below
    # Without a sacrum although there is room for one, the chain was cut or a vertebra was missed: half a word only.
    result: NDArray[np.float64] = np.log(s * above_sacrum + (1.0 - s) * np.sqrt(1.0 - 0.9 * above_sacrum))
    return result


# --- transitions ----------------------------------------------------------------------------------------------------


def single_step(limits: ChainLimits) -> NDArray[np.float64]:
    """P(next level below | level) when no vertebra is missed; rows sum to at most 1."""
    step = np.zeros((len(LEVELS), len(LEVELS)))
    for i in range(len(LEVELS) - 1):
        step[i, i + 1] = 1.0
    c, t11, t12, t13, l1 = (INDEX[name] for name in ("C", "T11", "T12", "T13", "L1"))
    step[c, c] = step[c, c + 1] = 0.5
    step[t11, t12], step[t11, l1] = 1.0 - limits.eleven_ribs, limits.eleven_ribs
    step[t12, t13], step[t12, l1] = limits.thirteen_ribs, 1.0 - limits.thirteen_ribs
    step[t13, l1] = 1.0
    step[INDEX["L5"], INDEX["L6"]] = limits.six_lumbar
    return step


def _spacing_likelihood(
    distance_mm: float, expected_mm: NDArray[np.float64], limits: ChainLimits
) -> NDArray[np.float64]:
    """Tempered density of a distance around the expected ones; heavy tails, for a fracture is no other level."""
    z = np.log(distance_mm / expected_mm) / limits.spacing_log_sd
    result: NDArray[np.float64] = (np.exp(-0.5 * z**2) + 0.02) ** limits.spacing_weight
    return result


def _log_steps(vertebrae: tuple[VertebraEvidence, ...], scale: float, limits: ChainLimits) -> list[NDArray[np.float64]]:
    """Per pair of neighbours: log of the transition matrix, a missed vertebra between them included."""
    one = single_step(limits)
    two = one @ one
    expected = np.array(SPACING_MM, dtype=np.float64) * scale
    steps = []
    for above, below in zip(vertebrae[:-1], vertebrae[1:], strict=True):
        distance = float(np.linalg.norm(below.centroid_mm - above.centroid_mm))
        direct = one * _spacing_likelihood(distance, expected, limits)[:, None]
        skipping = two * _spacing_likelihood(distance, 2.05 * expected, limits)[:, None]
        steps.append(np.log((1 - limits.missed_vertebra) * direct + limits.missed_vertebra * skipping + 1e-12))
    return steps


# --- inference ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    probabilities: NDArray[np.float64]
    path: tuple[int, ...]
    log_evidence: float
    variant: float


def _log_sum(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    top = values.max(axis=axis, keepdims=True)
    result: NDArray[np.float64] = np.squeeze(top, axis) + np.log(np.exp(values - top).sum(axis=axis))
    return result


def _log_start() -> NDArray[np.float64]:
    """The uppermost vertebra may be any; a chain seldom begins at a variant."""
    start = np.zeros(len(LEVELS))
    start[[INDEX[name] for name in VARIANTS]] = np.log(0.01)
    return start


def _solve(unary: NDArray[np.float64], steps: list[NDArray[np.float64]], ends: NDArray[np.float64]) -> _Solved:
    """Forward-backward and Viterbi in the log domain."""
    forward = [_log_start() + unary[0]]
    best, back = [forward[0]], []
    for step, now in zip(steps, unary[1:], strict=True):
        forward.append(_log_sum(forward[-1][:, None] + step, 0) + now)
        scores = best[-1][:, None] + step
        back.append(scores.argmax(axis=0))
        best.append(scores.max(axis=0) + now)
    backward = [ends]
    for step, now in zip(steps[::-1], unary[:0:-1], strict=True):
        backward.append(_log_sum(step + (now + backward[-1])[None, :], 1))
    joint = np.array(forward) + np.array(backward[::-1])
    evidence = float(_log_sum(joint[-1], 0))
    probabilities = np.exp(joint - evidence)
    path = _trace(back, int((best[-1] + ends).argmax()))
    return _Solved(
        probabilities, path, evidence, _variant_probability(probabilities, forward, steps, unary, backward[::-1])
    )


def _trace(back: list[NDArray[np.intp]], last: int) -> tuple[int, ...]:
    path = [last]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return tuple(reversed(path))


def _variant_probability(
    probabilities: NDArray[np.float64],
    forward: list[NDArray[np.float64]],
    steps: list[NDArray[np.float64]],
    unary: NDArray[np.float64],
    backward: list[NDArray[np.float64]],
) -> float:
    """Probability that the chain holds T13, L6, a step T11 -> L1, or ends above the sacrum at L4 by count."""
    present = max(float(probabilities[:, INDEX[name]].max()) for name in VARIANTS)
    evidence = float(_log_sum(forward[-1] + backward[-1], 0))
    t11, l1 = INDEX["T11"], INDEX["L1"]
    crossing = 0.0
    for i, step in enumerate(steps):
        log_joint = forward[i][t11] + step[t11, l1] + unary[i + 1][l1] + backward[i + 1][l1] - evidence
        crossing = max(crossing, float(np.exp(min(log_joint, 0.0))))
    return min(1.0, present + crossing)
