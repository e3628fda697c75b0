"""The whole process: READY on a real socket, a study in and its result out, SIGTERM drains, wrong set-ups refuse."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset

from node.send_folder import Peer, send_folder
from node.service import DONE, FAULT, USAGE, Entry, main
from storage.jobs import JobState, count_jobs
from tests.database_builders import database
from tests.fake_pacs import fake_pacs
from tests.synthetic import write_ct
from tests.test_sender import free_port, wait_for

CONFIG = """
node: {{port: {port}, bind_address: 127.0.0.1}}
receiving:
  peers:
    - {{ae_title: "*", addresses: [127.0.0.0/8]}}
storage: {{folder: "{folder}", database_url: "{database_url}"}}
disk: {{refuse_below_free_bytes: 0, refuse_above_used_fraction: 1.0, stop_below_free_bytes: 0}}
completeness: {{quiet_s: 0.5, quiet_with_gap_s: 0.5}}
jobs: {{stop_grace_s: {grace_s}}}
destinations:
  - {{name: pacs, ae_title: FAKEPACS, host: 127.0.0.1, port: {pacs_port}}}
"""
PROGRAM = (
    "import sys; from pathlib import Path; from node.service import Entry, main; path = Path(sys.argv[1]); "
    "sys.exit(main(path, Entry('tests.service_entry', path)))"
)


@dataclass
class Node:
    """A running node in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    folder: Path
    said: list[str]

    def send(self, folder: Path) -> None:
        assert not send_folder(folder, Peer("127.0.0.1", self.port, "QCT-NODE", "CT1")).failed

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def log(self) -> str:
        return (self.folder / "log").read_text()


def write_config(
    folder: Path, pacs_port: int, grace_s: float = 20.0, database_url: str = ""
) -> tuple[Path, int]:
    port = free_port()
    path = folder / "config.yaml"
    values = {"port": port, "folder": folder / "data", "pacs_port": pacs_port, "grace_s": grace_s}
    path.write_text(CONFIG.format(**values, database_url=database_url))
    return path, port


@contextmanager
def node(folder: Path, pacs_port: int, grace_s: float = 20.0, database_url: str = "") -> Iterator[Node]:
    """Started as systemd starts it; READY must come over the socket."""
    config, port = write_config(folder, pacs_port, grace_s, database_url)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (folder / "log").open("w") as log:
        manager.bind(str(folder / f"notify-{port}"))
        manager.settimeout(120)
        environment = os.environ | {
            "NOTIFY_SOCKET": str(folder / f"notify-{port}"),
            "WATCHDOG_USEC": "3000000",
            "JOURNAL_STREAM": "1:1",
        }
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(config)], env=environment, stderr=log, text=True)
        said: list[str] = []
        while not any(message.startswith("READY=1") for message in said):
            said.append(manager.recv(4096).decode())
        listen = threading.Thread(target=listen_on, args=(manager, said, process))
        listen.start()
        try:
            yield Node(process, port, folder, said)
        finally:
            process.kill()
            process.wait()
            listen.join()


def listen_on(manager: socket.socket, said: list[str], process: subprocess.Popen[str]) -> None:
    manager.settimeout(0.2)
    while True:
        try:
            said.append(manager.recv(4096).decode())
        except TimeoutError:
            if process.poll() is not None:
                return


def counts(folder: Path) -> dict[JobState, int]:
    with database(folder / "data") as sessions, sessions.begin() as session:
        return count_jobs(session)


def slow(seconds: int) -> Callable[[int, Dataset], None]:
    def change(_index: int, ds: Dataset) -> None:
        ds.StudyDescription = f"SLOW {seconds}"

    return change


def test_a_study_goes_in_and_its_result_comes_out_then_sigterm_ends_in_order(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct")
    with fake_pacs() as pacs, node(tmp_path, pacs.port) as running:
        running.send(tmp_path / "ct")
        wait_for(lambda: len(pacs.stored) == 1, 60)
        wait_for(lambda: "WATCHDOG=1" in running.said, 30)
        assert running.terminate() == DONE
        wait_for(lambda: any(message.startswith("STOPPING=1") for message in running.said), 5)
        log = running.log()
    assert counts(tmp_path)[JobState.DONE] == 1
    for event in (
        "models loaded",
        "ready version=",
        "study due study=",
        "analysis done study=",
        "sent series=",
        "stopped",
    ):
        assert event in log, event
    assert all(line.startswith("<") for line in log.splitlines()), "each line names its priority for the journal"
    assert "Test^Patient" not in log and "TEST-1" not in log
    assert "QCT-WATCHDOG" not in log


def test_sigterm_puts_a_running_analysis_back_and_the_next_start_finishes_it(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", change=slow(8))
    with fake_pacs() as pacs:
        with node(tmp_path, pacs.port, grace_s=0.2) as running:
            running.send(tmp_path / "ct")
            wait_for(lambda: "analysis started" in running.log(), 60)
            assert running.terminate() == DONE
        assert counts(tmp_path)[JobState.QUEUED] == 1
        with node(tmp_path, pacs.port) as running:
            wait_for(lambda: len(pacs.stored) == 1, 60)


def test_kill_9_in_the_middle_of_an_analysis_gives_one_result_after_the_next_start(
    tmp_path: Path, database_url: str
) -> None:
    write_ct(tmp_path / "ct", change=slow(2))
    with fake_pacs() as pacs:
        with node(tmp_path, pacs.port, database_url=database_url) as running:
            running.send(tmp_path / "ct")
            wait_for(lambda: "analysis started" in running.log(), 60)
            running.process.kill()
            running.process.wait()
        with node(tmp_path, pacs.port, database_url=database_url) as running:
            wait_for(lambda: len(pacs.stored) == 1, 60)
            time.sleep(1.0)
            assert len(pacs.stored) == 1


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("node: {prot: 1}\n", USAGE, "node.prot: found an unknown key, expected 'port'"),
        ("storage: {folder: /proc/qct-node}\n", FAULT, "cannot start"),
    ],
)
def test_a_wrong_set_up_ends_the_start_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, said: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert main(path, Entry("tests.service_entry", path)) == code
    shown = capsys.readouterr().err.strip()
    assert said in shown and len(shown.splitlines()) == 1


def test_a_port_that_is_taken_ends_the_start_with_one_line(tmp_path: Path) -> None:
    config, port = write_config(tmp_path, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(config)], capture_output=True, text=True, timeout=90,
                              check=False)  # fmt: skip
    assert done.returncode == FAULT
    assert done.stderr.strip().splitlines()[-1].startswith("<3>cannot start:")
