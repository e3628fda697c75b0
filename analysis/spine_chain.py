"""Which vertebra is which: a hidden Markov chain along the spine, evaluated over all its paths.

Vertebrae come in order from head to feet. Each carries evidence: what the network thinks of its level, whether a rib
touches it, whether the sacrum begins below it, how far the next one is. The forward-backward algorithm (Rabiner,
Proc. IEEE 77, 1989) gives the probability of every level for every vertebra from all of it together; Viterbi's path
gives the names. Variants (11 or 13 pairs of ribs, 4 or 6 lumbar vertebrae) are ordinary, rare transitions, so that
ribs and sacrum that disagree pull the probability apart instead of being overruled.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from analysis.spine_evidence import (
    ANY_REACH_PER_MM,
    INDEX,
    LEVELS,
    RIB_REACH_MM,
    SPACING_MM,
    VARIANTS,
    ChainLimits,
    VertebraEvidence,
    anchors_disagree,
    broken_counts,
    find_anchors,
    last_rib_fits,
    reach_density,
)


@dataclass(frozen=True, slots=True, eq=False)
class NamedChain:
    """The answer: names along the best path, their probability, and what they rest on.

    anchors_disagree : last rib and sacrum are both in view, but not five lumbar vertebrae apart
    probabilities : (vertebrae, levels)
    variant : probability of any numbering variant (13 or 11 ribs, 4 or 6 lumbar vertebrae)
    discs_resolved : the slices are thin enough to tell neighbours apart
    """

    names: tuple[str, ...]
    confidences: tuple[float, ...]
    anchors: tuple[str, ...]
    anchors_disagree: bool
    variant: float
    probabilities: NDArray[np.float64] = field(repr=False)
    discs_resolved: bool


def name_levels(
    vertebrae: tuple[VertebraEvidence, ...], limits: ChainLimits | None = None, slice_mm: float = 1.0
) -> NamedChain:
    """Names and probabilities for vertebrae in order from head to feet (at least one).

    slice_mm : spacing of the voxels along the spine
    """
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
    best = int(np.argmax(evidence))
    answer = replace(solved[best], probabilities=probabilities, variant=variant)
    return _named(vertebrae, answer, float(scales[best]), limits, slice_mm <= limits.thickest_slice_mm)


def _named(
    vertebrae: tuple[VertebraEvidence, ...], answer: "_Solved", scale: float, limits: ChainLimits, discs_resolved: bool
) -> NamedChain:
    path, probabilities = answer.path, answer.probabilities
    anchors = find_anchors(vertebrae)
    names = tuple(LEVELS[level] for level in path)
    broken = broken_counts(vertebrae, path, limits)
    disagree = anchors_disagree(vertebrae, names) or any(path[i + 1] >= INDEX["T11"] for i in broken)
    counted = tuple(anchor for anchor in anchors if not (anchor == "first rib" and broken))
    fits = last_rib_fits(vertebrae, names, scale, limits)
    ceiling = _ceiling(counted, disagree or not discs_resolved, fits, limits)
    # the landmarks that are left lie below a break: nothing ties what is above it to them
    above_break = np.arange(len(path)) <= max(broken, default=-1)
    ceilings = np.where(above_break, min(ceiling, limits.no_anchor_confidence), ceiling)
    confidences = tuple(float(min(probabilities[i, level], ceilings[i])) for i, level in enumerate(path))
    return NamedChain(names, confidences, anchors, disagree, answer.variant, probabilities, discs_resolved)


def _ceiling(anchors: tuple[str, ...], in_doubt: bool, reach_fits: bool, limits: ChainLimits) -> float:
    """The highest confidence that the landmarks in view allow. One end of the rib cage alone is not enough: with
    rudimentary 12th ribs, which a network overlooks, the last rib seen is the 11th and every name one level too low.
    When it is known how far the last ribs reach, and that does not speak against the names, the chain has weighed that
    already. The count is in doubt where landmarks disagree and where slices are thicker than discs.
    """
    if not anchors:
        return limits.no_anchor_confidence
    if in_doubt:
        return limits.disagreement_confidence
    alone = anchors == ("first rib",) or (anchors == ("last rib",) and not reach_fits)
    return limits.ribs_alone_confidence if alone else 1.0


# --- evidence -------------------------------------------------------------------------------------------------------


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
    usual = np.full((len(vertebrae), len(LEVELS)), ANY_REACH_PER_MM)
    for i, vertebra in enumerate(vertebrae):
        if vertebra.rib_length_mm is None:
            continue
        for level in RIB_REACH_MM:
            usual[i, INDEX[level]] = reach_density(vertebra.rib_length_mm / scale, level)
    result: NDArray[np.float64] = np.log(
        (1 - limits.rib_reach_wrong) * usual + limits.rib_reach_wrong * ANY_REACH_PER_MM
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
