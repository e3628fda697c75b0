"""What is PostgreSQL's own: schema, refusals at start, a receiver on it, a server that goes away and comes back.

Jobs, outbox, completeness, calibrations and a killed node run on both databases in their own files.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select

from analysis.errors import DatabaseError
from storage.database import SessionFactory
from storage.instances import series_of_study
from storage.jobs import add_job, count_jobs
from storage.received_tables import AssociationRow
from storage.schema import TABLES, open_database
from tests.database_builders import NOW
from tests.network_builders import (
    RunningNode,
    ct_slice,
    running_node,
    series_spec,
    storescu,
    wait_until,
    write_file,
    write_series,
)
from tests.postgresql_server import PostgresqlServer


@pytest.fixture
def url(postgresql: PostgresqlServer) -> str:
    return postgresql.cleared_database()


@pytest.fixture
def node(url: str, tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "node", database_url=url) as running:
        yield running


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(url: str) -> None:
    with open_database(url).kw["bind"].connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, TABLES) == []


def test_opening_again_keeps_what_is_there(url: str) -> None:
    with open_database(url).begin() as session:
        add_job(session, "1.2.3", 1, NOW)
    with open_database(url, upgrade=False).begin() as session:
        assert sum(count_jobs(session).values()) == 1


def test_a_transaction_waits_for_the_one_before_it_as_on_sqlite(url: str) -> None:
    """What is read stays true until the commit: ten that read, think and write lose no step."""
    sessions = open_database(url)

    def work() -> None:
        with sessions.begin() as session:
            found = sum(count_jobs(session).values())
            time.sleep(0.01)
            add_job(session, f"1.{found}", 1, NOW)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions.begin() as session:
        assert sum(count_jobs(session).values()) == 10


def test_a_database_that_cannot_hold_any_text_is_refused_at_start(postgresql: PostgresqlServer) -> None:
    postgresql.sql("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    with pytest.raises(DatabaseError, match="encoding SQL_ASCII, expected UTF8"):
        open_database(postgresql.url("ascii"))


def test_an_account_without_rights_is_one_clear_line(postgresql: PostgresqlServer) -> None:
    postgresql.sql("CREATE DATABASE closed")
    postgresql.sql("CREATE ROLE nobody_special LOGIN")
    with pytest.raises(DatabaseError, match="cannot be opened: permission denied.*rights") as refused:
        open_database(postgresql.url("closed").replace("qct@", "nobody_special:secret@"))
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)


def test_a_server_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(DatabaseError, match="cannot be opened.*the server") as refused:
        open_database("postgresql+psycopg://qct:secret@127.0.0.1:1/qct")
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)


def received(sessions: SessionFactory, study_uid: str) -> int:
    with sessions.begin() as session:
        return sum(len(series.instances) for series in series_of_study(session, study_uid))


def test_images_over_four_associations_at_once_are_each_kept_once(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec(slices=40)
    write_series(spec, tmp_path / "s")
    codes: list[int] = []
    senders = [
        threading.Thread(target=lambda: codes.append(storescu(node.port, "+sd", str(tmp_path / "s")).code))
        for _ in range(4)
    ]
    for thread in senders:
        thread.start()
    for thread in senders:
        thread.join()
    assert codes == [0] * 4
    assert received(node.sessions, spec.study_uid) == 40


def test_other_bytes_under_a_known_uid_are_put_aside(node: RunningNode, tmp_path: Path) -> None:
    spec = series_spec(slices=1)
    first, second = ct_slice(spec, 0), ct_slice(spec, 0)
    second.StudyDescription = "OTHER"
    assert storescu(node.port, str(write_file(first, tmp_path / "a.dcm"))).code == 0
    storescu(node.port, str(write_file(second, tmp_path / "b.dcm")))
    assert len(list(node.inbox.quarantined.iterdir())) == 1
    assert received(node.sessions, spec.study_uid) == 1


def open_associations(sessions: SessionFactory) -> int:
    with sessions.begin() as session:
        return len(session.scalars(select(AssociationRow).where(AssociationRow.closed_at.is_(None))).all())


def test_without_the_server_there_is_no_success_and_with_it_no_error(
    postgresql: PostgresqlServer, node: RunningNode, tmp_path: Path
) -> None:
    spec = series_spec(slices=4)
    a, b, c, d = (str(path) for path in write_series(spec, tmp_path / "s"))
    assert storescu(node.port, a).code == 0
    postgresql.stop()
    try:
        answer = storescu(node.port, "-v", b)
        assert answer.code != 0 and "OutOfResources" in answer.text, answer.text
    finally:
        postgresql.start()
    assert storescu(node.port, b, c).code == 0
    postgresql.stop()
    postgresql.start()  # while nothing is sent: the first image afterwards must not pay for it
    assert storescu(node.port, d).code == 0
    assert received(node.sessions, spec.study_uid) == 4
    assert wait_until(lambda: open_associations(node.sessions) == 0, 30), "an association's end was not noted"


