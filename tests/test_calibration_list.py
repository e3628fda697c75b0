"""`qct-node calibrations`: the list, a declared key, a new epoch; what is asked for without a reason is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from node.commands import app
from storage.calibration_declarations import Declaration, declarations
from storage.calibrations import save_calibration
from storage.schema import open_database
from tests.phantom_builders import MONDAY, quiet_weeks


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A node with eleven weeks of phantom scans of one key."""
    with open_database(f"sqlite:///{tmp_path / 'site.sqlite'}").begin() as session:
        for one in quiet_weeks(11):
            save_calibration(session, one, one.acquired)
    config = tmp_path / "config.yaml"
    config.write_text(f"storage:\n  folder: {tmp_path}\n  database_url: sqlite:///{tmp_path / 'site.sqlite'}\n")
    return config


def run(site: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["calibrations", "--config", str(site), *options])


def trail(site: Path) -> tuple[Declaration, ...]:
    with open_database(f"sqlite:///{site.parent / 'site.sqlite'}").begin() as session:
        return declarations(session)


def test_a_new_epoch_is_declared_for_the_scanner_of_a_key_and_shown_with_who_and_why(site: Path) -> None:
    since = (MONDAY + timedelta(weeks=9.5)).isoformat()
    done = run(site, "--new-epoch", "1", "--since", since, "--reason", "tube replaced")
    assert done.exit_code == 0, done.output
    assert "commissioning" in done.output and "tube replaced" in done.output and "1 of 3" in done.output
    (entry,) = trail(site)
    assert (entry.what, entry.about, entry.starts_at) == ("new epoch", "scanner CT1", MONDAY + timedelta(weeks=9.5))
    assert entry.declared_by and abs(entry.declared_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert "tube replaced" in run(site).output


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--new-epoch", "1"), "no --reason"),
        (("--new-epoch", "7", "--reason", "tube"), "a number from 1 to 1"),
        (("--new-epoch", "1", "--reason", "tube", "--since", "yesterday"), "a date and time"),
        (("--new-epoch", "1", "--reason", "tube", "--since", "2999-01-01T00:00"), "has passed"),
        (("--declare", "1"), "no --reason"),
    ],
)
def test_a_declaration_that_says_too_little_is_refused_and_leaves_no_trace(
    site: Path, options: tuple[str, ...], why: str
) -> None:
    done = run(site, *options)
    assert done.exit_code == 2 and why in " ".join(done.output.split()), done.output
    assert trail(site) == ()
