"""Search a few thick sections of a volume for the rods of one phantom and say what was found."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.results import PhantomSpec
from analysis.rod_candidates import Section, find_circles, section
from analysis.rod_pattern import Placement, find_chains, place_certificate

SEED_MM = 20.0                                   # thickness of a section: 5 degrees of tilt smear it by 1.7 mm
CONVINCING_HU = 15.0                             # residual that ends the search
POSSIBLE_HU = 45.0
MOST_SECTIONS = 7


@dataclass(frozen=True, slots=True, eq=False)
class Find:
    """The most phantom-like row of circles. `explanation` says in words what was found."""

    section: Section
    placement: Placement | None
    is_phantom: bool
    explanation: str


def find_phantom(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], spec: PhantomSpec, sections: int = MOST_SECTIONS
) -> Find:
    """Look from the middle of the volume outwards until the rods are clear; hu is (slices, rows, columns)."""
    best: Find | None = None
    for slices in _sections(len(hu), spacing_mm[0], sections):
        find = _search(section(hu, spacing_mm, slices), spec)
        if best is None or _rank(find) < _rank(best):
            best = find
        if best.is_phantom and best.placement is not None and _cost(best.placement) < CONVINCING_HU:
            break
    assert best is not None
    return best


def _sections(n_slices: int, spacing_mm: float, most: int) -> list[slice]:
    """Sections of about 20 mm spread over the volume, the middle one first."""
    thick = min(n_slices, max(1, round(SEED_MM / spacing_mm)))
    count = int(np.clip(n_slices // thick, 1, most))
    starts = np.linspace(0, n_slices - thick, count).round().astype(int) if count > 1 else [(n_slices - thick) // 2]
    middle = (n_slices - thick) / 2
    return [slice(int(s), int(s) + thick) for s in sorted(starts, key=lambda s: abs(s - middle))]


def _search(image: Section, spec: PhantomSpec) -> Find:
    circles = find_circles(image)
    chains = find_chains(circles, len(spec.rods))
    placements = [p for chain in chains for p in place_certificate(image, chain, spec.rods)]
    best = min(placements, key=_cost, default=None)
    if best is None:
        return Find(image, None, False, f"{len(circles)} round shapes, none of them in a row at one pitch")
    return Find(image, best, _is_phantom(best), _explanation(best))


def _rank(find: Find) -> tuple[bool, float]:
    return not find.is_phantom, _cost(find.placement) if find.placement is not None else float("inf")


def _cost(placement: Placement) -> float:
    """Residual with a price for each rod that is not seen, not inside, or not in the template's order."""
    n = len(placement.found)
    missing, outside = n - sum(placement.found), placement.inside.count(False)
    in_order = placement.order in (tuple(range(n)), tuple(range(n))[::-1])
    return placement.residual_hu * (1.0 if in_order else 2.5) + 4.0 * missing + 25.0 * outside + (0.0 if in_order else 5.0)


def _is_phantom(placement: Placement) -> bool:
    """Enough like circles in a row whose HU a possible calibration line explains."""
    found, outside = sum(placement.found), placement.inside.count(False)
    mean_score = placement.score / max(found, 1)
    if outside:
        return found >= 2 and mean_score >= 0.6 and placement.residual_hu <= 25.0
    return found >= 3 and placement.residual_hu <= POSSIBLE_HU


def _explanation(placement: Placement) -> str:
    values = ", ".join(f"{v:.0f}" for v in placement.hu[np.isfinite(placement.hu)])
    return (
        f"the best row has {sum(placement.found)} round shapes and {values} HU, {placement.residual_hu:.0f} HU about the "
        "nearest possible line"
    )
