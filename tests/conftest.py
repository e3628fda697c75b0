"""Databases that tests share: every test of the stored state runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from storage.database import SessionFactory, close_database, sqlite_url
from storage.schema import open_database
from tests.postgresql_server import PostgresqlServer, postgresql_server, program


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """One server for the whole run, started by the first test that asks for it."""
    if program("postgres") is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgresql_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of this version's schema on either of the two."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "node.sqlite")
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.cleared_database()


@pytest.fixture
def sessions(database_url: str) -> Iterator[SessionFactory]:
    found = open_database(database_url)
    yield found
    close_database(found)


@pytest.fixture
def session(sessions: SessionFactory) -> Iterator[Session]:
    with sessions.begin() as found:
        yield found
