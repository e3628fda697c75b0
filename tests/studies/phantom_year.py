"""A year of weekly phantom scans of one scanner, measured, judged and used: `python -m tests.studies.phantom_year`.

A drift of -0.6 % a year, a missed week, one bad scan repeated the next day, and a tube change that the site declares.
Each week a patient is scanned 3.5 days after the phantom; the study compares the line chosen for that patient, at first
and when the next scan is in, with the truth. Writes docs/calibration-year.md and its charts.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sqlalchemy.orm import Session

from analysis.calibration import build_calibration
from analysis.errors import AnalysisError, NoValidCalibrationError
from analysis.phantom import measure_phantom
from analysis.qc_charts import scan_chart, series_charts
from analysis.results import Calibration, CalibrationLine, Reason
from analysis.simulation.phantom_scan import (
    Acquisition,
    PhantomScanSpec,
    simulate_phantom,
    true_line,
)
from analysis.simulation.phantom_weeks import WeekPlan, weekly_series
from storage import calibrations as store
from storage.calibration_declarations import NewEpoch, declare_epoch
from storage.phantom_registry import save_failed_scan
from storage.schema import open_database
from tests.phantom_builders import MODEL_3, MONDAY, SMALL, header

DOCS = Path(__file__).resolve().parents[2] / "docs"
MISSED_WEEK, BAD_WEEK, TUBE_WEEK = 20, 40, 28
PLAN = WeekPlan(
    drift_per_year=-0.006, step_week=TUBE_WEEK, step_sigma=-0.015, step_beta_hu=3.0, missed=(MISSED_WEEK,), seed=4
)
TUBE_CHANGED = MONDAY + timedelta(weeks=TUBE_WEEK, days=-1)
WATER_DISPLACED, WATER = 0.2174, 999.6


@dataclass(slots=True)
class Week:
    """What one scan gave. Errors in mg/cm3 at 100 mg/cm3."""

    label: str
    week: float
    verdict: str
    seconds: float
    line_error: float | None
    provisional: str = ""
    final: str = ""


def scans(base: PhantomScanSpec) -> Iterator[tuple[float, PhantomScanSpec]]:
    """The plan's scans; the bad one reads 5 % steep (a wrong tube state) and is repeated a day later."""
    for week, spec in weekly_series(base, PLAN):
        if week == BAD_WEEK:
            sigma, _ = true_line(spec)
            yield float(week), replace(spec, sigma_ref=1.05 * sigma)
            again = replace(spec, acquisition=replace(spec.acquisition, seed=spec.acquisition.seed + 500))
            yield week + 1 / 7, again
        else:
            yield float(week), spec


def reading_error(line: CalibrationLine, spec: PhantomScanSpec, bmd: float = 100.0) -> float:
    """What the line reads for the HU that the true line gives 100 mg/cm3, less 100."""
    sigma, beta = true_line(spec)
    return line.to_bmd_mg_cm3((sigma - WATER_DISPLACED) * bmd + beta + WATER) - bmd


def answer(session: Session, week: float, truth: tuple[PhantomScanSpec, PhantomScanSpec, float]) -> str:
    """What a patient of this week is told, in short."""
    before, after, weight = truth
    try:
        chosen = store.choose(session, header(week))
    except NoValidCalibrationError as refusal:
        return refusal.code
    error = (1 - weight) * reading_error(chosen.line, before) + weight * reading_error(chosen.line, after)
    how = "final" if not chosen.provisional else chosen.state
    flags = [f.code for f in chosen.flags if f.code not in ("CALIBRATION_UNKNOWN_SOFT",)]
    return f"{how}, {error:+.1f}" + (f" ({', '.join(flags)})" if flags else "")


def measure(session: Session, week: float, spec: PhantomScanSpec) -> tuple[Week, Calibration | None]:
    """Simulate, measure, judge, store."""
    simulated = simulate_phantom(spec)
    started = time.process_time()
    try:
        measured = measure_phantom(simulated.volume, MODEL_3)
    except AnalysisError as refusal:
        save_failed_scan(
            session, header(week), MODEL_3.serial, Reason(refusal.code, refusal.text), header(week).acquired
        )
        return Week(f"{week:.1f}", week, refusal.code, time.process_time() - started, None), None
    seconds = time.process_time() - started
    own = build_calibration(header(week), MODEL_3, measured)
    calibration = store.judge(session, own)
    store.save_calibration(session, own, own.acquired)
    verdict = "accepted" if calibration.accepted else "rejected"
    codes = sorted({r.code for r in calibration.reasons})
    text = f"{verdict} {', '.join(codes)}".strip()
    return Week(f"{week:.1f}", week, text, seconds, reading_error(calibration.line, spec)), calibration


def run(base: PhantomScanSpec, session: Session) -> tuple[list[Week], list[Calibration]]:
    rows: list[Week] = []
    calibrations: list[Calibration] = []
    plan = list(scans(base))
    for index, (week, spec) in enumerate(plan):
        if week == TUBE_WEEK:
            epoch = NewEpoch("CT1", TUBE_CHANGED, "tube replaced", "engineer")
            declare_epoch(session, epoch, TUBE_CHANGED)
        row, calibration = measure(session, week, spec)
        if index and rows[-1].provisional:
            previous_week, previous = plan[index - 1]
            weight = 0.5 / (week - previous_week) if week > previous_week else 0.0
            rows[-1].final = answer(session, previous_week + 0.5, (previous, spec, min(weight, 1.0)))
        if week + 0.5 < (plan[index + 1][0] if index + 1 < len(plan) else 99):
            row.provisional = answer(session, week + 0.5, (spec, spec, 0.0))
        rows.append(row)
        calibrations += [calibration] if calibration else []
    return rows, calibrations


def extra_answers(session: Session) -> list[str]:
    """The missed week, the bad scan and the tube change as a patient meets them."""
    told = []
    for label, week in (
        (f"day 7.5 of the missed week {MISSED_WEEK}", MISSED_WEEK + 0.07),
        (f"day 13 of the missed week {MISSED_WEEK}", MISSED_WEEK + 0.86),
        (f"12 hours after the bad scan of week {BAD_WEEK}", BAD_WEEK + 0.07),
        ("12 hours after the tube change, before a phantom scan", TUBE_WEEK - 0.07),
    ):
        try:
            chosen = store.choose(session, header(week))
            said = f"{chosen.state}{', provisional' if chosen.provisional else ''}, age {chosen.age_days:.1f} d"
        except NoValidCalibrationError as refusal:
            said = f"refused, {refusal.code}"
        told.append(f"- {label}: {said}")
    return told


def report(
    rows: list[Week], calibrations: list[Calibration], session: Session, told: list[str], shot: Acquisition
) -> str:
    errors = np.array([r.line_error for r in rows if r.line_error is not None and r.verdict.startswith("accepted")])
    seconds = [r.seconds for r in rows]
    states = store.key_states(session, calibrations[-1].acquired + timedelta(days=9))
    lines = [
        "# A simulated year of weekly phantom scans",
        "",
        "Written by `python -m tests.studies.phantom_year`. Phantom: Mindways Model 3 CT under a water body, "
        f"{shot.slices} slices of {shot.spacing_mm} mm, {shot.matrix} x {shot.matrix}, noise {shot.noise_hu:.0f} HU. "
        f"Drift {100 * PLAN.drift_per_year:.1f} % a year, week to week 0.3 % in slope and 1 HU in offset, week "
        f"{MISSED_WEEK} missed, week {BAD_WEEK} reads 5 % steep and is repeated a day later, tube changed before week "
        f"{TUBE_WEEK} (slope -1.5 %, offset +3 HU) and declared by the site.",
        "",
        f"- scans measured: {len(rows)} in {sum(seconds):.0f} s of processor time, longest {max(seconds):.2f} s",
        f"- error of the accepted lines at 100 mg/cm3: mean {errors.mean():+.2f}, SD {errors.std():.2f}, "
        f"largest {np.abs(errors).max():.2f} mg/cm3",
        f"- nine days after the last scan: {states[0].state}, missed week {states[0].missed_week}",
        *told,
        "",
        "![charts](calibration-year-charts.png)",
        "",
        "![last scan](calibration-year-scan.png)",
        "",
        "The patient of each week is scanned 3.5 days after the phantom. *At first* is the answer before the next "
        "phantom scan, *later* after it: state and error in mg/cm3 at 100 mg/cm3.",
        "",
        "| week | phantom scan | line error | patient at first | patient later |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        error = "" if row.line_error is None else f"{row.line_error:+.2f}"
        lines.append(f"| {row.label} | {row.verdict} | {error} | {row.provisional} | {row.final} |")
    return "\n".join(lines) + "\n"


def main(weeks: int, docs: Path, shot: Acquisition) -> None:
    global PLAN
    PLAN = replace(PLAN, weeks=weeks)
    base = PhantomScanSpec(MODEL_3, acquisition=shot, rod_error_hu=(2.0, -2.5, -1.5, 3.0, -1.0))
    with TemporaryDirectory() as folder:
        sessions = open_database(f"sqlite:///{folder}/year.sqlite")
        with sessions.begin() as session:
            rows, calibrations = run(base, session)
            history = store.history(session, calibrations[0].key)
            epochs: tuple[datetime, ...] = tuple(start for start, _ in store.epochs_of(session, "CT1"))
            (docs / "calibration-year.md").write_text(report(rows, calibrations, session, extra_answers(session), shot))
            (docs / "calibration-year-charts.png").write_bytes(series_charts(history, epochs))
            (docs / "calibration-year-scan.png").write_bytes(scan_chart(history[-1], history))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weeks", type=int, default=52)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--small", action="store_true", help="12 slices of 320 x 320 instead of 40 of 512 x 512")
    given = parser.parse_args()
    main(given.weeks, given.docs, SMALL if given.small else Acquisition(noise_hu=12.0))
