"""Mean, scatter and standard error of each rod inside 60 % of its radius, disturbed and end slices left out.

The rods of a scan share kernel and slice profile, therefore how far its noise is correlated in the plane and along the
slices is estimated from all rods together: one rod's few slices say too little about either.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.rod_candidates import pixels_around
from analysis.rod_tracking import RodAxes

SAMPLE_FRACTION = 0.6  # of the radius
TRIM_FRACTION = 0.1  # of the voxels, at each end
END_MARGIN_MM = 5.0  # beyond the last block that shows the rods
DISTURBED_SDS, DISTURBED_FLOOR_HU = 4.5, 3.0  # of a slice's mean from the rod's straight line along the slices
MIN_SLICES, LARGEST_LAG = 4, 0.9  # to estimate the correlation of the noise
CORRELATED_VOXELS = 6.0  # noise of a soft kernel at 0.7 mm pixels: voxels per independent value
OUTLIER_SDS, OUTLIER_FLOOR_HU = 6.0, 20.0  # of a voxel from the rod's median


@dataclass(frozen=True, slots=True, eq=False)
class RodSample:
    """Statistics of one rod over the slices used.

    disturbed_slices : share of the slices left out; outliers : share of voxels far off (void, metal, streak)
    """

    hu: float
    sd_hu: float
    n_voxels: int
    axial_slope_hu_per_mm: float
    axial_slope_se_hu_per_mm: float
    standard_error_hu: float
    disturbed_slices: float
    outliers: float
    n_slices: int


def usable_slices(axes: RodAxes, n_slices: int, spacing_mm: float) -> tuple[int, ...]:
    """Slices well inside the stretch where the rods were followed; the first and last of a long scan are dropped."""
    low, high = float(axes.blocks_mm[:, 0].min()), float(axes.blocks_mm[:, 1].max())
    first = 0.0 if low <= 0 else low + END_MARGIN_MM
    last = (n_slices - 1) * spacing_mm if high >= (n_slices - 1) * spacing_mm else high - END_MARGIN_MM
    kept = [k for k in range(n_slices) if first - 1e-6 <= k * spacing_mm <= last + 1e-6]
    return tuple(kept[1:-1] if len(kept) >= 8 else kept)


def sample_rods(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], axes: RodAxes, slices: tuple[int, ...]
) -> tuple[RodSample, ...]:
    """One sample per rod; hu is (slices, rows, columns)."""
    radius = SAMPLE_FRACTION * axes.radius_mm
    z_mm = np.array(slices) * spacing_mm[0]
    rods = [
        _Rod.of([_disc(hu[k], spacing_mm[1:], axes.centres_mm(k * spacing_mm[0])[rod], radius) for k in slices], z_mm)
        for rod in range(len(axes.at_zero_mm))
    ]
    correlation = _correlation(rods)
    return tuple(_statistics(rod, correlation) for rod in rods)


@dataclass(frozen=True, slots=True, eq=False)
class _Rod:
    """One rod's voxels slice by slice, and what its undisturbed slices say."""

    voxels: list[NDArray[np.float64]]
    good: NDArray[np.bool_]  # (n_slices,)
    z_mm: NDArray[np.float64]  # of the good slices
    slope_hu_per_mm: float
    rest_hu: NDArray[np.float64]  # of the good slices' means from their straight line
    kept: NDArray[np.float64]  # voxels of the good slices

    @classmethod
    def of(cls, voxels: list[NDArray[np.float64]], z_mm: NDArray[np.float64]) -> "_Rod":
        means = np.array([v.mean() if v.size else np.nan for v in voxels])
        good = _undisturbed(means, z_mm, _slice_error_hu(voxels))
        kept = np.concatenate([v for v, ok in zip(voxels, good, strict=True) if ok] or [np.array([np.nan])])
        centred = z_mm[good] - z_mm[good].mean() if good.any() else z_mm[good]
        slope = float(centred @ means[good]) / max(float(centred @ centred), 1e-9)
        return cls(voxels, good, z_mm[good], slope, means[good] - means[good].mean() - slope * centred, kept)

    @property
    def white_variance(self) -> float:
        """Variance of a slice's mean, HU^2, if its voxels were independent."""
        return float(self.kept.var()) * len(self.z_mm) / max(self.kept.size, 1)

    def excess(self, lag: float) -> float:
        """Variance of the slice means over that of independent voxels.

        A straight line takes more than two degrees of freedom from correlated values: n - trace(Q' R Q).
        """
        line, _ = np.linalg.qr(np.column_stack([np.ones_like(self.z_mm), self.z_mm - self.z_mm.mean()]))
        freedom = len(self.z_mm) - float(np.trace(line.T @ _neighbours(len(self.z_mm), lag) @ line))
        return float(self.rest_hu @ self.rest_hu) / max(freedom, 1.0) / max(self.white_variance, 1e-9)


@dataclass(frozen=True, slots=True)
class _Correlation:
    """Voxels per independent value in the plane, and the correlation of neighbouring slices (AR(1))."""

    voxels: float
    lag: float


def _correlation(rods: list[_Rod]) -> _Correlation:
    """Pooled over the rods; a straight line through n white values leaves a lag-one correlation of -2 / n."""
    used = [r for r in rods if len(r.rest_hu) >= MIN_SLICES]
    if not used:
        return _Correlation(CORRELATED_VOXELS, 0.0)
    products = sum(float(r.rest_hu[1:] @ r.rest_hu[:-1]) for r in used)
    squares = sum(float(r.rest_hu @ r.rest_hu) for r in used)
    raw = products / max(squares, 1e-9) + 2.0 / float(np.mean([len(r.rest_hu) for r in used]))
    lag = float(np.clip(raw, 0.0, LARGEST_LAG))
    return _Correlation(float(np.mean([r.excess(lag) for r in used])), lag)


def _neighbours(n: int, lag: float) -> NDArray[np.float64]:
    """Correlation of the slices with each other, (n, n)."""
    return np.asarray(lag ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))), np.float64)


def _disc(
    image: NDArray[np.float32], pixel_mm: tuple[float, float], centre_mm: NDArray[np.float64], radius_mm: float
) -> NDArray[np.float64]:
    hu, squared_mm2 = pixels_around(image, pixel_mm, centre_mm, radius_mm)
    return np.asarray(hu[squared_mm2 <= radius_mm**2], np.float64)


def _statistics(rod: _Rod, correlation: _Correlation) -> RodSample:
    mean_error, slope_error = _standard_errors(rod, correlation)
    return RodSample(
        hu=trimmed_mean(rod.kept),
        sd_hu=float(rod.kept.std(ddof=1)) if rod.kept.size > 1 else float("nan"),
        n_voxels=int(rod.kept.size),
        axial_slope_hu_per_mm=rod.slope_hu_per_mm,
        axial_slope_se_hu_per_mm=slope_error,
        standard_error_hu=mean_error,
        disturbed_slices=float(1.0 - rod.good.mean()),
        outliers=_outlier_share(np.concatenate(rod.voxels) if rod.voxels else rod.kept),
        n_slices=int(rod.good.sum()),
    )


def _standard_errors(rod: _Rod, correlation: _Correlation) -> tuple[float, float]:
    """Of the mean and of the slope along z; a rod that scatters clearly more than the others keeps its own scatter."""
    n = len(rod.rest_hu)
    if n < MIN_SLICES:
        return float(np.sqrt(CORRELATED_VOXELS * rod.white_variance / max(n, 1))), float("inf")
    clearly = correlation.voxels * (1.0 + 3.0 * np.sqrt(2.0 / (n - 2)))
    own = rod.excess(correlation.lag)
    variance = rod.white_variance * (own if own > clearly else correlation.voxels)
    neighbours = _neighbours(n, correlation.lag)
    centred = rod.z_mm - rod.z_mm.mean()
    slope_variance = variance * float(centred @ neighbours @ centred) / float(centred @ centred) ** 2
    return float(np.sqrt(variance * neighbours.mean())), float(np.sqrt(slope_variance))


def trimmed_mean(values: NDArray[np.float64]) -> float:
    """Mean of the middle 80 %: bias-free for symmetric noise, deaf to a few streaks."""
    cut = int(TRIM_FRACTION * values.size)
    ordered = np.partition(values, [cut, values.size - cut - 1]) if cut else values
    return float(ordered[cut : values.size - cut].mean())


def _slice_error_hu(values: list[NDArray[np.float64]]) -> float:
    """What noise alone does to a slice's mean: voxel SD and the correlation area of a soft kernel."""
    return float(np.median([v.std() * np.sqrt(CORRELATED_VOXELS / max(v.size, 1)) for v in values if v.size] or [0.0]))


def _undisturbed(means: NDArray[np.float64], z_mm: NDArray[np.float64], noise_hu: float) -> NDArray[np.bool_]:
    """Slices whose mean lies on the rod's (robust) straight line along the slices."""
    if len(means) < 4:
        return np.isfinite(means)
    centred = z_mm - z_mm.mean()
    i, j = np.triu_indices(len(means), 1)
    steep = float(np.median((means[j] - means[i]) / (z_mm[j] - z_mm[i])))
    off = means - steep * centred
    off = np.abs(off - np.median(off))
    spread = max(1.4826 * float(np.median(off)), noise_hu)
    return np.asarray(off <= max(DISTURBED_SDS * spread, DISTURBED_FLOOR_HU))


def _outlier_share(voxels: NDArray[np.float64]) -> float:
    middle = float(np.median(voxels))
    off = np.abs(voxels - middle)
    spread = 1.4826 * float(np.median(off))
    return float(np.mean(off > max(OUTLIER_SDS * spread, OUTLIER_FLOOR_HU)))
