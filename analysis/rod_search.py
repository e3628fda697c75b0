"""Search a few thick sections of a volume for the rods of one phantom and say what was found."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.results import PhantomSpec
from analysis.rod_candidates import Circle, Section, find_circles, section
from analysis.rod_pattern import Placement, find_chains, place_certificate

SEED_MM = 20.0  # thickness of a section: 5 degrees of tilt smear it by 1.7 mm
CONVINCING_HU = 15.0  # residual that ends the search
POSSIBLE_HU = 30.0
POSSIBLE_SCORE = 1.4  # summed over the rods: two clear circles
MOST_SECTIONS = 7
MOST_TRIED = 4  # rows that may be followed along the slices
CLEAR_SCORE, CLEAR_UNEVENNESS_MM = 0.6, 1.5  # of circles that make a phantom without any look at HU


@dataclass(frozen=True, slots=True, eq=False)
class Find:
    """The most phantom-like rows of circles of one section, best first; `explanation` says what was found."""

    section: Section
    placements: tuple[Placement, ...]
    is_phantom: bool
    explanation: str


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A section with its circles; the same for every phantom."""

    section: Section
    circles: tuple[Circle, ...]


def looks_at(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], most: int = MOST_SECTIONS
) -> Iterator[Look]:
    """Sections of the volume from the middle outwards; hu is (slices, rows, columns)."""
    for slices in _sections(len(hu), spacing_mm[0], most):
        image = section(hu, spacing_mm, slices)
        yield Look(image, find_circles(image))


def find_phantom(looks: Iterable[Look], spec: PhantomSpec) -> Iterator[Find]:
    """Finds in the order in which they deserve to be followed: a clear one as soon as it is seen, then the others.

    A section may reach beyond the phantom's end, where its rods are mixed with air; the next one does not.
    """
    others = []
    for look in looks:
        find = _search(look, spec)
        if find.is_phantom and _is_convincing(find.placements[0]):
            yield find
        else:
            others.append(find)
    yield from sorted(others, key=_rank)


def _sections(n_slices: int, spacing_mm: float, most: int) -> list[slice]:
    """Sections of about 20 mm spread over the volume; their number is odd, so that one lies in the middle: it is first.

    A scan longer than a section is looked at in three places at least: its ends may lie beyond the phantom.
    """
    thick = min(n_slices, max(1, round(SEED_MM / spacing_mm)))
    count = int(np.clip(n_slices // thick, 3, most)) if n_slices > thick else 1
    count += (count + 1) % 2 if count < most else -((count + 1) % 2)
    starts = np.linspace(0, n_slices - thick, count).round().astype(int) if count > 1 else [0]
    middle = (n_slices - thick) / 2
    return [slice(int(s), int(s) + thick) for s in sorted(starts, key=lambda s: abs(s - middle))]


def _search(look: Look, spec: PhantomSpec) -> Find:
    image, circles = look.section, look.circles
    chains = find_chains(circles, len(spec.rods))
    placements = sorted((p for chain in chains for p in place_certificate(image, chain, spec.rods)), key=_cost)
    if not placements:
        return Find(image, (), False, f"{len(circles)} round shapes, none of them in a row at one pitch")
    chosen = [p for p in placements if _fits_certificate(p)] or [p for p in placements if _is_clear_row(p)]
    return Find(
        image, tuple((chosen or placements)[:MOST_TRIED]), bool(chosen), _explanation((chosen or placements)[0])
    )


def _rank(find: Find) -> tuple[bool, float]:
    return not find.is_phantom, _cost(find.placements[0]) if find.placements else float("inf")


def _cost(placement: Placement) -> float:
    """Residual with a price for each rod not clearly round, not inside, odd, out of the row or the template's order."""
    n = len(placement.found)
    in_order = placement.order in (tuple(range(n)), tuple(range(n))[::-1])
    price = 6.0 * (n - placement.score) + 25.0 * placement.inside.count(False)
    price += (0.0 if in_order else 5.0) + (0.0 if placement.odd_rod is None else 15.0)
    price += 3.0 * max(0.0, placement.unevenness_mm - CLEAR_UNEVENNESS_MM)
    return placement.residual_hu * (1.0 if in_order else 2.5) + price


def _is_convincing(placement: Placement) -> bool:
    return (
        all(placement.inside)
        and placement.odd_rod is None
        and sum(placement.found) >= 3
        and placement.score >= 1.8
        and placement.residual_hu < CONVINCING_HU
    )


def _fits_certificate(placement: Placement) -> bool:
    """Enough like circles in a row whose HU a possible calibration line explains."""
    found, outside = sum(placement.found), placement.inside.count(False)
    mean_score = placement.score / max(found, 1)
    if outside:
        return found >= 2 and mean_score >= CLEAR_SCORE and placement.residual_hu <= CONVINCING_HU
    if len(placement.found) == 2:  # nearly every pair fits some line: both must be clear, the tracking decides
        return found == 2 and mean_score >= CLEAR_SCORE and placement.residual_hu <= CONVINCING_HU
    if found < 3:
        return mean_score >= 0.5 and placement.residual_hu <= CONVINCING_HU
    return placement.score >= POSSIBLE_SCORE and placement.residual_hu <= POSSIBLE_HU


def _is_clear_row(placement: Placement) -> bool:
    """All rods but one seen as clear circles: a phantom by its shape, whatever its HU."""
    found = sum(placement.found)
    return (
        all(placement.inside)
        and found >= max(4, len(placement.found) - 1)
        and placement.score >= CLEAR_SCORE * found
        and placement.unevenness_mm <= CLEAR_UNEVENNESS_MM
    )


def _explanation(placement: Placement) -> str:
    values = ", ".join(f"{v:.0f}" for v in placement.hu[np.isfinite(placement.hu)])
    return (
        f"the best row has {sum(placement.found)} round shapes and {values} HU, {placement.residual_hu:.0f} HU about "
        "the nearest possible line"
    )
