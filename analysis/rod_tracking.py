"""Follow the rods along the slices: circle fits in blocks of slices, one common direction, one common radius.

Rods of one phantom are parallel and equally thick; only the well contrasted ones are followed, the others keep their
place beside them. In-plane positions are (row, column) in millimetres; z is millimetres along the slices.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.rod_candidates import Section, find_circles, ring_peak, section
from analysis.rod_circle import LARGEST_JUMP_MM, CircleFit, fit_circle
from analysis.rod_pattern import curve

BLOCK_MM = 10.0
MIN_INLIERS, CLEAR_INLIERS = 0.55, 0.8
OFF_THE_ROW = 0.2  # of the pitch: farther from its place in the row, only a clear circle is a rod
# A weak rod this far from its predicted place is still looked for, and taken when its ring is this clear
WEAK_REACH_MM, WEAK_PEAK = 6.0, 0.3
LARGEST_SHIFT_MM = 45.0  # of a phantom that moved during the scan
SAME_ROD_HU = 40.0  # a rod's blocks agree within this


@dataclass(frozen=True, slots=True, eq=False)
class RodAxes:
    """Parallel axes: centre of rod i at z is at_zero_mm[i] + slope * z.

    blocks_mm : (n_blocks, 2) from and to, along the slices, where the rods were followed
    misfit_mm : (n_blocks,) how far the rods of a block lie off the common straight axes
    """

    at_zero_mm: NDArray[np.float64]  # (n_rods, 2)
    slope: NDArray[np.float64]  # (2,) millimetre per millimetre
    radius_mm: float
    strong: tuple[bool, ...]
    blocks_mm: NDArray[np.float64]
    misfit_mm: NDArray[np.float64]

    @property
    def tilt_deg(self) -> float:
        return float(np.degrees(np.arctan(np.hypot(*self.slope))))

    def centres_mm(self, z_mm: float) -> NDArray[np.float64]:
        return np.asarray(self.at_zero_mm + self.slope * z_mm)


def track_rods(
    hu: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    seed: Section,
    start_mm: NDArray[np.float64],
    radius_mm: float,
) -> RodAxes | None:
    """Follow the rods from the seed section to both ends; None when fewer than two can be followed.

    hu : (slices, rows, columns); start_mm : (n_rods, 2) centres in the seed section
    """
    fits = [fit_circle(seed, centre, radius_mm) for centre in start_mm]
    strong = _strong(fits, start_mm)
    if sum(strong) < 2:
        return None
    radius = float(np.median([f.radius_mm for f, s in zip(fits, strong, strict=True) if f is not None and s]))
    centres = np.array([f.centre_mm if s and f else c for f, s, c in zip(fits, strong, start_mm, strict=True)])
    inside = np.array([f.inside_hu for f, s in zip(fits, strong, strict=True) if f is not None and s])
    follow = _Follower(hu, spacing_mm, np.flatnonzero(strong), radius, inside)
    blocks = follow.from_seed(seed.centre_mm, centres)
    seen = np.isfinite([b.positions_mm[:, 0] for b in blocks]).any(axis=0) if blocks else np.zeros(sum(strong), bool)
    if seen.sum() < 2:
        return None
    kept = [replace(b, positions_mm=b.positions_mm[seen], radii_mm=b.radii_mm[seen]) for b in blocks]
    followed = set(np.flatnonzero(strong)[seen].tolist())
    return _straight_axes(kept, tuple(i in followed for i in range(len(strong))))


def _strong(fits: list[CircleFit | None], start_mm: NDArray[np.float64]) -> tuple[bool, ...]:
    good = [
        f is not None and f.inliers >= MIN_INLIERS and np.linalg.norm(f.centre_mm - s) < LARGEST_JUMP_MM
        for f, s in zip(fits, start_mm, strict=True)
    ]
    contrasts = [abs(f.contrast_hu) for f, ok in zip(fits, good, strict=True) if f is not None and ok]
    floor = float(np.clip(0.2 * max(contrasts, default=0.0), 15.0, 60.0))
    found = {i: f for i, (f, ok) in enumerate(zip(fits, good, strict=True)) if ok and f and abs(f.contrast_hu) >= floor}
    off = _off_the_row(found)
    return tuple(i in found and i not in off for i in range(len(fits)))


def _off_the_row(found: dict[int, CircleFit]) -> set[int]:
    """The circles, by place, none too clear and far from where three or more clear ones tell a rod to be.

    The round end of a pad looks like a rod where the last rod has the density of the pad.
    """
    clear = [i for i, fit in found.items() if fit.inliers >= CLEAR_INLIERS]
    if len(clear) < 3:
        return set()
    at_mm = np.array([found[i].centre_mm for i in clear])
    told_mm = curve(np.array(clear, float), at_mm, np.arange(max(found) + 1, dtype=float))
    far_mm = OFF_THE_ROW * float(np.linalg.norm(at_mm[-1] - at_mm[0])) / (clear[-1] - clear[0])
    return {i for i in found.keys() - clear if np.linalg.norm(found[i].centre_mm - told_mm[i]) > far_mm}


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    from_mm: float
    to_mm: float
    centre_mm: float
    positions_mm: NDArray[np.float64]  # (n_strong, 2), NaN where a rod had no fit
    radii_mm: NDArray[np.float64]


@dataclass(slots=True, eq=False)
class _Follower:
    """Walks along the blocks of slices; knows the volume and which rods to follow."""

    hu: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    rods: NDArray[np.int64]
    radius_mm: float
    inside_hu: NDArray[np.float64]  # of those rods in the seed section

    def from_seed(self, seed_mm: float, centres_mm: NDArray[np.float64]) -> list[_Block]:
        starts = self._block_starts()
        middles = [0.5 * (s.start + s.stop - 1) * self.spacing_mm[0] for s in starts]
        first = int(np.argmin([abs(m - seed_mm) for m in middles]))
        start = centres_mm[self.rods]
        forward = self._walk(starts[first:], start)
        backward = self._walk(starts[:first][::-1], forward[0].positions_mm if forward else start)
        return sorted([*backward, *forward], key=lambda b: b.centre_mm)

    def _block_starts(self) -> list[slice]:
        n, thick = len(self.hu), self.spacing_mm[0]
        per_block = max(1, round(BLOCK_MM / thick))
        count = max(1, n // per_block)
        edges = np.linspace(0, n, count + 1).round().astype(int)
        return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def _walk(self, blocks: list[slice], start_mm: NDArray[np.float64]) -> list[_Block]:
        """Blocks in walking order; two lost blocks in a row end the walk."""
        done: list[_Block] = []
        last, lost = start_mm, 0
        for slices in blocks:
            block = self._fit(slices, last)
            if block is None:
                lost += 1
                if lost > 1:
                    break
                continue
            lost = 0
            step = np.nanmedian(block.positions_mm - last, axis=0)
            last = np.where(np.isfinite(block.positions_mm), block.positions_mm, last + step)
            done.append(block)
        return done

    def _fit(self, slices: slice, guess_mm: NDArray[np.float64]) -> _Block | None:
        image = section(self.hu, self.spacing_mm, slices)
        fits = [fit_circle(image, g, self.radius_mm) for g in np.nan_to_num(guess_mm)]
        good = [
            f is not None and f.inliers >= MIN_INLIERS and abs(f.inside_hu - hu) < SAME_ROD_HU
            for f, hu in zip(fits, self.inside_hu, strict=True)
        ]
        if sum(good) < max(2, (len(self.rods) + 1) // 2):
            return None
        positions = np.array([f.centre_mm if ok and f else [np.nan, np.nan] for f, ok in zip(fits, good, strict=True)])
        radii = np.array([f.radius_mm if ok and f else np.nan for f, ok in zip(fits, good, strict=True)])
        step_mm = self.spacing_mm[0]
        ends = (slices.start - 0.5) * step_mm, (slices.stop - 0.5) * step_mm
        return _Block(*ends, image.centre_mm, positions, radii)


def _straight_axes(blocks: list[_Block], strong: tuple[bool, ...]) -> RodAxes:
    """One slope for all rods (median of their least squares), one offset each; weak rods are predicted from them."""
    z = np.array([b.centre_mm for b in blocks])
    positions = np.array([b.positions_mm for b in blocks])  # (blocks, strong, 2)
    slope = _common_slope(z, positions)
    offsets = np.nanmedian(positions - slope * z[:, None, None], axis=0)
    misfit = np.nanmedian(positions - slope * z[:, None, None] - offsets, axis=1)
    index = np.flatnonzero(strong)
    at_zero = curve(index.astype(float), offsets, np.arange(len(strong), dtype=float))
    at_zero[index] = offsets
    radii = np.concatenate([b.radii_mm for b in blocks])
    ends = np.array([(b.from_mm, b.to_mm) for b in blocks])
    return RodAxes(at_zero, slope, float(np.nanmedian(radii)), strong, ends, np.linalg.norm(misfit, axis=1))


def _common_slope(z: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(z) < 2:
        return np.zeros(2)
    slopes = []
    for rod in range(positions.shape[1]):
        ok = np.isfinite(positions[:, rod, 0])
        if ok.sum() >= 2:
            slopes.append(np.polyfit(z[ok], positions[ok, rod], 1)[0])
    return np.median(slopes, axis=0) if slopes else np.zeros(2)


def recentred(axes: RodAxes, hu: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> RodAxes:
    """Every rod's centre fitted once more on the average of all slices taken along the tilted axes.

    A weak rod is looked for near its predicted place, with the noise of the whole length; it moves only when a circle
    of the common radius is clear there.
    """
    low, high = axes.blocks_mm[:, 0].min(), axes.blocks_mm[:, 1].max()
    slices = [k for k in range(len(hu)) if low <= k * spacing_mm[0] <= high]
    slices = slices[:: max(1, len(slices) // 48)]
    at_zero = axes.at_zero_mm.copy()
    for rod, strong in enumerate(axes.strong):
        image, origin = _straightened(axes, hu, spacing_mm, (rod, slices))
        guess = at_zero[rod] - origin
        at_zero[rod] = origin + (_strong_centre if strong else _weak_centre)(image, guess, axes.radius_mm)
    return replace(axes, at_zero_mm=at_zero)


def _strong_centre(image: Section, guess_mm: NDArray[np.float64], radius_mm: float) -> NDArray[np.float64]:
    fit = fit_circle(image, guess_mm, radius_mm)
    return fit.centre_mm if _believable(fit, radius_mm) and fit else guess_mm


def _weak_centre(image: Section, guess_mm: NDArray[np.float64], radius_mm: float) -> NDArray[np.float64]:
    peak = ring_peak(image, guess_mm, radius_mm, min(WEAK_REACH_MM, 0.6 * radius_mm))
    if abs(peak.score) < WEAK_PEAK:
        return guess_mm
    fit = fit_circle(image, peak.position_mm, radius_mm)
    return fit.centre_mm if _believable(fit, radius_mm) and fit else peak.position_mm


def _believable(fit: CircleFit | None, radius_mm: float) -> bool:
    return fit is not None and fit.inliers >= MIN_INLIERS and abs(fit.radius_mm / radius_mm - 1) <= 0.12


def _straightened(
    axes: RodAxes, hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], which: tuple[int, list[int]]
) -> tuple[Section, NDArray[np.float64]]:
    """The mean of one rod's surroundings along its axis, and the position of its first pixel, mm at z = 0."""
    rod, slices = which
    reach = 1.6 * axes.radius_mm + WEAK_REACH_MM + LARGEST_JUMP_MM
    step = 0.6
    offsets = np.arange(-reach, reach + step, step)
    total = np.zeros((offsets.size, offsets.size), np.float32)
    for k in slices:
        centre = axes.centres_mm(k * spacing_mm[0])[rod]
        rows = (centre[0] + offsets) / spacing_mm[1]
        columns = (centre[1] + offsets) / spacing_mm[2]
        r0, c0 = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
        cut = hu[k, r0 : int(rows[-1]) + 3, c0 : int(columns[-1]) + 3]
        grid = np.meshgrid(rows - r0, columns - c0, indexing="ij")
        total += ndimage.map_coordinates(cut, grid, order=1, mode="nearest", output=np.float32)
    mean = total / np.float32(max(len(slices), 1))
    return Section(mean, (step, step), 0.0), axes.at_zero_mm[rod] - reach


def jump_mm(axes: RodAxes, hu: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> float:
    """How far the rods stand aside where they were lost inside the volume; 0 when they simply end."""
    thick = max(2, round(2 * BLOCK_MM / spacing_mm[0]))
    n = len(hu)
    after = round(float(axes.blocks_mm[:, 1].max()) / spacing_mm[0] + 0.5)
    before = round(float(axes.blocks_mm[:, 0].min()) / spacing_mm[0] + 0.5)
    beyond = [slice(after, min(after + thick, n))] if n - after >= 2 else []
    beyond += [slice(max(before - thick, 0), before)] if before >= 2 else []
    return max((_displacement_mm(axes, section(hu, spacing_mm, slices)) for slices in beyond), default=0.0)


def _displacement_mm(axes: RodAxes, image: Section) -> float:
    """The common shift that brings all followed rods on to circles of the section, 0 without one."""
    expected = axes.centres_mm(image.centre_mm)[np.flatnonzero(axes.strong)]
    circles = [c for c in find_circles(image) if abs(c.score) >= 0.4 and 0.75 < c.radius_mm / axes.radius_mm < 1.35]
    if not circles:
        return 0.0
    at = np.array([c.position_mm for c in circles])
    shifts = [s for s in at - expected[0] if np.linalg.norm(s) < LARGEST_SHIFT_MM]
    fitting = [s for s in shifts if all(np.linalg.norm(at - (e + s), axis=1).min() < 2.5 for e in expected)]
    return float(min((np.linalg.norm(s) for s in fitting), default=0.0))
