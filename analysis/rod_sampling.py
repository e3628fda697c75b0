"""Mean, scatter and standard error of each rod inside 60 % of its radius, disturbed and end slices left out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.rod_tracking import RodAxes

SAMPLE_FRACTION = 0.6  # of the radius
TRIM_FRACTION = 0.1  # of the voxels, at each end
END_MARGIN_MM = 5.0  # beyond the last block that shows the rods
DISTURBED_SDS, DISTURBED_FLOOR_HU = 4.5, 3.0  # of a slice's mean from the rod's straight line along the slices
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
    samples = []
    for rod in range(len(axes.at_zero_mm)):
        values = [_disc(hu[k], spacing_mm[1:], axes.centres_mm(k * spacing_mm[0])[rod], radius) for k in slices]
        samples.append(_statistics(values, np.array(slices) * spacing_mm[0]))
    return tuple(samples)


def _disc(
    image: NDArray[np.float32], pixel_mm: tuple[float, float], centre_mm: NDArray[np.float64], radius_mm: float
) -> NDArray[np.float64]:
    rows, columns = (
        np.arange(max(int(np.ceil((c - radius_mm) / p)), 0), min(int((c + radius_mm) / p) + 1, n))
        for c, p, n in zip(centre_mm, pixel_mm, image.shape, strict=True)
    )
    squared = (rows[:, None] * pixel_mm[0] - centre_mm[0]) ** 2 + (columns[None, :] * pixel_mm[1] - centre_mm[1]) ** 2
    return np.asarray(image[np.ix_(rows, columns)][squared <= radius_mm**2], np.float64)


def _statistics(values: list[NDArray[np.float64]], z_mm: NDArray[np.float64]) -> RodSample:
    means = np.array([v.mean() if v.size else np.nan for v in values])
    good = _undisturbed(means, z_mm, _slice_error_hu(values))
    kept = np.concatenate([v for v, ok in zip(values, good, strict=True) if ok] or [np.array([np.nan])])
    slope, slope_se = _slope(means[good], z_mm[good])
    return RodSample(
        hu=trimmed_mean(kept),
        sd_hu=float(kept.std(ddof=1)) if kept.size > 1 else float("nan"),
        n_voxels=int(kept.size),
        axial_slope_hu_per_mm=slope,
        axial_slope_se_hu_per_mm=slope_se,
        standard_error_hu=_standard_error(means[good], kept),
        disturbed_slices=float(1.0 - good.mean()),
        outliers=_outlier_share(np.concatenate(values) if values else kept),
        n_slices=int(good.sum()),
    )


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


def _slope(means: NDArray[np.float64], z_mm: NDArray[np.float64]) -> tuple[float, float]:
    if len(means) < 3:
        return 0.0, float("inf")
    centred = z_mm - z_mm.mean()
    spread = float(centred @ centred)
    slope = float(centred @ means) / spread
    rest = means - means.mean() - slope * centred
    return slope, float(np.sqrt(rest @ rest / (len(means) - 2) / spread))


def _standard_error(means: NDArray[np.float64], voxels: NDArray[np.float64]) -> float:
    """From the scatter of slice means, so that in-plane correlation is in it, widened for correlated neighbours.

    Lag-one autocorrelation r gives the variance factor (1 + r) / (1 - r) of an AR(1) series.
    """
    if len(means) < 3:
        return float(voxels.std() * np.sqrt(CORRELATED_VOXELS / max(voxels.size, 1)))
    rest = means - means.mean()
    lag = float(rest[1:] @ rest[:-1] / max(rest @ rest, 1e-12))
    lag = float(np.clip(lag, 0.0, 0.6))
    factor = (1 + lag) / (1 - lag)
    return float(np.sqrt(factor * means.var(ddof=1) / len(means)))


def _outlier_share(voxels: NDArray[np.float64]) -> float:
    middle = float(np.median(voxels))
    off = np.abs(voxels - middle)
    spread = 1.4826 * float(np.median(off))
    return float(np.mean(off > max(OUTLIER_SDS * spread, OUTLIER_FLOOR_HU)))
