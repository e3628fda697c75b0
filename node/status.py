"""`qct-node status` and `requeue`: what was received, why it waits, what was reported and sent; no patient data."""

import getpass
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.orm import Session

from analysis.calibration_state import KeyState
from analysis.errors import ConfigError, QctError
from analysis.qc_charts import series_charts
from node.config import Config
from storage.calibrations import all_keys, declare_commissioned, describe_key, epochs_of, history, key_states
from storage.completeness import waiting
from storage.instances import release_study, study_facts
from storage.jobs import JobState, count_jobs, list_jobs, requeue
from storage.outbox import Delivery, count_items, list_items, requeue_dead
from storage.received_tables import QuarantineRow
from storage.schema import open_database
from storage.study_results import StudyResult, held_results, recent_results

SHOWN = 20


def show_status(config: Config, as_json: bool) -> None:
    """Print the state of the node as tables, or as JSON for a monitoring system."""
    sessions = open_database(config.database_url, upgrade=False)
    with sessions.begin() as session:
        state = read_status(session, config, datetime.now(UTC))
    console = wide_console()
    if as_json:
        console.print_json(json.dumps(state))
        return
    for title, rows in state.items():
        console.print(_table(title, rows))


def read_status(session: Session, config: Config, now: datetime) -> dict[str, list[dict[str, Any]]]:
    """Every section as rows of plain values."""
    return {
        "waiting": [
            {"study": w.study_instance_uid, "version": w.version, "why": w.reason, "due": _text(w.due_at)}
            for w in waiting(session, now, config.completeness)
        ],
        "jobs": [
            {"job": j.id, "study": j.study_instance_uid, "version": j.version, "state": j.state, "detail": j.detail}
            for j in list_jobs(session, JobState.QUEUED, JobState.RUNNING, JobState.DEAD, limit=SHOWN)
        ],
        "job counts": [{"state": str(s), "studies": n} for s, n in count_jobs(session).items()],
        "results": [_result(r) for r in recent_results(session, SHOWN)],
        "on hold": [
            {"result": r.id, "study": r.study_instance_uid, "why": r.hold_reason} for r in held_results(session)
        ],
        "outbox": [
            {"destination": name, "state": str(s), "objects": n} for (name, s), n in count_items(session).items()
        ],
        "undelivered": [
            {"object": i.id, "destination": i.destination, "kind": i.kind, "detail": i.detail}
            for i in list_items(session, Delivery.DEAD, limit=SHOWN)
        ],
        "quarantine": [
            {"file": q.path, "instance": q.sop_instance_uid, "from": q.calling_ae_title, "why": q.reason}
            for q in session.scalars(select(QuarantineRow).order_by(QuarantineRow.arrived_at.desc()).limit(SHOWN))
        ],
        "calibrations": [_calibration(s) for s in key_states(session, now, config.calibration_choice.commissioning)],
    }


def _result(result: StudyResult) -> dict[str, Any]:
    return {
        "result": result.id,
        "study": result.study_instance_uid,
        "version": f"{result.version}.{result.revision}",
        "kind": result.kind,
        "status": result.status,
        "why": ", ".join(reason.code for reason in result.reasons),
        "finished": _text(result.finished_at),
        "superseded by": result.superseded_by,
    }


def _held(result: StudyResult) -> dict[str, Any]:
    return {"result": result.id, "study": result.study_instance_uid, "why": result.hold_reason}


def _calibration(state: KeyState) -> dict[str, Any]:
    return {
        "key": describe_key(state.key),
        "state": str(state.state),
        "scans": f"{state.accepted_scans} of {state.needed_scans}",
        "missing": state.missing,
        "last accepted": _text(state.last_accepted),
        "next due": _text(state.next_due),
    }


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def wide_console() -> Console:
    """As wide as the terminal; wide enough for whole UIDs where the output goes to a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 220)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ("nothing",):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table


def requeue_work(config: Config, what: str) -> str:
    """Put a study's newest job back into the queue, or with "outbox" every undelivered object."""
    sessions = open_database(config.database_url, upgrade=False)
    with sessions.begin() as session:
        if what == "outbox":
            return f"{requeue_dead(session, datetime.now(UTC))} objects will be sent again"
        job = requeue(session, what, datetime.now(UTC))
        if job is None and study_facts(session, what) is not None:
            release_study(session, what)
            return f"study {what} is analysed as it is, whatever it waits for"
    if job is None:
        raise QctError(f"no study {what} is known; `qct-node status` lists studies and jobs")
    return f"study {what} version {job.version} is queued again"


def show_calibrations(config: Config, plot: Path | None, declare: str | None, why: str) -> None:
    """List the keys; with `plot` write one chart per key, with `declare` take a key into service."""
    sessions = open_database(config.database_url, upgrade=False)
    with sessions.begin() as session:
        if declare is not None:
            _declare(session, declare, why)
        states = key_states(session, datetime.now(UTC), config.calibration_choice.commissioning)
        if plot is not None:
            _plot(session, plot, config)
    rows = [{"number": number, **_calibration(state)} for number, state in enumerate(states, start=1)]
    wide_console().print(_table("calibrations", rows))


def _declare(session: Session, number: str, why: str) -> None:
    keys = all_keys(session)
    if not number.isdigit() or not 1 <= int(number) <= len(keys):
        raise ConfigError(f"key {number!r} found; a number from 1 to {len(keys)} of `qct-node calibrations` expected")
    if not why.strip():
        raise ConfigError("no --reason found; say why this key is declared commissioned, it is recorded")
    declare_commissioned(session, keys[int(number) - 1], why, getpass.getuser(), datetime.now(UTC))


def _plot(session: Session, folder: Path, config: Config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, key in enumerate(all_keys(session), start=1):
        epochs = tuple(start for start, _ in epochs_of(session, key.device_serial_number))
        chart = series_charts(history(session, key), epochs, config.quality_control)
        (folder / f"calibration-{number}.png").write_bytes(chart)
