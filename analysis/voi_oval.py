"""The oval in the cancellous section: as large as the margin lets it be, and forward of the basivertebral vein."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import VoiError
from analysis.voi_rule import VoiRule
from analysis.voi_section import FINE_MM, Section


@dataclass(frozen=True, slots=True)
class Oval:
    """An ellipse in the mid-plane: centre (forward, lateral) and semi-axes (lateral, forward), mm."""

    forward_mm: float
    lateral_mm: float
    semi_lateral_mm: float
    semi_forward_mm: float

    @property
    def area_mm2(self) -> float:
        return float(np.pi * self.semi_lateral_mm * self.semi_forward_mm)


def fit_oval(section: Section, rule: VoiRule, level: str) -> Oval:
    """The oval of the target area, as far forward as the rule wants and the section allows.

    Raises
    ------
    VoiError
        VOI_COVERAGE when even the largest oval covers less than the rule's minimum.
    """
    oval = _largest_oval(_most_forward(_ovals_by_position(section), section, rule), section.border_mm)
    if oval.area_mm2 < rule.min_fraction * section.area_mm2:
        covered = oval.area_mm2 / section.area_mm2
        text = f"the largest oval in {level} covers {covered:.3f} of the cancellous section"
        raise VoiError("VOI_COVERAGE", f"{text}; expected at least {rule.min_fraction}")
    wanted = min(rule.target_fraction, rule.max_fraction)
    return _scaled(oval, min(1.0, float(np.sqrt(wanted * section.area_mm2 / oval.area_mm2))))


def _ovals_by_position(section: Section) -> NDArray[np.float64]:
    """The largest oval at each position along the front-back direction.

    Returns
    -------
    (n, 4) : forward mm (ascending in steps of 0.5 mm), lateral mm, aspect, area mm2

    Lateral position and aspect are means over the nearly largest ovals, which makes the choice continuous: a sub-voxel
    shift of the grid moves the oval by a fraction of a millimetre, not by a step.
    """
    forward, lateral = section.middle_mm
    sideways, aspect = np.meshgrid(np.arange(lateral - 4, lateral + 5, 1.0), np.arange(1.0, 1.81, 0.1), indexing="ij")
    found = []
    for position in np.arange(forward - 6, forward + 8, FINE_MM):
        candidates = np.stack([np.full(aspect.size, position), sideways.ravel(), aspect.ravel()], axis=1)
        areas = _largest_area_mm2(candidates, section.border_mm)
        near = np.exp((areas / areas.max() - 1.0) / 0.01)
        best = near @ candidates / near.sum()
        found.append([*best, float(_largest_area_mm2(best[None], section.border_mm)[0])])
    return np.array(found)


def _most_forward(ovals: NDArray[np.float64], section: Section, rule: VoiRule) -> tuple[float, float, float]:
    """Forward, lateral and aspect of the oval to use.

    The rear part of the section, where the basivertebral vein enters, is left by moving forward by up to
    `vein_shift_fraction` of the section's depth from its middle, as far as the largest oval there still covers
    `shifted_fraction`; without room for that it stays where the oval is largest.
    """
    rear, front = section.extent_mm
    wanted = (rear + front) / 2 + rule.vein_shift_fraction * (front - rear)
    best = int(np.argmax(ovals[:, 3]))
    after = ovals[best:]
    last = _crossing(after[:, 0], after[:, 3], rule.shifted_fraction * section.area_mm2)
    forward = max(min(wanted, last), float(ovals[best, 0]))
    lateral, aspect = (float(np.interp(forward, ovals[:, 0], ovals[:, column])) for column in (1, 2))
    return forward, lateral, aspect


def _crossing(forward: NDArray[np.float64], area: NDArray[np.float64], limit: float) -> float:
    """Where the area falls below the limit, interpolated; the first position when it never reaches it."""
    below = np.flatnonzero(area < limit)
    if len(below) == 0:
        return float(forward[-1])
    first = int(below[0])
    if first == 0:
        return float(forward[0])
    return float(np.interp(limit, [area[first], area[first - 1]], [forward[first], forward[first - 1]]))


def _largest_area_mm2(candidates: NDArray[np.float64], border: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of the largest ellipse at each (forward, lateral, aspect) that contains no border point."""
    forward, lateral, aspect = (column[:, None] for column in candidates.T)
    squared = (border[:, 1] - lateral) ** 2 / aspect + (border[:, 0] - forward) ** 2 * aspect
    return np.asarray(np.pi * squared.min(axis=1))


def _largest_oval(centre_and_aspect: tuple[float, float, float], border: NDArray[np.float64]) -> Oval:
    forward, lateral, aspect = centre_and_aspect
    area = float(_largest_area_mm2(np.array([centre_and_aspect]), border)[0])
    return Oval(forward, lateral, np.sqrt(area * aspect / np.pi), np.sqrt(area / aspect / np.pi))


def _scaled(oval: Oval, scale: float) -> Oval:
    return Oval(oval.forward_mm, oval.lateral_mm, oval.semi_lateral_mm * scale, oval.semi_forward_mm * scale)
