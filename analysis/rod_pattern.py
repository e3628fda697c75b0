"""Which circles are the rods of a phantom? Chains of like circles at one pitch, on a line or a shallow arc.

The geometry template is loose (no drawing is public): pitch 18-48 mm, slightly uneven, line or arc within 35 degrees
of the rows. Rods that a section does not show (same HU as the pad, or outside the field of view) are predicted from
the others. Each placement of the certificate on the chain is judged by its least-squares residual.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import dist
from statistics import median

import numpy as np
from numpy.typing import NDArray

from analysis.results import RodSpec
from analysis.rod_candidates import STRONG_SCORE, Circle, Section, pixels_around
from analysis.rod_fit import best_assignment, densities_mg_cm3, water_mg_cm3

PITCH_RANGE_MM = (17.0, 48.0)
RADIUS_RATIO = 1.35  # between two rods of one phantom, as seen on the coarse grid
LARGEST_ANGLE_DEG = 35.0
LARGEST_BEND = 0.35  # second difference of the rod positions over the pitch
MOST_CHAINS = 30
# Range of sigma_ref from 140 kVp behind 40 cm of water to 80 kVp with the phantom alone, with a margin
SIGMA_REF_RANGE = (1.0, 3.0)
BETA_CT_RANGE_HU = 80.0
WATER_MG_CM3 = 999.6
# Shares of a rod's radius: the disc that must lie in the field of view, and the one whose HU is read
WHOLE_SHARE, MIDDLE_SHARE = 0.75, 0.55
# One rod may be spoiled by air or metal: looked for when all together lie this far off, if the rest fit this well
ODD_ROD_FROM_HU, ODD_ROD_REST_HU = 25.0, 10.0


@dataclass(frozen=True, slots=True)
class Chain:
    """Circles at integer places along a line or arc; `places` start at 0 and may leave gaps."""

    circles: tuple[Circle, ...]
    places: tuple[int, ...]

    @property
    def radius_mm(self) -> float:
        return median(c.radius_mm for c in self.circles)

    @property
    def score(self) -> float:
        return sum(abs(c.score) for c in self.circles)


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """All rods of the certificate laid on a chain.

    positions_mm : (n_rods, 2) row and column in millimetres, in order across the phantom
    found : which rods are circles of the section; the others are predicted
    inside : which rods lie inside the field of view
    order : `order[i]` is the certificate's index of the rod at place i
    residual_hu : root mean square distance from the best physical line
    odd_rod : place of the one rod that must be left out for the others to fit, if so; `residual_hu` is then theirs
    """

    positions_mm: NDArray[np.float64]
    radius_mm: float
    found: tuple[bool, ...]
    inside: tuple[bool, ...]
    order: tuple[int, ...]
    hu: NDArray[np.float64]
    residual_hu: float
    score: float
    unevenness_mm: float  # largest distance of a circle from the smooth row
    odd_rod: int | None = None


def find_chains(circles: tuple[Circle, ...], n_rods: int) -> tuple[Chain, ...]:
    """Chains of two and more circles, best first."""
    seeds = [c for c in circles if abs(c.score) >= STRONG_SCORE]
    chains: dict[frozenset[tuple[float, float]], Chain] = {}
    for left in seeds:
        for right in seeds:
            if _neighbours(left, right):
                chain = _grow(left, right, circles, n_rods)
                chains.setdefault(frozenset((c.row_mm, c.column_mm) for c in chain.circles), chain)
    return tuple(sorted(chains.values(), key=lambda c: -c.score))[:MOST_CHAINS]


def _neighbours(left: Circle, right: Circle) -> bool:
    rows_mm, columns_mm = right.position_mm - left.position_mm
    distance = float(np.hypot(rows_mm, columns_mm))
    return bool(
        columns_mm > 0
        and PITCH_RANGE_MM[0] <= distance <= PITCH_RANGE_MM[1]
        and abs(rows_mm) <= distance * np.sin(np.radians(LARGEST_ANGLE_DEG))
        and distance >= 1.8 * min(left.radius_mm, right.radius_mm)
        and _alike(left, right)
    )


def _alike(one: Circle, other: Circle) -> bool:
    return 1 / RADIUS_RATIO <= one.radius_mm / other.radius_mm <= RADIUS_RATIO


def _grow(left: Circle, right: Circle, circles: tuple[Circle, ...], n_rods: int) -> Chain:
    places = {0: left, 1: right}
    for direction in (1, -1):
        _extend(places, direction, circles, n_rods)
    first = min(places)
    order = sorted(places)
    return Chain(tuple(places[i] for i in order), tuple(i - first for i in order))


def _extend(places: dict[int, Circle], direction: int, circles: tuple[Circle, ...], n_rods: int) -> None:
    """Add circles at the end of the chain while the next one, or the one after it, is where it should be."""
    while max(places) - min(places) + 1 < n_rods:
        end = max(places) if direction > 0 else min(places)
        for step in (1, 2):
            if max(places) - min(places) + step >= n_rods:
                return
            nearest = _nearest(_predicted(places, end + direction * step), places, circles, 0.24 + 0.08 * step)
            if nearest is not None:
                places[end + direction * step] = nearest
                break
        else:
            return


def _nearest(
    predicted_mm: NDArray[np.float64], places: dict[int, Circle], circles: tuple[Circle, ...], tolerance: float
) -> Circle | None:
    """The best circle within `tolerance` pitches of the predicted place."""
    reach_mm = tolerance * _pitch_mm(places)
    seed = next(iter(places.values()))
    row_mm, column_mm = predicted_mm.tolist()
    near = [
        (abs(c.score) * (1.0 - 0.5 * distance / reach_mm), c)
        for c in circles
        for distance in [dist((c.row_mm, c.column_mm), (row_mm, column_mm))]
        if distance <= reach_mm and _alike(c, seed)
    ]
    return max(near, key=lambda pair: pair[0])[1] if near else None


def _pitch_mm(places: dict[int, Circle]) -> float:
    return median(dist(places[b].position_mm, places[a].position_mm) / (b - a) for a, b in pairwise(sorted(places)))


def _predicted(places: dict[int, Circle], place: int) -> NDArray[np.float64]:
    known = sorted(places)
    at_mm = np.array([places[i].position_mm for i in known])
    return np.asarray(curve(np.array(known, float), at_mm, np.array([float(place)]))[0])


def curve(
    places: NDArray[np.float64], positions_mm: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Positions at `wanted` places: even steps along the row, a parabola across it, from the known rods.

    The bend carries a prior of 0 +/- 2 mm per pitch squared (arc of 200 mm radius at 30 mm pitch: 2.3 mm) against
    0.5 mm of a circle's position; two known rods give a straight line.
    """
    along = positions_mm[-1] - positions_mm[0]
    along = along / max(float(np.linalg.norm(along)), 1e-9)
    across = np.array([-along[1], along[0]])
    straight = _polynomial(places, positions_mm @ along, wanted, 1)
    bent = _polynomial(places, positions_mm @ across, wanted, 2)
    return np.asarray(straight[:, None] * along + bent[:, None] * across)


def _polynomial(
    x: NDArray[np.float64], y: NDArray[np.float64], wanted: NDArray[np.float64], degree: int
) -> NDArray[np.float64]:
    design = np.vander(x, degree + 1, increasing=True)
    ridge = np.diag([0.0, 0.0, (0.5 / 2.0) ** 2][: degree + 1])
    coefficients = np.linalg.solve(design.T @ design + ridge + 1e-9 * np.eye(degree + 1), design.T @ y)
    return np.asarray(np.vander(wanted, degree + 1, increasing=True) @ coefficients)


def place_certificate(image: Section, chain: Chain, rods: tuple[RodSpec, ...]) -> tuple[Placement, ...]:
    """Every way to lay the certificate's rods on the chain or on the chain less a circle at one end, best first."""

    @cache
    def read_hu(row_mm: float, column_mm: float, radius_mm: float) -> float:
        return rod_hu(image, np.array([row_mm, column_mm]), radius_mm)

    placements = [
        _placement(read_hu, part, offset, rods)
        for part in _parts(chain)
        for offset in range(len(rods) - part.places[-1])
    ]
    return tuple(sorted(placements, key=lambda p: p.residual_hu))


def _parts(chain: Chain) -> tuple[Chain, ...]:
    """The chain, and without its first or last circle when enough remain (the end may be a false circle)."""
    if len(chain.circles) < 4:
        return (chain,)
    return (
        chain,
        Chain(chain.circles[:-1], chain.places[:-1]),
        Chain(chain.circles[1:], tuple(p - chain.places[1] for p in chain.places[1:])),
    )


def _placement(
    read_hu: Callable[[float, float, float], float], chain: Chain, offset: int, rods: tuple[RodSpec, ...]
) -> Placement:
    known = np.array([place + offset for place in chain.places])
    at_mm = np.array([c.position_mm for c in chain.circles])
    positions = curve(known.astype(float), at_mm, np.arange(len(rods), dtype=float))
    unevenness = float(np.linalg.norm(positions[known] - at_mm, axis=1).max())
    positions[known] = at_mm
    found = tuple(i in set(known.tolist()) for i in range(len(rods)))
    hu = np.array([read_hu(row_mm, column_mm, chain.radius_mm) for row_mm, column_mm in positions.tolist()])
    inside = tuple(np.isfinite(hu).tolist())
    blank = Placement(
        positions, chain.radius_mm, found, inside, tuple(range(len(rods))), hu, np.inf, chain.score, unevenness
    )
    clear = sum(found) >= len(rods) - 1 and chain.score >= 0.5 * sum(found)
    order, residual = _best_order(rods, hu, clear)
    odd, residual_without = _odd_rod(rods, hu, residual) if residual > ODD_ROD_FROM_HU else (None, residual)
    return replace(blank, order=order, residual_hu=residual_without, odd_rod=odd)


def _odd_rod(rods: tuple[RodSpec, ...], hu: NDArray[np.float64], whole: float) -> tuple[int | None, float]:
    """The rod without which the four or more others fit well, and their residual; else None and that of the whole."""
    if np.isfinite(hu).sum() < 5:
        return None, whole
    forward = tuple(range(len(rods)))
    all_but_one = np.isfinite(hu) & ~np.eye(len(rods), dtype=bool)
    without = np.minimum(*(_residuals_hu(rods, hu, order, all_but_one) for order in (forward, forward[::-1])))
    odd = int(without.argmin())
    return (odd, float(without[odd])) if without[odd] <= ODD_ROD_REST_HU else (None, whole)


def _best_order(rods: tuple[RodSpec, ...], hu: NDArray[np.float64], clear: bool) -> tuple[tuple[int, ...], float]:
    """Left to right or right to left, else, with the rods clearly seen, the naming of least residual."""
    forward = tuple(range(len(rods)))
    tried = [(physical_residual_hu(rods, hu, order), order) for order in (forward, forward[::-1])]
    residual, order = min(tried)
    if clear and residual > 20.0 and np.isfinite(hu).all():
        other = best_assignment(rods, hu).order
        other_residual = physical_residual_hu(rods, hu, other)
        if other_residual < 0.25 * residual:
            return other, other_residual
    return order, residual


def physical_residual_hu(rods: tuple[RodSpec, ...], hu: NDArray[np.float64], order: tuple[int, ...]) -> float:
    """Root mean square residual of the rods seen from the nearest line with possible slope and offset."""
    return float(_residuals_hu(rods, hu, order, np.isfinite(hu)[None])[0])


def _residuals_hu(
    rods: tuple[RodSpec, ...], hu: NDArray[np.float64], order: tuple[int, ...], used: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The same for several choices of rods at once: used, (choices, rods), among those seen; inf for fewer than two."""
    named = [rods[i] for i in order]
    densities, water = densities_mg_cm3(named), water_mg_cm3(named)
    count = used.sum(axis=1)
    n = np.maximum(count, 1)[:, None]
    response = np.where(used, np.nan_to_num(hu) - water, 0.0)
    centred = np.where(used, densities - (used @ densities)[:, None] / n, 0.0)
    spread = np.maximum((centred**2).sum(axis=1, keepdims=True), 1e-9)
    sigma = np.clip((centred * response).sum(axis=1, keepdims=True) / spread, *SIGMA_REF_RANGE)
    rest = np.where(used, response - sigma * densities, 0.0)
    zero = -WATER_MG_CM3 if water.any() else 0.0
    beta = np.clip(rest.sum(axis=1, keepdims=True) / n, zero - BETA_CT_RANGE_HU, zero + BETA_CT_RANGE_HU)
    squares = (np.where(used, rest - beta, 0.0) ** 2).sum(axis=1)
    return np.where(count < 2, np.inf, np.sqrt(squares / n[:, 0]))


def rod_hu(image: Section, centre_mm: NDArray[np.float64], radius_mm: float) -> float:
    """Median HU of the middle of a rod; NaN where the rod does not lie in the field of view.

    It does when its disc, less the rim, lies in the image and not in the constant padding around a round field of view.
    """
    reach_mm = WHOLE_SHARE * radius_mm
    size_mm = np.array([n * p for n, p in zip(image.hu.shape, image.pixel_mm, strict=True)])
    if (centre_mm - reach_mm < 0).any() or (centre_mm + reach_mm > size_mm).any():
        return float("nan")
    hu, squared_mm2 = pixels_around(image.hu, image.pixel_mm, centre_mm, reach_mm)
    whole = hu[squared_mm2 <= reach_mm**2]
    if not whole.size or (np.mean(whole < -900.0) >= 0.2 and whole.std() <= 0.5):
        return float("nan")
    middle = hu[squared_mm2 <= (MIDDLE_SHARE * radius_mm) ** 2]
    return float(np.median(middle)) if middle.size else float("nan")
