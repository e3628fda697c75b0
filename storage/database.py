"""Engine, sessions and the declarative base: SQLite in WAL mode by default, PostgreSQL by URL.

One convention: every change is one short transaction, `with sessions.begin() as session:`. On SQLite a transaction
takes the write lock when it begins (BEGIN IMMEDIATE), so that two writers wait for each other instead of failing.
Times are stored as UTC and come back timezone-aware. `storage.schema.open_database` opens a database.
"""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Dialect, Engine, TypeDecorator, create_engine, event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from analysis.errors import DatabaseError

BUSY_TIMEOUT_MS = 30_000  # how long a writer waits for another one before it gives up
POOL_SIZE = 20  # more than the associations that write at once

SessionFactory = sessionmaker[Session]


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, stored as UTC without zone so that SQLite and PostgreSQL sort it alike."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"time without zone {value}; expected a timezone-aware datetime")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Base of every table. A datetime column is UTC; a string column has no length unless it says so."""

    type_annotation_map = {datetime: UtcDateTime}


def make_engine(url: str) -> Engine:
    """An engine with durable SQLite settings, or PostgreSQL's own. Nothing is opened yet."""
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        engine = create_engine(parsed, pool_pre_ping=not sqlite, **_pool(sqlite, parsed.database))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise DatabaseError(
            f"storage.database_url: {error}; expected sqlite:///PATH or postgresql+psycopg://..."
        ) from error
    if sqlite:
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def close_database(sessions: SessionFactory) -> None:
    """Close every pooled connection; SQLite folds its write-ahead log back into the file."""
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    engine.dispose()


def check_sound(connection: Connection) -> None:
    """Refuse a damaged SQLite file at start, with one line that says how to restore it."""
    if connection.dialect.name != "sqlite":
        return
    verdict = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
    if verdict != "ok":
        raise DatabaseError(damaged_text(connection.engine, str(verdict)))


def describe(engine: Engine) -> str:
    """Name the database for a message; a password never appears."""
    return engine.url.render_as_string(hide_password=True)


def damaged_text(engine: Engine, found: str) -> str:
    """One line for a damaged file: what was found, and how to restore it."""
    path = engine.url.database or "node.sqlite"
    aside = " ".join(f"{path}{suffix}" for suffix in ("", "-wal", "-shm"))
    return (
        f"database {path} is damaged ({found.splitlines()[0]}); stop the node, keep the files ({aside}), and "
        f"restore with: sqlite3 {path} .recover | sqlite3 {path}.recovered && mv {path}.recovered {path}"
    )


def _pool(sqlite: bool, database: str | None) -> dict[str, Any]:
    in_memory = sqlite and database in (None, "", ":memory:")
    return {} if in_memory else {"pool_size": POOL_SIZE, "max_overflow": POOL_SIZE, "pool_timeout": 30}


def _set_pragmas(connection: DBAPIConnection, _record: object) -> None:
    """https://www.sqlite.org/pragma.html: FULL makes a commit in WAL mode survive a power cut."""
    assert isinstance(connection, sqlite3.Connection)
    connection.isolation_level = None  # SQLAlchemy's documented way to take BEGIN into our own hands
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"
