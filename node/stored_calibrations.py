"""What the configured node has stored, for one study or phantom scan without the node: read only, never made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analysis.calibration_state import KeyState
from analysis.errors import ConfigError
from analysis.results import Calibration
from node.config import Config
from node.report import reasons
from storage import calibrations
from storage.calibrations import SaveLimits, describe_key
from storage.database import SessionFactory, sqlite_file
from storage.schema import open_database


def open_stored(config: Config) -> SessionFactory:
    """The configured node's database, to read only.

    Raises
    ------
    ConfigError : there is none
    """
    file = sqlite_file(config.database_url)
    if file is not None and not file.is_file():
        raise ConfigError(
            f"--stored: found no database at {file}, expected that of the node; name the node's configuration "
            "with --config, or leave --stored out"
        )
    return open_database(config.database_url, read_only=True)


@dataclass(frozen=True, slots=True)
class JudgedScan:
    """A phantom scan with its verdict, and the scans that it was judged against.

    found_state : of their series just before this scan; None when it is the first of its key
    """

    calibration: Calibration
    history: tuple[Calibration, ...] = ()
    found_state: KeyState | None = None


Judge = Callable[[Calibration], JudgedScan]


def judge_stored(config: Config) -> Judge:
    """The verdict that the node gives on arrival; a scan that it has stored keeps the stored one."""
    sessions, choice = open_stored(config), config.calibration_choice

    def judge(scan: Calibration) -> JudgedScan:
        with sessions.begin() as session:
            verdict = calibrations.judge(session, scan, SaveLimits(config.quality_control, choice))
            history = calibrations.history(session, scan.key)
            return JudgedScan(verdict, history, calibrations.state_before(session, scan, choice.commissioning))

    return judge


def series_report(state: KeyState | None) -> dict[str, Any] | None:
    """The stored series as plain values of `calibration.json`."""
    if state is None:
        return None
    return {
        "key": describe_key(state.key),
        "state": str(state.state),
        "accepted_scans": state.accepted_scans,
        "needed_scans": state.needed_scans,
        "missing": state.missing,
        "last_accepted": state.last_accepted.isoformat() if state.last_accepted else None,
        "reasons": reasons(state.reasons),
    }
