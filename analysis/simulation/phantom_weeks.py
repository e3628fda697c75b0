"""A scanner over a year: weekly phantom scans with scatter, drift, a step, missed weeks and bad scans."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from analysis.simulation.phantom_scan import PhantomScanSpec, true_line


@dataclass(frozen=True, slots=True)
class WeekPlan:
    """How a scanner behaves over a series of weekly scans."""

    weeks: int = 52
    drift_per_year: float = 0.0  # of sigma_ref, for example -0.01
    step_week: int | None = None  # tube or software change
    step_sigma: float = 0.0  # relative
    step_beta_hu: float = 0.0
    missed: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()  # weeks whose scan has a metal pin in a rod
    sigma_sd: float = 0.003  # week to week, relative
    beta_sd_hu: float = 1.0
    seed: int = 0


def weekly_series(base: PhantomScanSpec, plan: WeekPlan) -> Iterator[tuple[int, PhantomScanSpec]]:
    """(week, scan) of every week that was not missed."""
    rng = np.random.default_rng(plan.seed)
    sigma0, beta0 = true_line(base)
    for week in range(plan.weeks):
        jitter_sigma, jitter_beta = rng.normal(0, plan.sigma_sd), rng.normal(0, plan.beta_sd_hu)
        shift = tuple(float(s) for s in rng.normal(0, 4.0, 3))
        if week in plan.missed:
            continue
        after = plan.step_week is not None and week >= plan.step_week
        sigma = sigma0 * (1 + jitter_sigma + plan.drift_per_year * week / 52 + (plan.step_sigma if after else 0.0))
        beta = beta0 + jitter_beta + (plan.step_beta_hu if after else 0.0)
        yield (
            week,
            replace(
                base,
                sigma_ref=sigma,
                beta_ref=beta,
                pose=replace(base.pose, shift_mm=(shift[0], shift[1], shift[2])),
                acquisition=replace(base.acquisition, seed=plan.seed * 1000 + week),
                defects=replace(base.defects, metal_rod=2 if week in plan.bad else None),
            ),
        )
