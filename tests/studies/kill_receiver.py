"""kill -9 of the receiver at random moments under load: how many acknowledged instances are lost?

    python -m tests.studies.kill_receiver --kills 200 --folder /var/tmp

Three senders store images (partly the same ones) while the receiver is killed and started again on the same
folder. Afterwards every instance answered with Success must be on disk with its bytes and in the database once.
"""

import argparse
import contextlib
import hashlib
import multiprocessing
import random
import signal
import tempfile
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian

from storage.database import SessionFactory, close_database, sqlite_url
from storage.inbox import Inbox
from storage.recovery import recover
from storage.schema import open_database
from storage.steady_clock import SteadyClock
from tests.network_builders import ct_slice, running_node, series_spec
from tests.raw_peer import RawPeer
from tests.test_bad_inputs import encode

SENDERS = 3
IMAGES_PER_SENDER = 120
SHARED_EVERY = 4  # each fourth image is sent by all senders
UP_S = (0.05, 0.8)  # how long the receiver lives, drawn uniformly
START_WITHIN_S = 60.0


@dataclass(frozen=True)
class KillReport:
    kills: int
    acknowledged: int
    lost: tuple[str, ...]  # acknowledged, but not on disk with its bytes and in the database
    left_over: int  # temporary files after the last recovery
    rows_without_file: int


@dataclass
class Ledger:
    """What was acknowledged, with the digest of the bytes that were sent."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, sop_instance_uid: str, digest: str) -> None:
        with self.lock:
            self.acknowledged[sop_instance_uid] = digest


def kill_many(folder: Path, kills: int, seed: int) -> KillReport:
    """Start, load and kill the receiver so many times, then compare ledger, disk and database."""
    rng = random.Random(seed)
    ledger = Ledger()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.network_builders"])
    for kill in range(kills):
        parent, child = context.Pipe()
        process = context.Process(target=_serve, args=(folder, child), daemon=True)
        process.start()
        if not parent.poll(START_WITHIN_S):
            raise RuntimeError("the receiver did not start again")
        port = parent.recv()
        senders = [threading.Thread(target=_send, args=(port, kill, number, ledger)) for number in range(SENDERS)]
        for sender in senders:
            sender.start()
        senders[0].join(timeout=rng.uniform(*UP_S))
        process.kill()
        process.join()
        for sender in senders:
            sender.join()
    return _compare(folder, kills, ledger)


def _serve(folder: Path, pipe: Connection) -> None:
    with running_node(folder) as node:
        pipe.send(node.port)
        signal.pause()


def _send(port: int, kill: int, number: int, ledger: Ledger) -> None:
    """Store images until the receiver dies; only what was answered with Success goes into the ledger."""
    own = series_spec(study_uid=f"1.2.3.{kill}.{number}", series_uid=f"1.2.4.{kill}.{number}", rows=48)
    shared = series_spec(study_uid=f"1.2.3.{kill}.9", series_uid=f"1.2.4.{kill}.9", rows=48)
    with contextlib.suppress(OSError, AssertionError), RawPeer(port) as peer:
        for index in range(IMAGES_PER_SENDER):
            ds = ct_slice(shared if index % SHARED_EVERY == 0 else own, index)
            encoded = encode(ds)
            if peer.store(ds.SOPInstanceUID, encoded).status == 0:
                digest = hashlib.sha256(ExplicitVRLittleEndian.encode() + encoded).hexdigest()
                ledger.note(str(ds.SOPInstanceUID), digest)


def _compare(folder: Path, kills: int, ledger: Ledger) -> KillReport:
    sessions, inbox = open_database(sqlite_url(folder / "node.sqlite")), Inbox(folder / "inbox")
    recover(sessions, inbox, SteadyClock().now())
    rows = _rows(sessions)
    close_database(sessions)
    lost = [uid for uid, digest in ledger.acknowledged.items() if not _is_safe(inbox, rows.get(uid), digest)]
    return KillReport(
        kills=kills,
        acknowledged=len(ledger.acknowledged),
        lost=tuple(lost),
        left_over=len(list(inbox.incoming.iterdir())),
        rows_without_file=sum(1 for path, _ in rows.values() if not (inbox.root / path).exists()),
    )


def _rows(sessions: SessionFactory) -> dict[str, tuple[str, str]]:
    with sessions.begin() as session:
        found = session.connection().exec_driver_sql("SELECT sop_instance_uid, path, digest FROM instances").all()
    return {row[0]: (row[1], row[2]) for row in found}


def _is_safe(inbox: Inbox, row: tuple[str, str] | None, digest: str) -> bool:
    """The row has the digest of the bytes that were sent, and the file holds these bytes behind its meta header."""
    if row is None or row[1] != digest:
        return False
    content = (inbox.root / row[0]).read_bytes()
    data = content[144 + int.from_bytes(content[140:144], "little") :]
    return hashlib.sha256(ExplicitVRLittleEndian.encode() + data).hexdigest() == digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is to be tested")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        report = kill_many(Path(folder), arguments.kills, arguments.seed)
    print(report)
    raise SystemExit(1 if report.lost else 0)


if __name__ == "__main__":
    main()
