"""Throughput of receiving beside DCMTK's storescp and Orthanc, in one run: same files, same storescu, TCP_NODELAY=1.

    python -m tests.studies.receive_benchmark --instances 400 --associations 1 4 10

CT slices of 512 x 512 x 16 bit (525 kB) go to each server in turn, split over so many associations at once. The node
answers after three syncs: file, folder, row. Orthanc runs with its default configuration, which syncs the file alone
(one fdatasync an instance, counted with strace); storescp does not sync.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from tests.network_builders import QUIET_TOOLS, echoscu, running_node, series_spec, wait_until, write_series

START_WITHIN_S = 20.0


@dataclass(frozen=True)
class Measurement:
    """One server under one number of associations."""

    server: str
    associations: int
    instances_per_s: float
    mb_per_s: float
    failed_senders: int
    server_cpu_s: float
    server_peak_rss_mb: float
    of_orthanc: float = 1.0  # MB/s over Orthanc's in the same turn, median over the turns


def main() -> None:
    arguments = _arguments()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        measurements = [
            measured
            for associations in arguments.associations
            for measured in measure_all(root, associations, arguments)
        ]
    console.print(_table(measurements))
    if arguments.out is not None:
        arguments.out.write_text(_markdown(measurements, arguments))


def measure_all(root: Path, associations: int, arguments: argparse.Namespace) -> list[Measurement]:
    """Every server with this many associations, `repeats` times in turn and back; the median run of each counts."""
    sources = _write_sources(root / f"source-{associations}", associations, arguments.instances)
    servers = {name: SERVERS[name] for name in arguments.servers}
    runs: dict[str, list[Measurement]] = {name: [] for name in servers}
    for repeat in range(arguments.repeats):
        for name in list(servers)[:: -1 if repeat % 2 else 1]:
            folder = root / f"{name}-{associations}-{repeat}"
            with servers[name](folder) as (port, process):
                runs[name].append(_measure(name, port, process, sources))
            shutil.rmtree(folder)
    return [_middle(found, runs.get("orthanc", found)) for found in runs.values()]


def _middle(runs: list[Measurement], orthanc: list[Measurement]) -> Measurement:
    """The median run, with the median of the ratios turn by turn: a busy machine slows both of a turn."""
    ratio = median(run.mb_per_s / other.mb_per_s for run, other in zip(runs, orthanc, strict=True))
    return replace(sorted(runs, key=lambda m: m.mb_per_s)[len(runs) // 2], of_orthanc=ratio)


def _write_sources(folder: Path, associations: int, instances: int) -> list[Path]:
    """One folder per association, each with its own study."""
    folders = [folder / str(index) for index in range(associations)]
    for index, own in enumerate(folders):
        write_series(series_spec(slices=instances // associations, rows=512, seed=index), own)
    return folders


def _measure(name: str, port: int, process: psutil.Process, sources: list[Path]) -> Measurement:
    size = sum(path.stat().st_size for source in sources for path in source.iterdir())
    count = sum(1 for source in sources for _ in source.iterdir())
    cpu_before = _cpu_s(process)
    started = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["storescu", "-aec", "QCT-NODE", "-aet", f"CT{i}", "+sd", "127.0.0.1", str(port), str(source)],
            env=QUIET_TOOLS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for i, source in enumerate(sources)
    ]  # fmt: skip
    peak_rss = 0
    while any(sender.poll() is None for sender in senders):
        peak_rss = max(peak_rss, sum(map(_rss, [process, *process.children(recursive=True)])))
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    return Measurement(
        server=name,
        associations=len(sources),
        instances_per_s=count / seconds,
        mb_per_s=size / 1e6 / seconds,
        failed_senders=sum(sender.returncode != 0 for sender in senders),
        server_cpu_s=_cpu_s(process) - cpu_before,
        server_peak_rss_mb=peak_rss / 2**20,
    )


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:  # storescp serves each association in a child that is gone afterwards
        return 0


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def _process(command: list[str], port: int) -> Iterator[tuple[int, psutil.Process]]:
    server = subprocess.Popen(command, env=QUIET_TOOLS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if not wait_until(lambda: echoscu(port).code == 0, START_WITHIN_S):
            raise RuntimeError(f"{command[0]} does not answer on port {port}")
        yield port, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(timeout=30)


@contextmanager
def _node(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    command = [sys.executable, "-m", "tests.studies.receive_benchmark", "--serve", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline()), psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(timeout=30)


@contextmanager
def _storescp(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    folder.mkdir(parents=True)
    port = _free_port()
    with _process(["storescp", "--fork", "-od", str(folder), "-pm", str(port)], port) as found:
        yield found


@contextmanager
def _orthanc(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    folder.mkdir(parents=True)
    port = _free_port()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "DicomAet": "QCT-NODE",
        "DicomPort": port,
        "HttpServerEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with _process(["Orthanc", str(folder / "orthanc.json")], port) as found:
        yield found


SERVERS = {"node": _node, "orthanc": _orthanc, "storescp": _storescp}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(folder: Path) -> None:
    """The node's receiver as a process of its own; prints its port."""
    with running_node(folder) as node:
        os.write(1, f"{node.port}\n".encode())
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


def _table(measurements: list[Measurement]) -> Table:
    names = ("server", "associations", "instances/s", "MB/s", "of Orthanc", "failed senders", "server CPU s", "RSS MB")
    table = Table(*names)
    for m in measurements:
        table.add_row(
            m.server, str(m.associations), f"{m.instances_per_s:.0f}", f"{m.mb_per_s:.0f}", f"{m.of_orthanc:.2f}",
            str(m.failed_senders),
            f"{m.server_cpu_s:.1f}", f"{m.server_peak_rss_mb:.0f}",
        )  # fmt: skip
    return table


def _markdown(measurements: list[Measurement], arguments: argparse.Namespace) -> str:
    lines = [
        "# Receiving beside Orthanc and DCMTK",
        "",
        f"`python -m tests.studies.receive_benchmark --instances {arguments.instances} --repeats {arguments.repeats}`: "
        f"CT slices of 525 kB from DCMTK's storescu with TCP_NODELAY=1 over loopback, {os.cpu_count()} cores shared by "
        f"senders and server; median of {arguments.repeats} runs in turn. The node answers after three syncs (file, "
        f"folder, row), Orthanc after one (file), storescp after none.{arguments.note and ' ' + arguments.note}",
        "",
        "| server | associations | instances/s | MB/s | of Orthanc, turn by turn | failed senders | "
        "server CPU ms/instance | peak RSS MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in measurements:
        cpu_ms = 1000 * m.server_cpu_s / arguments.instances
        lines.append(
            f"| {m.server} | {m.associations} | {m.instances_per_s:.0f} | {m.mb_per_s:.0f} | {m.of_orthanc:.2f} | "
            f"{m.failed_senders} | "
            f"{cpu_ms:.1f} | {m.server_peak_rss_mb:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=400)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--servers", nargs="+", choices=sorted(SERVERS), default=list(SERVERS))
    parser.add_argument("--folder", type=Path, default=None, help="where files go; on the disk that is to be measured")
    parser.add_argument("--out", type=Path, default=None, help="also write the table as Markdown")
    parser.add_argument("--note", default="", help="a sentence about the machine, for the Markdown")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT}) if "--serve" in sys.argv else None
    _serve(_arguments().serve) if "--serve" in sys.argv else main()
