"""A PostgreSQL server of the tests' own, a temporary cluster on a free port; one database, cleared for each test."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from storage.database import close_database
from storage.schema import TABLES, open_database

MIGRATED = "migrated"  # name of the database that tests share


def program(name: str) -> str | None:
    """Debian keeps the server's programs off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@dataclass
class PostgresqlServer:
    """`start` and `kill` may follow each other; the data stay."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """fsync is off: nothing here has to survive a power cut."""
        command = [str(program("postgres")), "-D", str(self.folder), "-p", str(self.port), "-k", str(self.folder)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **as_owner())
        ready = [str(program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + 30
        while subprocess.run(ready, check=False).returncode != 0:
            waits = time.monotonic() < deadline and self.process.poll() is None
            assert waits, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        """Immediate shutdown, as after a crash (pg_ctl(1)): every connection breaks."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=30)

    def cleared_database(self) -> str:
        """The URL of a database of this version's schema without rows; one after the other uses it."""
        tables = ", ".join(table.name for table in TABLES.sorted_tables)
        self.sql(f"TRUNCATE {tables} RESTART IDENTITY", MIGRATED)
        return self.url(MIGRATED)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://qct@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, name: str = "postgres") -> None:
        where = f"host=127.0.0.1 port={self.port} user=qct dbname={name}"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Made, run and removed; the server refuses to run as root, so it gets Debian's postgres account there."""
    folder = Path(tempfile.mkdtemp(prefix="qct-postgresql-"))
    if owner := as_owner():
        os.chown(folder, owner["user"], owner["group"])
    try:
        make = [str(program("initdb")), "-D", str(folder), "-U", "qct", "-A", "trust", "-E", "UTF8", "--locale=C"]
        subprocess.run([*make, "--no-sync"], check=True, capture_output=True, cwd=folder, **as_owner())
        server = PostgresqlServer(folder, free_port())
        server.start()
        server.sql(f"CREATE DATABASE {MIGRATED}")
        close_database(open_database(server.url(MIGRATED)))
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_owner() -> dict[str, int]:
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
