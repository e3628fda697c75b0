"""kill -9 at any moment loses no acknowledged instance; a longer run: `python -m tests.studies.kill_receiver`."""

from pathlib import Path

import pytest

from tests.studies.kill_receiver import kill_many

KILLS = 26


@pytest.mark.slow
def test_26_kills_under_load_lose_no_acknowledged_instance(tmp_path: Path) -> None:
    report = kill_many(tmp_path, KILLS, seed=20260105)
    assert report.lost == ()
    assert report.acknowledged > 2 * KILLS, "the receiver worked between the kills"
    assert (report.left_over, report.rows_without_file) == (0, 0)
