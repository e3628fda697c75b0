"""The node as numbers: `qct-node status --json` and a text file for Prometheus; no name, ID or UID of a patient.

The file is in Prometheus's text exposition format 0.0.4, for node_exporter's textfile collector: it is written whole
under another name and renamed, as that collector asks. Its age is `node_textfile_mtime_seconds` there.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from analysis.calibration_state import KeyState, SeriesState
from analysis.version import SOFTWARE_VERSION
from node.config import Config
from storage.calibrations import describe_key, key_states
from storage.inbox import DiskState, disk_state_of
from storage.jobs import JobState
from storage.outbox import Delivery
from storage.overview import Backlog, Overview, read_overview

REFUSALS_DAYS = 7
LATE_DELIVERY_H = 1.0  # a destination that was away this long is worth a look
READABLE_BY_ALL = 0o644  # the collector runs under another account


@dataclass(frozen=True, slots=True)
class NodeState:
    """Everything that is monitored, at one moment."""

    now: datetime
    overview: Overview
    calibrations: tuple[KeyState, ...]
    disk: DiskState


def read_state(session: Session, config: Config, now: datetime) -> NodeState:
    """Ask database and disk."""
    return NodeState(
        now,
        read_overview(session, now - timedelta(days=REFUSALS_DAYS)),
        tuple(key_states(session, now, config.calibration_choice.commissioning)),
        disk_state_of(config.storage.folder, config.disk),
    )


def as_json(state: NodeState) -> dict[str, Any]:
    """The numbers by subject; times are seconds or days before now."""
    o = state.overview
    return {
        "at": state.now.isoformat(timespec="seconds"),
        "software": SOFTWARE_VERSION,
        "studies": {
            "receiving": o.receiving.number,
            "oldest_receiving_s": _age_s(o.receiving, state.now),
            **{str(job_state): number for job_state, number in o.jobs.items()},
            "oldest_queued_s": _age_s(o.queued, state.now),
        },
        "results": [{"kind": k, "status": s, "studies": n} for (k, s), n in sorted(o.results.items())],
        f"refusals_last_{REFUSALS_DAYS}_days": dict(sorted(o.refusals.items())),
        "results_on_hold": o.on_hold,
        "outbox": [_destination(o, name, state.now) for name in _destinations(o)],
        "calibrations": [_calibration(key, state.now) for key in state.calibrations],
        "quarantine": {"files": o.quarantine.number, "oldest_s": _age_s(o.quarantine, state.now)},
        "disk": {
            "free_bytes": state.disk.free_bytes,
            "used_fraction": round(state.disk.used_fraction, 4),
            "refuses_associations": state.disk.refuses_associations,
            "refuses_instances": state.disk.refuses_instances,
        },
    }


def attention(state: NodeState) -> list[str]:
    """What needs a person, one line each; empty: nothing does."""
    o = state.overview
    dead_jobs, dead_objects = o.jobs[JobState.DEAD], sum(n for (_, s), n in o.outbox.items() if s is Delivery.DEAD)
    lines = [
        (dead_jobs, f"{dead_jobs} studies were put aside: their analysis failed"),
        (dead_objects, f"{dead_objects} result objects were put aside: their destination refuses them for good"),
        (o.on_hold, f"{o.on_hold} results are in doubt: a phantom scan failed after them"),
        (o.quarantine.number, f"{o.quarantine.number} second, different copies of images were put aside"),
        (state.disk.refuses_associations, f"images are refused: {state.disk.refuses_associations}"),
    ]
    return [text for found, text in lines if found] + [*_late(state), *_calibration_faults(state)]


def _late(state: NodeState) -> Iterator[str]:
    for destination, waits in sorted(state.overview.undelivered.items()):
        hours = _age_s(waits, state.now) / 3600
        if hours >= LATE_DELIVERY_H:
            yield f"{waits.number} result objects for {destination} are not delivered, the oldest for {hours:.0f} h"


def _calibration_faults(state: NodeState) -> Iterator[str]:
    for one in state.calibrations:
        if one.state in (SeriesState.REPEAT_REQUESTED, SeriesState.STOPPED):
            yield f"calibration {one.state}: {describe_key(one.key)}"
        elif one.next_due is not None and one.next_due < state.now:
            yield f"phantom scan overdue for {_days(state.now - one.next_due):.0f} days: {describe_key(one.key)}"


def prometheus_text(state: NodeState, faults: Sequence[str] = ()) -> str:
    """One line per number, each family with its meaning."""
    lines = []
    for name, meaning, samples in _families(state, faults):
        lines += [f"# HELP qct_{name} {meaning}", f"# TYPE qct_{name} gauge"]
        lines += [f"qct_{name}{_labels(labels)} {value:g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def write_prometheus_file(path: Path, text: str) -> None:
    """Replace the file at once; OSError where it cannot be written."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")  # the collector reads *.prom only
    unfinished.write_text(text, encoding="utf-8")
    unfinished.chmod(READABLE_BY_ALL)
    unfinished.rename(path)


_Sample = tuple[dict[str, str], float]


def _families(state: NodeState, faults: Sequence[str]) -> Iterator[tuple[str, str, list[_Sample]]]:
    yield "in_order", "1 while every check of the running node passes", [({}, float(not faults))]
    yield "fault", "1 for each part of the running node that is not in order", [({"part": p}, 1.0) for p in faults]
    yield from _work(state.overview, state.now)
    yield from _deliveries(state.overview, state.now)
    yield from _calibration_families(state)
    yield "disk_free_bytes", "Free on the disk of images and results", [({}, float(state.disk.free_bytes))]
    yield "disk_used_fraction", "Used of what the node may write to", [({}, state.disk.used_fraction)]
    refused = float(state.disk.refuses_associations is not None)
    yield "disk_refuses", "1 while images are refused because the disk is nearly full", [({}, refused)]


def _work(o: Overview, now: datetime) -> Iterator[tuple[str, str, list[_Sample]]]:
    yield "studies_receiving", "Studies that are not complete yet", [({}, float(o.receiving.number))]
    yield "oldest_receiving_seconds", "Since the oldest of them began", [({}, _age_s(o.receiving, now))]
    yield "jobs", "Studies by state of their analysis", [({"state": str(s)}, float(n)) for s, n in o.jobs.items()]
    yield "oldest_queued_seconds", "Since the oldest queued study waits", [({}, _age_s(o.queued, now))]
    results = [({"kind": kind, "status": status}, float(n)) for (kind, status), n in sorted(o.results.items())]
    yield "results", "Results that stand, by kind and status", results
    refusals = [({"reason": code}, float(n)) for code, n in sorted(o.refusals.items())]
    yield "refusals_recent", f"Reasons of the refusals of the last {REFUSALS_DAYS} days", refusals
    yield "results_on_hold", "Results in doubt since a phantom scan failed", [({}, float(o.on_hold))]
    yield "quarantined_files", "Second, different copies that were put aside", [({}, float(o.quarantine.number))]


def _deliveries(o: Overview, now: datetime) -> Iterator[tuple[str, str, list[_Sample]]]:
    objects = [({"destination": d, "state": str(s)}, float(n)) for (d, s), n in sorted(o.outbox.items())]
    yield "outbox_objects", "Result objects by destination and state; dead ones need a person", objects
    ages = [({"destination": d}, _age_s(found, now)) for d, found in sorted(o.undelivered.items())]
    yield "outbox_oldest_seconds", "Since the oldest undelivered object was queued", ages


def _calibration_families(state: NodeState) -> Iterator[tuple[str, str, list[_Sample]]]:
    keys = [({"key": describe_key(one.key)}, one) for one in state.calibrations]
    states = [({**key, "state": str(s)}, float(one.state is s)) for key, one in keys for s in SeriesState]
    yield "calibration_state", "1 for the state that a scanner's calibration is in", states
    ages = [(key, one.age_days) for key, one in keys if one.age_days is not None]
    yield "calibration_age_days", "Since the last accepted phantom scan", ages
    due = [(key, _days(one.next_due - state.now)) for key, one in keys if one.next_due is not None]
    yield "calibration_due_days", "Until the next phantom scan is due; negative: overdue", due


def _destinations(o: Overview) -> list[str]:
    return sorted({destination for destination, _ in o.outbox})


def _destination(o: Overview, name: str, now: datetime) -> dict[str, Any]:
    states = {str(state): o.outbox.get((name, state), 0) for state in Delivery}
    return {"destination": name, **states, "oldest_undelivered_s": _age_s(o.undelivered.get(name), now)}


def _calibration(one: KeyState, now: datetime) -> dict[str, Any]:
    return {
        "key": describe_key(one.key),
        "state": str(one.state),
        "accepted_scans": one.accepted_scans,
        "needed_scans": one.needed_scans,
        "age_days": None if one.age_days is None else round(one.age_days, 2),
        "due_in_days": None if one.next_due is None else round(_days(one.next_due - now), 2),
        "reasons": [reason.code for reason in one.reasons],
    }


def _age_s(backlog: Backlog | None, now: datetime) -> float:
    """0 where nothing waits, so that an alarm's threshold needs no exception."""
    if backlog is None or backlog.oldest_at is None:
        return 0.0
    return max(0.0, round((now - backlog.oldest_at).total_seconds(), 1))


def _days(duration: timedelta) -> float:
    return duration / timedelta(days=1)


def _labels(labels: dict[str, str]) -> str:
    """Backslash, quote and line feed are escaped: the exposition format's only three."""
    if not labels:
        return ""
    escaped = (v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for v in labels.values())
    return "{" + ",".join(f'{key}="{value}"' for key, value in zip(labels, escaped, strict=True)) + "}"
