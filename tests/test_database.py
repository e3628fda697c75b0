"""The database: durable settings, migrations, refusals, writers that wait for each other."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from analysis.errors import DatabaseError
from storage import schema
from storage.calibrations import history, save_calibration
from storage.database import SessionFactory, sqlite_url
from storage.jobs import JobRow, add_job, count_jobs
from storage.schema import TABLES, open_database
from tests.database_builders import NOW, database
from tests.phantom_builders import calibration


def test_sqlite_runs_in_wal_mode_with_full_synchronous_and_foreign_keys(tmp_path: Path) -> None:
    with database(tmp_path) as sessions, sessions.begin() as session:
        pragmas = [session.execute(text(f"PRAGMA {name}")).scalar_one()
                   for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")]  # fmt: skip
    assert pragmas == ["wal", 2, 1, 30_000]


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(tmp_path: Path) -> None:
    with database(tmp_path) as sessions, sessions.kw["bind"].connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, TABLES) == []


def test_opening_twice_changes_nothing(tmp_path: Path) -> None:
    with database(tmp_path) as sessions, sessions.begin() as session:
        add_job(session, "1.2.3", 1, NOW)
    with database(tmp_path) as sessions, sessions.begin() as session:
        assert sum(count_jobs(session).values()) == 1
    assert not list(tmp_path.glob("*.before-*"))


def test_a_database_of_a_newer_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with database(tmp_path) as sessions, sessions.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="schema 9999.*newer version.*install that one, or restore"):
        open_database(sqlite_url(tmp_path / "node.sqlite"))


SECOND_MIGRATION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "9002", "{head}", None, None

def upgrade():
    op.create_table("extra", sa.Column("id", sa.Integer, primary_key=True))
"""


def test_an_older_database_is_upgraded_after_a_copy_was_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(tmp_path) as sessions, sessions.begin() as session:
        add_job(session, "1.2.3", 1, NOW)
        head = session.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    newer = shutil.copytree(schema.MIGRATIONS, tmp_path / "migrations")
    (newer / "versions" / "9002_extra.py").write_text(SECOND_MIGRATION.replace("{head}", head))
    monkeypatch.setattr(schema, "MIGRATIONS", newer)
    with database(tmp_path) as sessions, sessions.begin() as session:
        assert session.execute(text("SELECT count(*) FROM extra")).scalar_one() == 0
        assert sum(count_jobs(session).values()) == 1
    monkeypatch.undo()
    with database(tmp_path, "node.sqlite.before-9002") as sessions, sessions.begin() as session:
        assert sum(count_jobs(session).values()) == 1


def test_status_does_not_upgrade_a_database(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="start the node once"):
        open_database(sqlite_url(tmp_path / "node.sqlite"), upgrade=False)


def test_who_only_reads_waits_for_no_writer_and_can_write_nothing(sessions: SessionFactory, database_url: str) -> None:
    with sessions.begin() as session:
        save_calibration(session, calibration(), calibration().acquired)
    reader = open_database(database_url, read_only=True)
    with sessions.begin(), reader.begin() as reading:
        assert history(reading, calibration().key) == (calibration(),)
    with pytest.raises(DBAPIError, match=r"(?i)read-?only"), reader.begin() as reading:
        save_calibration(reading, calibration(1), calibration(1).acquired)


def test_a_database_that_is_not_there_is_not_made_by_who_only_reads(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be opened"):
        open_database(sqlite_url(tmp_path / "node.sqlite"), read_only=True)
    assert not list(tmp_path.iterdir())


def test_tables_of_another_program_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE cookies (id INTEGER)")
    other.close()
    with pytest.raises(DatabaseError, match="expected an empty database"):
        open_database(sqlite_url(tmp_path / "other.sqlite"))


def test_a_file_that_is_no_database_is_refused_with_a_restore_command_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    path.write_bytes(b"this is no database" * 500)
    with pytest.raises(DatabaseError, match=r"is damaged .*restore with: sqlite3 .*\.recover") as raised:
        open_database(sqlite_url(path))
    assert "\n" not in str(raised.value)


def test_a_damaged_page_is_found_at_start(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    with database(tmp_path) as sessions, sessions.begin() as session:
        for number in range(150):
            add_job(session, f"1.2.{number}", 1, NOW)
    pages = bytearray(path.read_bytes())
    pages[4096 * 6 : 4096 * 10] = b"\xff" * 4096 * 4
    path.write_bytes(pages)
    with pytest.raises(DatabaseError, match="is damaged"):
        open_database(sqlite_url(path))


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be opened: unable to open database file; check the path"):
        open_database(sqlite_url(tmp_path / "none" / "node.sqlite"))


def test_a_url_that_is_none_is_one_clear_line() -> None:
    with pytest.raises(DatabaseError, match="storage.database_url"):
        open_database("not a url")


def test_times_come_back_as_they_were_whatever_their_zone(tmp_path: Path) -> None:
    berlin_noon = datetime(2026, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    with database(tmp_path) as sessions:
        with sessions.begin() as session:
            add_job(session, "1.2.3", 1, berlin_noon)
        with sessions.begin() as session:
            queued_at = session.query(JobRow).one().queued_at
    assert queued_at == berlin_noon and queued_at.tzinfo is UTC


def test_a_time_without_zone_is_an_error(tmp_path: Path) -> None:
    with (
        database(tmp_path) as sessions,
        pytest.raises(Exception, match="time without zone"),
        sessions.begin() as session,
    ):
        add_job(session, "1.2.3", 1, datetime(2026, 1, 1))


def test_ten_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    with database(tmp_path) as sessions:

        def write(writer: int) -> None:
            for number in range(5):
                with sessions.begin() as session:
                    add_job(session, f"1.{writer}.{number}", 1, NOW)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with sessions.begin() as session:
            assert sum(count_jobs(session).values()) == 50


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    """Each committed number is printed after its commit; the process dies in the middle of the next transaction."""
    code = (
        "import os, sys; from pathlib import Path; from tests.database_builders import *\n"
        "from storage.jobs import add_job\n"
        "sessions = open_database(sqlite_url(Path(sys.argv[1]) / 'node.sqlite'))\n"
        "for n in range(10):\n"
        "    with sessions.begin() as session: add_job(session, f'1.{n}', 1, NOW)\n"
        "    print(n, flush=True)\n"
        "session = sessions(); add_job(session, '9.9', 1, NOW); session.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == -9, done.stderr
    with database(tmp_path) as sessions, sessions.begin() as session:
        kept = {row.study_instance_uid for row in session.query(JobRow)}
    assert kept == {f"1.{n}" for n in done.stdout.split()}
