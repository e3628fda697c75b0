"""`qct-node calibrations`: every key with its state, the site's declarations, the control charts."""

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.orm import Session

from analysis.errors import ConfigError
from analysis.qc_charts import series_charts
from analysis.results import CalibrationKey
from node.analysis_setup import site_timezone
from node.config import Config
from node.status import calibration_row, table_of, wide_console
from storage.calibration_declarations import Declaration, NewEpoch, declarations, declare_commissioned, declare_epoch
from storage.calibrations import all_keys, epochs_of, history, key_states
from storage.schema import open_database


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What the command line asks for; keys are named by their number in the list."""

    plot: Path | None = None
    declare: str | None = None
    new_epoch: str | None = None
    since: str | None = None
    reason: str = ""


def show_calibrations(config: Config, request: CalibrationRequest) -> None:
    """List the keys; write charts, take a key into service or begin a new epoch of a scanner where asked to."""
    sessions = open_database(config.database_url, upgrade=False)
    now = datetime.now(UTC)
    held: tuple[str, ...] = ()
    with sessions.begin() as session:
        if request.declare is not None:
            key = _key(session, request.declare, request.reason)
            declare_commissioned(session, key, request.reason, getpass.getuser(), now)
        if request.new_epoch is not None:
            held = _begin_epoch(session, request, config, now)
        states = key_states(session, now, config.calibration_choice.commissioning)
        trail = declarations(session)
        if request.plot is not None:
            _plot(session, request.plot, config)
    console = wide_console()
    rows = [{"number": number, **calibration_row(state)} for number, state in enumerate(states, start=1)]
    console.print(table_of(rows) if rows else "no calibrations yet: no phantom scan was accepted")
    if trail:
        console.print("\ndeclared by the site:", markup=False, highlight=False)
        console.print(table_of([_declaration_row(one) for one in trail]))
    if held:
        console.print(f"on hold, to be analysed again with `qct-node requeue STUDY`: {', '.join(held)}")


def _declaration_row(one: Declaration) -> dict[str, str]:
    return {
        "what": one.what,
        "about": one.about,
        "since": one.starts_at.isoformat(timespec="minutes"),
        "why": one.reason,
        "by": one.declared_by,
        "declared": one.declared_at.isoformat(timespec="minutes"),
    }


def _key(session: Session, number: str, why: str) -> CalibrationKey:
    keys = all_keys(session)
    if not number.isdigit() or not 1 <= int(number) <= len(keys):
        raise ConfigError(f"key {number!r} found; a number from 1 to {len(keys)} of `qct-node calibrations` expected")
    if not why.strip():
        raise ConfigError("no --reason found; say why, it is recorded")
    return keys[int(number) - 1]


def _begin_epoch(session: Session, request: CalibrationRequest, config: Config, now: datetime) -> tuple[str, ...]:
    serial = _key(session, request.new_epoch or "", request.reason).device_serial_number
    starts_at = _moment(request.since, config) if request.since else now
    if starts_at > now:
        raise ConfigError(f"--since {request.since} found; a moment that has passed expected")
    return declare_epoch(session, NewEpoch(serial, starts_at, request.reason, getpass.getuser()), now)


def _moment(text: str, config: Config) -> datetime:
    """Local time of the site unless the text says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--since {text!r} found; a date and time as in 2026-05-01T07:30 expected") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=site_timezone(config))).astimezone(UTC)


def _plot(session: Session, folder: Path, config: Config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, key in enumerate(all_keys(session), start=1):
        epochs = tuple(start for start, _ in epochs_of(session, key.device_serial_number))
        chart = series_charts(history(session, key), epochs, config.quality_control)
        (folder / f"calibration-{number}.png").write_bytes(chart)
