"""Engine, sessions and the declarative base: SQLite in WAL mode by default, PostgreSQL by URL.

One convention: every change is one short transaction, `with sessions.begin() as session:`. A transaction takes the
database's one write lock when it begins (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock), so that what it reads
stays true until it commits, and two writers wait for each other instead of failing.
Times are stored as UTC and come back timezone-aware. `storage.schema.open_database` opens a database.
"""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Dialect, Engine, TypeDecorator, create_engine, event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import NullPool

from analysis.errors import DatabaseError

BUSY_TIMEOUT_MS = 30_000  # how long a writer waits for another one before it gives up
POOL_SIZE = 20  # more than the associations that write at once
POSTGRESQL_LOCK = 0x514354  # any number that no other program in the same database uses
# libpq's own defaults wait for minutes or hours on a server that is gone; what stands in the URL goes before these
POSTGRESQL_SETTINGS: dict[str, str | int] = {
    "connect_timeout": 10,  # s
    "tcp_user_timeout": 30_000,  # ms without an answer to what was sent
    "keepalives_idle": 30,  # s without traffic
    "application_name": "qct-node",
    "client_encoding": "utf8",  # else the server's own; of SQL_ASCII the driver makes bytes, not text
    "options": f"-c lock_timeout={BUSY_TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000",  # ms
}

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


def make_engine(url: str, *, read_only: bool = False) -> Engine:
    """An engine with durable SQLite settings, or PostgreSQL's own. Nothing is opened yet.

    With `read_only` the database itself refuses every change, no file is made, and no writer has to wait.
    """
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        settings = {} if sqlite else {k: v for k, v in POSTGRESQL_SETTINGS.items() if k not in parsed.query}
        pool = _reading(sqlite, parsed.database) if read_only else _pool(sqlite, parsed.database)
        engine = create_engine(parsed, pool_pre_ping=not sqlite, connect_args=settings, **pool)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise DatabaseError(
            f"storage.database_url: {error}; expected sqlite:///PATH or postgresql+psycopg://..."
        ) from error
    if sqlite:
        event.listen(engine, "connect", _wait_for_locks if read_only else _set_pragmas)
    event.listen(engine, "begin", _BEGIN[sqlite, read_only])
    return engine


def close_database(sessions: SessionFactory) -> None:
    """Close every pooled connection; SQLite folds its write-ahead log back into the file."""
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    engine.dispose()


def check_sound(connection: Connection) -> None:
    """Refuse a damaged SQLite file, or a PostgreSQL database that cannot hold any text, with one line."""
    if connection.dialect.name != "sqlite":
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise DatabaseError(
                f"database {describe(connection.engine)} has encoding {encoding}, expected UTF8: make it with "
                "createdb --encoding=UTF8 --template=template0"
            )
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


def _reading(sqlite: bool, database: str | None) -> dict[str, Any]:
    """https://www.sqlite.org/uri.html: mode=ro neither changes the file nor makes one.

    Where no node runs, SQLite leaves an empty log (-wal, -shm) beside it, which the next writer takes over.
    """
    if not sqlite:
        return {"poolclass": NullPool}
    uri = f"{Path(database or '').absolute().as_uri()}?mode=ro"
    return {"poolclass": NullPool, "creator": lambda: sqlite3.connect(uri, uri=True)}


def _wait_for_locks(connection: DBAPIConnection, _record: object) -> None:
    assert isinstance(connection, sqlite3.Connection)
    connection.isolation_level = None  # SQLAlchemy's documented way to take BEGIN into our own hands
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


def _set_pragmas(connection: DBAPIConnection, record: object) -> None:
    """https://www.sqlite.org/pragma.html: FULL makes a commit in WAL mode survive a power cut."""
    assert isinstance(connection, sqlite3.Connection)
    _wait_for_locks(connection, record)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _take_advisory_lock(connection: Connection) -> None:
    """Given back by the server when the transaction, or the connection, ends."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRESQL_LOCK})")


def _begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _begin_reading_postgresql(connection: Connection) -> None:
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


# (SQLite, read only) -> how a transaction begins; each reads one state of the database to its end
_BEGIN: dict[tuple[bool, bool], Callable[[Connection], None]] = {
    (True, False): _begin_immediate,
    (True, True): _begin_reading,
    (False, False): _take_advisory_lock,
    (False, True): _begin_reading_postgresql,
}


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for another database, or for a URL that `make_engine` refuses."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
