"""`qct-node status` and `requeue`: what was received, why it waits, what was reported and sent; no patient data."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from sqlalchemy import select
from sqlalchemy.orm import Session

from analysis.calibration_state import KeyState
from analysis.errors import QctError
from node.config import Config
from node.monitoring import as_json as summary_json
from node.monitoring import attention, read_state
from storage.calibrations import describe_key, key_states
from storage.completeness import CompletenessRules, due_studies, waiting
from storage.instances import release_study, study_facts
from storage.jobs import Job, JobState, list_jobs, requeue
from storage.outbox import Delivery, group_items, list_items, requeue_dead
from storage.received_tables import QuarantineRow
from storage.schema import open_database
from storage.study_results import StudyResult, held_results, recent_results

SHOWN = 20
# what each section of the status is, as a title for people
TITLES = {
    "waiting": "studies that are not complete yet",
    "jobs": "analyses that wait, run or were put aside (dead: `qct-node requeue STUDY` tries again)",
    "results": f"the last {SHOWN} results",
    "on_hold": "results in doubt, since a phantom scan failed after them",
    "outbox": "result objects by destination",
    "undelivered": "result objects that were put aside (`qct-node requeue outbox` sends them again)",
    "quarantine": "second copies with other bytes under a known UID: the first is kept, these are not analysed",
    "calibrations": "calibrations, by scanner and protocol",
}


def show_status(config: Config, as_json: bool) -> None:
    """Print the state of the node for people, or as JSON for a monitoring system."""
    sessions = open_database(config.database_url, upgrade=False)
    now = datetime.now(UTC)
    with sessions.begin() as session:
        state = read_state(session, config, now)
        sections = read_status(session, config, now)
    if as_json:
        for job in sections["jobs"]:
            del job["detail"]  # the words of an unforeseen error may hold text of the study
        found = {"attention": attention(state), "summary": summary_json(state), **sections}
        sys.stdout.write(f"{json.dumps(found, indent=2)}\n")
        return
    console = wide_console()
    for line in attention(state) or ["nothing needs attention"]:
        console.print(line, style="bold", markup=False, highlight=False)
    disk = f"disk: {state.disk.free_bytes / 2**30:.1f} GiB free, {state.disk.used_fraction:.0%} used"
    console.print(disk, markup=False, highlight=False)
    for name, rows in sections.items():
        console.print(f"\n{TITLES[name]}:{'' if rows else ' none'}", markup=False, highlight=False)
        if rows:
            console.print(table_of(rows))


def read_status(session: Session, config: Config, now: datetime) -> dict[str, list[dict[str, Any]]]:
    """Every section as rows of plain values."""
    return {
        "waiting": _waiting(session, config.completeness, now),
        "jobs": [_job(j) for j in list_jobs(session, JobState.QUEUED, JobState.RUNNING, JobState.DEAD, limit=SHOWN)],
        "results": [_result(r) for r in recent_results(session, SHOWN)],
        "on_hold": [{"study": r.study_instance_uid, "why": r.hold_reason} for r in held_results(session)],
        "outbox": [
            {"destination": g.destination, "state": str(g.state), "objects": g.number, "since": _text(g.oldest_at),
             "why": f"stored there, not confirmed by it yet: {g.detail}" if g.state is Delivery.SENT else g.detail}
            for g in group_items(session)
        ],
        "undelivered": [
            {"destination": i.destination, "study": i.study_instance_uid, "kind": i.kind, "why": i.detail}
            for i in list_items(session, Delivery.DEAD, limit=SHOWN)
        ],
        "quarantine": [
            {"file": q.path, "instance": q.sop_instance_uid, "from": q.calling_ae_title, "arrived": _text(q.arrived_at)}
            for q in session.scalars(select(QuarantineRow).order_by(QuarantineRow.arrived_at.desc()).limit(SHOWN))
        ],
        "calibrations": [calibration_row(s) for s in key_states(session, now, config.calibration_choice.commissioning)],
    }  # fmt: skip


def _waiting(session: Session, rules: CompletenessRules, now: datetime) -> list[dict[str, Any]]:
    """Those that are due too: a node that runs takes them within a second, so here they show that it does not."""
    due = [(d.study_instance_uid, d.version, f"{d.reason}; taken as soon as the node runs", now)
           for d in due_studies(session, now, rules)]  # fmt: skip
    waits = [(w.study_instance_uid, w.version, w.reason, w.due_at) for w in waiting(session, now, rules)]
    return [{"study": s, "version": version, "why": why, "due": _text(at)} for s, version, why, at in due + waits]


def _job(job: Job) -> dict[str, Any]:
    return {
        "study": job.study_instance_uid,
        "version": job.version,
        "state": str(job.state),
        "since": _text(job.finished_at or job.started_at or job.queued_at),
        "detail": job.detail,
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


def calibration_row(state: KeyState) -> dict[str, Any]:
    """One key for people."""
    return {
        "key": describe_key(state.key),
        "state": str(state.state),
        "scans": f"{state.accepted_scans} of {state.needed_scans}",
        "needs": state.missing,
        "last accepted": _text(state.last_accepted),
        "next due": _text(state.next_due),
    }


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def wide_console() -> Console:
    """As wide as the terminal; wide enough for whole UIDs where the output goes to a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 220)


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Rows of plain values, with their names as the head."""
    table = Table(*(Column(name, overflow="fold") for name in rows[0]))
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
