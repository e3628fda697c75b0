"""Every table in one place, and the schema's version: Alembic migrations run at start.

A migration that changes an existing SQLite file first writes a copy beside it (`node.sqlite.before-0002`).
"""

from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import sessionmaker

from analysis.errors import DatabaseError
from storage import (  # noqa: F401  registers their tables
    calibration_tables,
    cohort_tables,
    commitments,
    jobs,
    outbox,
    received_tables,
    study_results,
)
from storage.database import Base, SessionFactory, check_sound, damaged_text, describe, make_engine

MIGRATIONS = Path(__file__).with_name("migrations")
TABLES = Base.metadata


def open_database(url: str, *, upgrade: bool = True, read_only: bool = False) -> SessionFactory:
    """Connect, check that the database is sound, bring it to this version's schema, and return its sessions.

    Parameters
    ----------
    url : for example "sqlite:////var/lib/qct-node/node.sqlite" or "postgresql+psycopg://user@host/name"
    upgrade : False leaves the schema alone and refuses one that is not this version's
    read_only : nothing at all can be written through these sessions, and no file is made; leaves the schema alone too

    Raises
    ------
    DatabaseError : damaged, newer than this version, or not reachable
    """
    engine = make_engine(url, read_only=read_only)
    try:
        with engine.connect() as connection:
            check_sound(connection)
        upgrade_schema(engine, upgrade=upgrade and not read_only)
    except DBAPIError as error:
        if engine.dialect.name == "sqlite" and not isinstance(error, OperationalError):
            raise DatabaseError(damaged_text(engine, str(error.orig))) from error
        raise DatabaseError(
            f"database {describe(engine)} cannot be opened: {' '.join(str(error.orig).split())}; check the path, "
            "its permissions and the disk, or the server and the account's rights there"
        ) from error
    return sessionmaker(engine, expire_on_commit=False)


def upgrade_schema(engine: Engine, *, upgrade: bool) -> None:
    """Bring the database to this version's schema.

    Raises
    ------
    DatabaseError : written by a newer version, holds foreign tables, or is older and `upgrade` is False
    """
    script = ScriptDirectory.from_config(_alembic_config())
    found, newest = schema_version(engine), script.get_current_head()
    if found == newest:
        return
    _refuse_unknown(engine, found, script)
    if not upgrade:
        raise DatabaseError(
            f"database {describe(engine)} has schema {found or 'none'}, expected {newest}; "
            "start the node once, it upgrades the schema"
        )
    if found is not None:
        _copy_aside(engine, str(newest))
    config = _alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def schema_version(engine: Engine) -> str | None:
    """The revision the database stands at; None when it is empty."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _refuse_unknown(engine: Engine, found: str | None, script: ScriptDirectory) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    if found is not None and found not in known:
        raise DatabaseError(
            f"database {describe(engine)} has schema {found}, this version knows up to "
            f"{script.get_current_head()}; it was written by a newer version: install that one, or "
            f"restore the copy that it made before upgrading ({engine.url.database}.before-{found})"
        )
    if found is None and inspect(engine).get_table_names():
        raise DatabaseError(
            f"database {describe(engine)} holds tables but no schema version; expected an empty "
            "database or one of qct-node's: check storage.database_url"
        )


def _copy_aside(engine: Engine, newest: str) -> None:
    """VACUUM INTO runs outside any transaction, so on the driver's own connection; an older copy gives way."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    copy = Path(f"{engine.url.database}.before-{newest}")
    copy.unlink(missing_ok=True)
    with closing(engine.raw_connection()) as connection:
        connection.cursor().execute("VACUUM INTO ?", (str(copy),))


def _alembic_config() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config
