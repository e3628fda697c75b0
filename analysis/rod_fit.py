"""The least-squares line through certified rods, shared by the naming of the rods and by the calibration.

Two-density rods (Mindways, QCT PRO User Guide v5.0, 2011): HU - rho_H2O = sigma_ref * rho_K2HPO4 + beta_ref.
Single-density rods: HU = sigma_ref * rho + beta_ref. HU is regressed on density in both cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from analysis.results import RodSpec


@dataclass(frozen=True, slots=True, eq=False)
class RodFit:
    """Ordinary least squares of HU (less water) on density; `see_hu` is 0 when no degree of freedom is left."""

    sigma_ref: float
    beta_ref: float
    residuals_hu: NDArray[np.float64]  # (n_rods,)
    see_hu: float
    r2: float
    covariance: NDArray[np.float64]  # (2, 2) of (sigma, beta)
    degrees_of_freedom: int


def water_mg_cm3(rods: Sequence[RodSpec]) -> NDArray[np.float64]:
    """The certified water of each rod, 0 for single-density rods, (n_rods,)."""
    return np.array([rod.water_mg_cm3 or 0.0 for rod in rods])


def densities_mg_cm3(rods: Sequence[RodSpec]) -> NDArray[np.float64]:
    return np.array([rod.density_mg_cm3 for rod in rods])


def _design(rods: Sequence[RodSpec]) -> NDArray[np.float64]:
    return np.column_stack([densities_mg_cm3(rods), np.ones(len(rods))])


def stated_covariance(rods: Sequence[RodSpec], u_hu: float) -> NDArray[np.float64]:
    """Covariance of (sigma, beta) when every rod has the standard uncertainty `u_hu`, independent of the others."""
    design = _design(rods)
    return np.asarray(u_hu**2 * np.linalg.inv(design.T @ design), np.float64)


def fit_rods(rods: Sequence[RodSpec], hu: NDArray[np.float64]) -> RodFit:
    """Fit the line; covariance = SEE^2 (A'A)^-1 with A = [density, 1]."""
    design = _design(rods)
    response = np.asarray(hu, float) - water_mg_cm3(rods)
    inverse = np.linalg.inv(design.T @ design)
    sigma, beta = inverse @ design.T @ response
    residuals = np.asarray(response - design @ np.array([sigma, beta]), np.float64)
    freedom = len(rods) - 2
    variance = float(residuals @ residuals) / freedom if freedom > 0 else 0.0
    total = float(((response - response.mean()) ** 2).sum())
    r2 = 1.0 - float(residuals @ residuals) / total if total > 0 else 0.0
    covariance = np.asarray(variance * inverse, np.float64)
    return RodFit(float(sigma), float(beta), residuals, variance**0.5, r2, covariance, freedom)


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """A naming of the measured rods: `order[i]` is the index in the certificate of measured rod i."""

    order: tuple[int, ...]
    see_hu: float
    ratio_to_next: float  # SEE of the best other naming / SEE of this one, at most 1e6


def assignment_sees_hu(
    rods: Sequence[RodSpec], hu: NDArray[np.float64]
) -> tuple[list[tuple[int, ...]], NDArray[np.float64]]:
    """SEE of every naming of the measured rods; a negative slope counts as no fit (infinite)."""
    orders = list(permutations(range(len(rods))))
    index = np.array(orders)
    x, y = densities_mg_cm3(rods)[index], np.asarray(hu, float)[None, :] - water_mg_cm3(rods)[index]
    dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    slope = (dx * dy).sum(1) / (dx**2).sum(1)
    squares = ((dy - slope[:, None] * dx) ** 2).sum(1)
    sees = np.sqrt(squares / max(len(rods) - 2, 1))
    return orders, np.where(slope > 0, sees, np.inf)


def assignment_of(order: tuple[int, ...], rods: Sequence[RodSpec], hu: NDArray[np.float64]) -> Assignment:
    """How clearly this naming beats every other one."""
    orders, sees = assignment_sees_hu(rods, hu)
    chosen = orders.index(order)
    others = np.delete(sees, chosen)
    ratio = min(float(others.min()) / max(float(sees[chosen]), 1e-9), 1e6)
    return Assignment(order, float(sees[chosen]), ratio)


def best_assignment(rods: Sequence[RodSpec], hu: NDArray[np.float64]) -> Assignment:
    orders, sees = assignment_sees_hu(rods, hu)
    return assignment_of(orders[int(np.argmin(sees))], rods, hu)


def noise_hu(rods: Sequence[RodSpec], errors_hu: NDArray[np.float64], level_mg_cm3: float) -> float:
    """Standard error of the fitted line at a density from those of the rods' means.

    A rod's error moves the line there by its share 1/n + (level - mean) (rho - mean) / sum (rho - mean)^2.
    """
    centred = densities_mg_cm3(rods) - densities_mg_cm3(rods).mean()
    from_mean = level_mg_cm3 - densities_mg_cm3(rods).mean()
    share = 1.0 / len(rods) + from_mean * centred / float(centred @ centred)
    return float(np.sqrt(np.sum((share * errors_hu) ** 2)))
