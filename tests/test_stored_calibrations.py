"""`analyse --stored` and `calibrate --stored`: the node's own choice and verdict, from its database, offline.

One simulated phantom scan in DICOM is measured; the weeks before it, stored in a real database, are that scan with
other dates and, where a test says so, other CT numbers in the rods.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import Dataset
from typer.testing import CliRunner

from analysis.calibration import build_calibration
from analysis.results import Calibration, Reason, RodMeasurement
from node import offline
from node.commands import app
from node.config import Config, load_config
from storage import calibrations
from storage.calibrations import SaveLimits, save_calibration
from storage.ct_series import CtSeries
from storage.database import close_database, sqlite_url
from storage.schema import open_database
from tests.analyse_builders import analyse_stored, calibrate, daily_phantom
from tests.phantom_builders import MODEL_3, ROD_ERRORS_HU
from tests.synthetic import ACQUIRED, ramp_volume, write_ct

Measured = tuple[Calibration, CtSeries]
Rods = tuple[RodMeasurement, ...]
Change = Callable[[int, Rods], Rods]  # the rods of the scan of `week`, week 0 being the first


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of the day before the patient."""
    return daily_phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def measured(phantom: Path) -> Measured:
    answer, series = offline._measure_phantom_folder(phantom, Config())
    assert isinstance(answer, Calibration) and answer.accepted and series is not None
    return answer, series


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch, measured: Measured) -> None:
    monkeypatch.setattr(offline, "_measure_phantom_folder", lambda folder, config: measured)


@pytest.fixture
def scan(measured: Measured) -> Calibration:
    return measured[0]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The configuration of a node whose database is there, and empty."""
    close_database(open_database(sqlite_url(tmp_path / "node.sqlite")))
    config = tmp_path / "config.yaml"
    config.write_text(f"storage:\n  folder: {tmp_path}\n")
    return config


def store(site: Path, *scans: Calibration) -> None:
    """In order of arrival, each judged as the node judges it."""
    config = load_config(site)
    sessions = open_database(config.database_url)
    with sessions.begin() as session:
        for one in scans:
            save_calibration(session, one, one.acquired, SaveLimits(config.quality_control, config.calibration_choice))
    close_database(sessions)


def unchanged(_: int, rods: Rods) -> Rods:
    return rods


def earlier(scan: Calibration, weeks: float, rods: Rods) -> Calibration:
    """The scan as it was `weeks` before, with these rods; measured, fitted and gated like any other."""
    assert scan.header is not None
    made = replace(
        scan.header,
        series_instance_uid=f"{scan.series_instance_uid}.{1000 + round(weeks * 100)}",
        acquired=scan.acquired - timedelta(weeks=weeks),
    )
    return build_calibration(made, MODEL_3, replace(scan.measurement, rods=rods))


def weeks_before(
    scan: Calibration, n: int = 12, change: Change = unchanged, last: float = 1.0
) -> tuple[Calibration, ...]:
    """`n` weekly scans, the last one `last` weeks before the scan."""
    return tuple(earlier(scan, last + n - 1 - i, change(i, scan.measurement.rods)) for i in range(n))


def with_hu(rods: Rods, differences_hu: tuple[float, ...]) -> Rods:
    return tuple(replace(rod, hu=rod.hu + d) for rod, d in zip(rods, differences_hu, strict=True))


def offset(hu: float) -> Change:
    """Every reading moved alike: by hu / 1.3 mg/cm3."""
    return lambda _, rods: with_hu(rods, (hu,) * len(rods))


def steeper(fraction: float, rods: Rods) -> Rods:
    return with_hu(rods, tuple(fraction * 1.55 * rod.density_mg_cm3 for rod in MODEL_3.rods))


def patient(folder: Path, change: Callable[[int, Dataset], None] | None = None) -> Path:
    write_ct(folder, ramp_volume((12, 16, 24)), change)
    return folder


def thick_slices(_: int, ds: Dataset) -> None:
    """Refused by the protocol: the calibration is chosen, and no segmentation follows."""
    ds.SliceThickness = "5"


def codes(found: list[dict[str, str]]) -> set[str]:
    return {one["code"] for one in found}


# --- a patient scan ---------------------------------------------------------------------------------------------------


def rejected_in_the_end(scan: Calibration) -> tuple[Calibration, ...]:
    bad = replace(earlier(scan, 0.01, scan.measurement.rods), accepted=False, reasons=(Reason("GATE_SEE", "9 HU"),))
    return (*weeks_before(scan), bad)


REFUSALS: dict[str, Callable[[Calibration], tuple[Calibration, ...]]] = {
    "CALIBRATION_COMMISSIONING": lambda scan: weeks_before(scan, 4, last=0.01),
    "CALIBRATION_STOPPED": lambda scan: (
        *weeks_before(scan), earlier(scan, 0.01, offset(12.0)(12, scan.measurement.rods)),
    ),
    "CALIBRATION_REJECTED_SINCE": rejected_in_the_end,
    "NO_CALIBRATION": lambda scan: (),
}  # fmt: skip


@pytest.mark.parametrize("code", REFUSALS)
def test_a_patient_scan_is_refused_as_the_node_refuses_it(
    code: str, scan: Calibration, site: Path, tmp_path: Path
) -> None:
    store(site, *REFUSALS[code](scan))
    exit_code, report = analyse_stored(patient(tmp_path / "ct"), tmp_path / "out", site)
    assert exit_code == 3 and codes(report["reasons"]) == {code}, report["reasons"]


def test_a_patient_scan_gets_the_calibration_and_the_flags_that_the_node_would_give_it(
    scan: Calibration, site: Path, tmp_path: Path
) -> None:
    """The last but one reading lies 2.3 mg/cm3 above all others, so that the last one moved back; a wide chart."""
    scans = weeks_before(scan, 13, lambda week, rods: offset(3.0 * (week == 11))(week, rods), last=0.1)
    site.write_text(f"{site.read_text()}quality_control:\n  sd_floor_bmd_mg_cm3: 50\n  sd_floor_hu: 50\n")
    store(site, *scans)
    exit_code, report = analyse_stored(patient(tmp_path / "ct", thick_slices), tmp_path / "out", site)
    assert exit_code == 3 and codes(report["reasons"]) == {"PROTOCOL_THICKNESS"}
    assert "QC_PREVIOUS" in codes(report["flags"])
    assert (report["calibration"]["id"], report["calibration"]["state"]) == (scans[-1].id, "normal")
    assert report["calibration"]["provisional"]


def test_a_stored_scan_after_the_patient_brackets_it(scan: Calibration, site: Path, tmp_path: Path) -> None:
    before = weeks_before(scan, 12, last=0.01)
    after = earlier(scan, -0.5, scan.measurement.rods)
    store(site, *before, after)
    _, report = analyse_stored(patient(tmp_path / "ct", thick_slices), tmp_path / "out", site)
    assert report["calibration"]["bracketing_id"] == after.id and not report["calibration"]["provisional"]
    assert after.acquired > ACQUIRED > before[-1].acquired


# --- a phantom scan ---------------------------------------------------------------------------------------------------

# what the scan is -> the weeks before it, the codes that it gets from them, and whether it is accepted
VERDICTS: dict[str, tuple[Callable[[Calibration], tuple[Calibration, ...]], set[str], bool]] = {
    "a jump of 4 mg/cm3": (
        lambda scan: weeks_before(scan, change=offset(5.0)), {"QC_STOP", "GATE_PREVIOUS", "QC_PREVIOUS"}, False,
    ),
    "with the scan before beyond 2 SD on the same side": (
        lambda scan: weeks_before(scan, change=lambda week, rods: offset(1.4 * (week < 11))(week, rods)),
        {"QC_REPEAT"}, True,
    ),
    "at the end of a drift of 1.5 % a year": (
        lambda scan: weeks_before(scan, 18, lambda week, rods: steeper(0.015 * (18 - week) / 52, rods)),
        {"QC_TREND"}, True,
    ),
    "a slope 5 % below the baseline": (
        lambda scan: weeks_before(scan, change=lambda _, rods: steeper(0.05, rods)), {"GATE_BASELINE_SIGMA"}, False,
    ),
    "a rod that changed and a scatter that shrank": (
        lambda scan: weeks_before(
            scan, change=lambda _, rods: with_hu(rods, tuple(2.2 * error for error in ROD_ERRORS_HU))
        ),
        {"GATE_BASELINE_ROD", "GATE_BASELINE_SEE"}, False,
    ),
    "rods twice as noisy as in the baseline": (
        lambda scan: weeks_before(
            scan, change=lambda _, rods: tuple(replace(rod, sd_hu=rod.sd_hu / 2) for rod in rods)
        ),
        {"GATE_BASELINE_SD"}, False,
    ),
    "as every week": (lambda scan: weeks_before(scan), set(), True),
}  # fmt: skip


SINGLE_CASES = ("QC_MISSED_WEEK",)  # it has a test of its own


@pytest.mark.parametrize("name", VERDICTS)
def test_a_phantom_scan_is_judged_against_the_stored_weeks(
    name: str, scan: Calibration, phantom: Path, site: Path, tmp_path: Path
) -> None:
    history, expected, accepted = VERDICTS[name]
    store(site, *history(scan))
    exit_code, answer = calibrate(phantom, tmp_path / "out", site, "--stored")
    found = codes(answer["reasons"])
    assert expected <= found and bool(found) == bool(expected), answer["reasons"]
    assert (exit_code, answer["accepted"]) == ((0, True) if accepted else (3, False))
    assert answer["stored_series"]["state"] == "in service" and codes(answer["stored_series"]["reasons"]) <= expected
    assert calibrate(phantom, tmp_path / "alone", site)[0] == 0, "the scan by itself is good"


def test_a_phantom_scan_after_a_missed_week_finds_its_series_overdue(
    scan: Calibration, phantom: Path, site: Path, tmp_path: Path
) -> None:
    store(site, *weeks_before(scan, last=2.0))
    _, answer = calibrate(phantom, tmp_path / "out", site, "--stored")
    (why,) = answer["stored_series"]["reasons"]
    assert why["code"] == "QC_MISSED_WEEK" and "14 days ago" in why["text"]


def test_the_first_phantom_scan_of_its_key_is_judged_by_itself(phantom: Path, site: Path, tmp_path: Path) -> None:
    exit_code, answer = calibrate(phantom, tmp_path / "out", site, "--stored")
    assert exit_code == 0 and answer["stored_series"] is None


def test_the_verdict_is_that_of_the_node_on_arrival(
    scan: Calibration, phantom: Path, site: Path, tmp_path: Path
) -> None:
    """Judged offline first, then stored by the node; afterwards the stored verdict is shown, unmoved by later scans."""
    store(site, *weeks_before(scan, change=offset(5.0)))
    _, before = calibrate(phantom, tmp_path / "before", site, "--stored")
    store(site, scan, earlier(scan, -1.0, scan.measurement.rods))
    sessions = open_database(sqlite_url(site.parent / "node.sqlite"), read_only=True)
    with sessions.begin() as session:
        kept = next(c for c in calibrations.history(session, scan.key) if c.id == scan.id)
    assert [(r["code"], r["text"]) for r in before["reasons"]] == [(r.code, r.text) for r in kept.reasons]
    assert calibrate(phantom, tmp_path / "after", site, "--stored")[1] == before


# --- the database -----------------------------------------------------------------------------------------------------


def test_neither_command_changes_the_database(scan: Calibration, phantom: Path, site: Path, tmp_path: Path) -> None:
    store(site, *weeks_before(scan, last=0.01))
    before = (tmp_path / "node.sqlite").read_bytes()
    calibrate(phantom, tmp_path / "phantom", site, "--stored")
    analyse_stored(patient(tmp_path / "ct", thick_slices), tmp_path / "patient", site)
    assert (tmp_path / "node.sqlite").read_bytes() == before


@pytest.mark.parametrize("command", ["analyse", "calibrate"])
def test_without_a_database_one_line_says_what_to_do_and_nothing_is_made(
    command: str, phantom: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"storage:\n  folder: {tmp_path}/nowhere\n")
    options = ["--stored", "--config", str(config), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [command, str(phantom), *options])
    assert done.exit_code == 2 and done.output.count("\n") == 1
    assert f"found no database at {tmp_path}/nowhere/node.sqlite" in done.output and "--config" in done.output
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "out").exists()


def test_phantom_scans_of_the_run_and_stored_ones_exclude_each_other(phantom: Path, site: Path, tmp_path: Path) -> None:
    options = ["--stored", "--phantom", str(phantom), "--config", str(site), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["analyse", str(phantom), *options])
    assert done.exit_code == 2 and "found --phantom and --stored; expected one" in done.output
