"""sd_notify on a real datagram socket, and the unit file against systemd's own judgement."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.systemd import Notifier

UNIT = Path(__file__).resolve().parents[1] / "systemd" / "qct-node.service"
SET_UP = {"Type", "NotifyAccess", "ExecStart", "Restart", "RestartSec", "User", "Group", "ConfigurationDirectory"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.settimeout(5)
        yield bound


def test_each_message_reaches_the_service_manager(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("listening")
    notifier.watchdog()
    notifier.extend_timeout(1.5)
    notifier.stopping()
    said = [manager.recv(1024).decode() for _ in range(4)]
    assert said[0] == "READY=1\nSTATUS=listening"
    assert said[1] == "WATCHDOG=1"
    assert said[2] == "EXTEND_TIMEOUT_USEC=1500000"
    assert said[3].startswith("STOPPING=1")


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0qct-node-test")
        bound.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@qct-node-test"}).watchdog()
        assert bound.recv(64) == b"WATCHDOG=1"


def test_outside_systemd_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready("unheard")
    assert notifier.watchdog_s is None


def test_the_watchdog_counts_only_for_the_process_that_it_names() -> None:
    assert Notifier({"WATCHDOG_USEC": "60000000"}).watchdog_s == 60.0
    assert Notifier({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog_s is None


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@needs_systemd
def test_the_units_exposure_is_at_most_2() -> None:
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    found = re.search(r"Overall exposure level for qct-node.service: (\d+\.\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= 2.0


def test_each_line_of_the_service_section_has_a_reason_above_it() -> None:
    lines = UNIT.read_text().split("[Service]")[1].split("[Install]")[0].splitlines()
    reasoned = False
    for line in lines:
        if not line.strip():
            reasoned = False
        elif line.startswith("#"):
            reasoned = True
        else:
            assert reasoned or line.partition("=")[0] in SET_UP, f"{line} has no reason above it"


def test_the_unit_waits_for_ready_feeds_a_watchdog_and_drains() -> None:
    text = UNIT.read_text()
    for line in ("Type=notify", "WatchdogSec=", "KillMode=mixed", "Restart=on-failure", "LoadCredential="):
        assert line in text


def test_a_faulty_configuration_is_not_started_again_and_again() -> None:
    """Seen under systemd 252: RestartPreventExitStatus= holds for the main process, not for ExecStartPre=."""
    lines = UNIT.read_text().splitlines()
    assert "RestartPreventExitStatus=2" in lines
    assert not [line for line in lines if line.startswith("ExecStartPre=")]


def test_code_that_pytorch_makes_at_run_time_stays_allowed() -> None:
    """oneDNN's convolutions fail under MemoryDenyWriteExecute: "could not create a primitive"."""
    assert "\nMemoryDenyWriteExecute=no\n" in UNIT.read_text()
