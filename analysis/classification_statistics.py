"""How good a three-class answer is: AUC with DeLong intervals, confusion, calibration, decision curve, coverage.

Intervals of AUC use the logit form of DeLong's variance (DeLong 1988; Pepe 2003, section 5.2.4), which keeps its 95 %
near the ends, where the plain form falls to 89 %. Rows of one patient count as one cluster (Obuchowski 1997).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, rankdata

Z95 = 1.959963984540054  # 97.5 % point of the normal distribution


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"

    @property
    def numbers(self) -> tuple[float, float, float]:
        return self.value, self.low, self.high


@dataclass(frozen=True, slots=True, eq=False)
class AucParts:
    """An AUC, and what each row adds to its error: the squares of the contributions sum to DeLong's variance."""

    value: float
    contributions: NDArray[np.float64]
    smaller_group: int


def auc_parts(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> AucParts:
    """AUC by the Mann-Whitney statistic with DeLong's placement values.

    Raises
    ------
    ValueError : one of the two groups is empty
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        raise ValueError(f"{m} positive and {n} negative rows; at least one of each expected")
    ranks = rankdata(scores)
    above = (ranks[positive] - rankdata(scores[positive])) / n  # share of negatives below each positive
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m
    value = float(above.mean())
    contributions = np.empty(len(scores))
    contributions[positive] = (above - value) / math.sqrt(m * max(m - 1, 1))
    contributions[~positive] = (below - value) / math.sqrt(n * max(n - 1, 1))
    return AucParts(value, contributions, min(m, n))


def auc_interval(parts: Sequence[AucParts], clusters: Sequence[str] | None = None) -> Interval:
    """Mean of several AUCs of the same rows (classes, repeats) with its interval; `clusters` names the patients."""
    value = float(np.mean([part.value for part in parts]))
    together = np.mean([part.contributions for part in parts], axis=0)
    if clusters is not None:
        _, member = np.unique(np.asarray(clusters), return_inverse=True)
        together = np.bincount(member, weights=together)
    error = math.sqrt(float((together**2).sum()))
    if error < 1e-9 or not 0 < value < 1:  # groups wholly apart: no better known than a proportion of the smaller one
        smaller = min(part.smaller_group for part in parts)
        return proportion(round(value * smaller), smaller)
    return logit_interval(value, error)


def logit_interval(value: float, error: float) -> Interval:
    """95 % interval, symmetric on the logit scale."""
    centre, half_width = math.log(value / (1 - value)), Z95 * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(centre + sign * half_width))) for sign in (-1, 1))
    return Interval(value, low, high)


def class_aucs(
    shares: NDArray[np.float64], classes: NDArray[np.intp], clusters: Sequence[str] | None = None
) -> tuple[Interval, ...]:
    """One against the rest, for each class; shares (n, classes)."""
    return tuple(auc_interval([auc_parts(shares[:, k], classes == k)], clusters) for k in range(shares.shape[1]))


def macro_auc(
    repeats: Sequence[NDArray[np.float64]], classes: NDArray[np.intp], clusters: Sequence[str] | None = None
) -> Interval:
    """Mean of the one-against-rest AUCs over classes and over repeats of a cross-validation."""
    parts = [auc_parts(shares[:, k], classes == k) for shares in repeats for k in range(shares.shape[1])]
    return auc_interval(parts, clusters)


def repeated_class_auc(
    repeats: Sequence[NDArray[np.float64]], classes: NDArray[np.intp], k: int, clusters: Sequence[str] | None = None
) -> Interval:
    """One class against the rest, mean over repeats of a cross-validation."""
    return auc_interval([auc_parts(shares[:, k], classes == k) for shares in repeats], clusters)


def proportion(hits: int, n: int) -> Interval:
    """A proportion with Wilson's interval (Wilson 1927)."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, z2 = hits / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low, high = max(centre - half_width, 0.0), min(centre + half_width, 1.0)
    return Interval(share, min(low, share), max(high, share))  # 0 and 1 up to rounding


def confusion(predicted: NDArray[np.intp], classes: NDArray[np.intp], n_classes: int = 3) -> NDArray[np.intp]:
    """Counts, rows by true class, columns by predicted class."""
    return np.bincount(classes * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def accuracy(predicted: NDArray[np.intp], classes: NDArray[np.intp]) -> Interval:
    return proportion(int((predicted == classes).sum()), len(classes))


def log_loss(shares: NDArray[np.float64], classes: NDArray[np.intp]) -> float:
    """Mean negative logarithm of the share given to the true class."""
    return float(-np.log(np.maximum(shares[np.arange(len(classes)), classes], 1e-12)).mean())


def calibration_curve(
    shares: NDArray[np.float64], happened: NDArray[np.bool_], n_bins: int = 8
) -> list[tuple[float, Interval]]:
    """Mean predicted share and observed proportion in bins that hold equally many rows."""
    bins = np.array_split(np.argsort(shares, kind="stable"), n_bins)
    return [
        (float(shares[rows].mean()), proportion(int(happened[rows].sum()), len(rows))) for rows in bins if len(rows)
    ]


def net_benefit(shares: NDArray[np.float64], happened: NDArray[np.bool_], threshold: float) -> float:
    """True positives less false positives weighed by the threshold's odds, per patient (Vickers and Elkin 2006)."""
    called = shares >= threshold
    true, false = float((called & happened).mean()), float((called & ~happened).mean())
    return true - false * threshold / (1 - threshold)


def conformal_quantile(scores: NDArray[np.float64], level: float, confidence: float) -> float:
    """The score that holds at least `level` of all new cases, with `confidence` over the draw of the n at hand.

    What the r-th smallest score holds follows Beta(r, n + 1 - r); the smallest r that suffices is taken (Vovk 2012,
    "Conditional validity of inductive conformal predictors", proposition 2a). The usual rank ceil((n + 1) level)
    promises `level` only on average over many calibrations; one calibration in two or three then falls short.
    1 (every case) where even the largest score does not suffice: below 22 cases for 0.9 and 0.9.
    """
    n = len(scores)
    suffices = np.flatnonzero(binom.cdf(np.arange(n), n, level) >= confidence)  # P(Beta(r, n + 1 - r) >= level)
    return float(np.sort(scores)[suffices[0]]) if len(suffices) else 1.0


def coverage(
    shares: NDArray[np.float64], classes: NDArray[np.intp], quantiles: Sequence[float]
) -> tuple[Interval, ...]:
    """How often the conformal set holds the true class: overall, then for each class."""
    own = shares[np.arange(len(classes)), classes]
    held = 1 - own <= np.asarray(quantiles)[classes]
    each = [held[classes == k] for k in range(len(quantiles))]
    return tuple(proportion(int(group.sum()), len(group)) for group in (held, *each))
