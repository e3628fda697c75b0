"""Analyses run in child processes with a time and a memory cap; here is the parent's side.

`run_capped(order, task)` is what executors run: in a thread of this process, or in a thread of a Dask worker on another
machine. Either way the analysis itself runs in a child (`node.worker_process`) that has loaded the models and is used
again, and that is killed when it exceeds a cap. The caps hold wherever the analysis runs.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from analysis.errors import QctError
from node.worker_messages import AnalysisTask, Fault, NotReady, Ready
from storage.study_results import StudyOutcome

POLL_S = 0.25  # between two looks at the memory; an answer is taken at once
MEBIBYTE = 2**20


class WorkerDiedError(QctError):
    """The worker process ended in the middle of an analysis: killed, or a crash in native code."""


class CapExceededError(QctError):
    """The analysis took more time or memory than it may; trying again would end the same way."""


class WorkerNotReadyError(QctError):
    """The worker process could not load its models."""


class AnalysisFaultError(QctError):
    """The analysis raised an error nobody foresaw. `where` may be logged; the message may hold text of the study."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.where = where

    def __reduce__(self) -> tuple[type["AnalysisFaultError"], tuple[str, str]]:
        return type(self), (str(self), self.where)


@dataclass(frozen=True, slots=True)
class ProcessOrder:
    """How to start a worker process, and its caps."""

    entry_module: str
    config_path: Path | None  # None: ./config.yaml where there is one, else the defaults
    time_limit_s: float = 900.0
    memory_limit_mb: int = 8192
    start_limit_s: float = 180.0


class CappedProcess:
    """One child process; `run` gives it one task and watches it."""

    def __init__(self, order: ProcessOrder) -> None:
        self._order = order
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "node.worker_process", str(theirs.fileno())]
        command += [order.entry_module, str(order.config_path or "")]
        with theirs:
            self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        self._process = psutil.Process(self._child.pid)
        self._connection = Connection(ours.detach())
        self._models_loaded = False

    def run(self, task: AnalysisTask) -> StudyOutcome:
        """Analyse one study.

        Raises
        ------
        WorkerDiedError, CapExceededError : the process is gone, `alive` is False
        AnalysisFaultError : the study is at fault, the process is ready for the next one
        """
        with self._killed_on_error():
            try:
                self._connection.send(task)
            except OSError as error:
                raise WorkerDiedError(f"the worker process had ended: {error}") from None
            found = self._await(self._order.time_limit_s)
        if isinstance(found, Fault):
            raise AnalysisFaultError(f"{found.error_type}: {found.message}", f"{found.error_type} at {found.where}")
        if not isinstance(found, StudyOutcome):
            raise AnalysisFaultError(f"{type(found).__name__} returned, StudyOutcome expected", "process_study")
        return found

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def end(self) -> None:
        """End the process and whatever it started; a thread that waits for its answer is told."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process, and forget it."""
        self.end()
        self._child.wait()
        self._connection.close()

    def await_models(self) -> None:
        """Wait until the models are loaded; at once when they are.

        Raises
        ------
        WorkerNotReadyError : they cannot be loaded
        WorkerDiedError, CapExceededError : the process is gone
        """
        if self._models_loaded:
            return
        with self._killed_on_error():
            found = self._await(self._order.start_limit_s)
            if not isinstance(found, Ready):
                raise WorkerNotReadyError(found.text if isinstance(found, NotReady) else f"{found!r} received")
        self._models_loaded = True

    def _await(self, limit_s: float) -> Any:
        deadline = time.monotonic() + limit_s
        while not self._connection.poll(POLL_S):
            if time.monotonic() > deadline:
                raise CapExceededError(f"not done after {limit_s:g} s; the limit is jobs.time_limit_s")
            self._check_memory()
        try:
            return self._connection.recv()
        except (EOFError, OSError):  # at a message's border, or in the middle of an answer
            raise WorkerDiedError(f"the worker process ended {_how(self._child.wait())}") from None

    def _check_memory(self) -> None:
        used_mb = self._memory_mb()
        if used_mb > self._order.memory_limit_mb:
            raise CapExceededError(
                f"{used_mb:.0f} MB used; the limit is jobs.memory_limit_mb ({self._order.memory_limit_mb})"
            )

    def _memory_mb(self) -> float:
        """Resident memory of the child and all it started."""
        total = 0
        with suppress(psutil.NoSuchProcess):
            for process in (self._process, *self._process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
        return total / MEBIBYTE

    @contextmanager
    def _killed_on_error(self) -> Iterator[None]:
        try:
            yield
        except QctError:
            self.kill()
            raise


class ProcessPool:
    """Idle processes by order, each used by one task at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[ProcessOrder, list[CappedProcess]] = {}
        self._busy: set[CappedProcess] = set()

    @contextmanager
    def process(self, order: ProcessOrder) -> Iterator[CappedProcess]:
        """A living process for this order; it goes back to the idle ones unless it died."""
        process = self._idle_process(order) or CappedProcess(order)
        with self._lock:
            self._busy.add(process)
        try:
            process.await_models()
            yield process
        finally:
            with self._lock:
                self._busy.discard(process)
                if process.alive:
                    self._idle.setdefault(order, []).append(process)

    def kill_all(self) -> None:
        """End every process, busy ones too; their tasks raise WorkerDiedError."""
        with self._lock:
            idle = [process for processes in self._idle.values() for process in processes]
            self._idle.clear()
            busy = list(self._busy)
        for process in idle:
            process.kill()
        for process in busy:
            process.end()

    def _idle_process(self, order: ProcessOrder) -> CappedProcess | None:
        with self._lock:
            processes = self._idle.get(order, [])
            while processes:
                if (process := processes.pop()).alive:
                    return process
        return None


POOL = ProcessPool()  # of this process: the node's own, or that of a Dask worker
atexit.register(POOL.kill_all)


def run_capped(order: ProcessOrder, task: AnalysisTask) -> StudyOutcome:
    """Analyse one study in a capped child process of whatever process runs this; see `CappedProcess.run`."""
    with POOL.process(order) as process:
        return process.run(task)


def load_models(order: ProcessOrder) -> float:
    """Start one worker process and wait until its models are loaded; returns the seconds that took."""
    started = time.monotonic()
    with POOL.process(order):
        return time.monotonic() - started


def _how(return_code: int) -> str:
    if return_code < 0:
        return f"by signal {signal.Signals(-return_code).name}"
    return f"with exit code {return_code}"
