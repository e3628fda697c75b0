"""Analyses in capped processes: what hangs, crashes or eats memory is put aside, and the next study runs."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.capped_process import POOL, ProcessOrder, WorkerDiedError, WorkerNotReadyError, run_capped
from node.worker import Worker, WorkerSettings, check_models, make_executor
from node.worker_messages import AnalysisTask, Ready
from storage.database import SessionFactory
from storage.jobs import JobState, add_job, count_jobs, find_job
from storage.study_results import current_result, recent_results
from tests.database_builders import NOW, database

ORDER = ProcessOrder("tests.worker_entry", None, time_limit_s=3.0, memory_limit_mb=400)


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[SessionFactory]:
    with database(tmp_path) as found:
        yield found


@contextmanager
def working(sessions: SessionFactory, at_once: int = 1, cluster: str = "", **changes: Any) -> Iterator[Worker]:
    settings = WorkerSettings(ORDER, "node", at_once, **changes)
    worker = Worker(sessions, make_executor(at_once, cluster), settings)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(grace_s=0.5)


def add(sessions: SessionFactory, *studies: str) -> None:
    with sessions.begin() as session:
        for study in studies:
            add_job(session, study, 1, NOW)


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def settled(sessions: SessionFactory) -> bool:
    with sessions.begin() as session:
        counts = count_jobs(session)
    return counts[JobState.QUEUED] == counts[JobState.RUNNING] == 0


def states(sessions: SessionFactory, *studies: str) -> list[JobState]:
    with sessions.begin() as session:
        return [job.state for study in studies if (job := find_job(session, study, 1))]


def details(sessions: SessionFactory, study: str) -> str:
    with sessions.begin() as session:
        job = find_job(session, study, 1)
    assert job is not None
    return job.detail


def test_each_bad_study_is_put_aside_alone_and_the_others_are_reported(
    sessions: SessionFactory, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ("1.2.1", "1.3.1", "1.4.1", "1.5.1")  # hangs, segfaults, eats memory, raises
    good = ("1.1.1", "1.1.2", "1.1.3")
    caplog.set_level(logging.INFO)
    with working(sessions, at_once=2):
        add(sessions, good[0], *bad[:2], good[1], *bad[2:], good[2])
        wait_for(lambda: settled(sessions))
    assert states(sessions, *good) == [JobState.DONE] * 3
    assert states(sessions, *bad) == [JobState.DEAD] * 4
    assert "not done after 3 s" in details(sessions, "1.2.1")
    assert "died 2 times" in details(sessions, "1.3.1")
    assert "the limit is jobs.memory_limit_mb (400)" in details(sessions, "1.4.1")
    assert "ValueError: pixels of Doe^Jane" in details(sessions, "1.5.1")
    assert "ValueError at worker_entry.py" in caplog.text
    assert "Doe" not in caplog.text, "text of a study reached the log"


def test_a_worker_process_keeps_its_models_from_study_to_study(sessions: SessionFactory) -> None:
    with working(sessions):
        add(sessions, "1.1.1", "1.1.2", "1.1.3")
        wait_for(lambda: settled(sessions))
    with sessions.begin() as session:
        reports = [json.loads(result.report_json) for result in recent_results(session)]
    assert len({report["pid"] for report in reports}) == 1
    assert sorted(report["studies"] for report in reports) == [1, 2, 3]


def test_a_study_runs_again_exactly_once_after_its_process_was_killed(
    sessions: SessionFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with working(sessions):
        add(sessions, "1.6.1")
        wait_for(lambda: settled(sessions))
    assert caplog.text.count("analysis started study=1.6.1") == 2
    assert caplog.text.count("ended by signal SIGKILL") == 2


@pytest.mark.parametrize("study", ["1.6.1", "1.8.1"])
def test_a_death_is_told_in_one_line_even_in_the_middle_of_an_answer(study: str) -> None:
    """A cluster's worker prints the error with its causes: the end of the socket is no cause worth a traceback."""
    with pytest.raises(WorkerDiedError, match="ended by signal SIGKILL") as died:
        run_capped(ORDER, AnalysisTask(study, 1))
    assert "EOFError" not in "".join(traceback.format_exception(died.value))


@pytest.mark.parametrize("in_the_middle", [False, True])
def test_a_worker_process_whose_parent_is_gone_ends_without_a_word(in_the_middle: bool) -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "node.worker_process", str(theirs.fileno()), "tests.worker_entry", ""]
    with theirs:
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    with Connection(ours.detach()) as connection:
        assert isinstance(connection.recv(), Ready)
        if in_the_middle:
            connection.send(AnalysisTask("1.7.1", 1))
    assert child.communicate(timeout=60)[1] == "" and child.returncode == 0


def test_damaged_models_are_found_before_any_study_is_taken() -> None:
    executor = make_executor(1, "")
    with pytest.raises(WorkerNotReadyError, match="fine.safetensors is damaged"):
        check_models(executor, ProcessOrder("tests.worker_entry", Path("broken-models")))
    executor.shutdown()


def test_stopping_puts_a_running_study_back_and_leaves_no_process(sessions: SessionFactory) -> None:
    with working(sessions) as worker:
        add(sessions, "1.2.1")
        wait_for(lambda: bool(worker.running_jobs) and bool(children()))
    assert states(sessions, "1.2.1") == [JobState.QUEUED]
    wait_for(lambda: not children(), 10)


def test_stopping_waits_for_an_analysis_that_ends_within_the_grace(sessions: SessionFactory) -> None:
    worker = Worker(sessions, make_executor(1, ""), WorkerSettings(ORDER, "node"))
    worker.start()
    add(sessions, "1.7.1")
    wait_for(lambda: bool(worker.running_jobs))
    worker.stop(grace_s=30.0)
    assert states(sessions, "1.7.1") == [JobState.DONE]


def test_a_long_analysis_keeps_its_lease(sessions: SessionFactory) -> None:
    """The lease is shorter than the analysis; the heartbeat must renew it, or the study would run twice."""
    with working(sessions, lease_s=0.6):
        add(sessions, "1.7.1")
        wait_for(lambda: settled(sessions))
    with sessions.begin() as session:
        job = find_job(session, "1.7.1", 1)
        result = current_result(session, "1.7.1")
    assert job is not None and job.state is JobState.DONE and job.orphaned == 0
    assert result is not None and json.loads(result.report_json)["studies"] == 1


def test_a_result_and_the_end_of_its_job_are_one_transaction(sessions: SessionFactory) -> None:
    with working(sessions):
        add(sessions, "1.1.1")
        wait_for(lambda: settled(sessions))
    with sessions.begin() as session:
        assert current_result(session, "1.1.1") is not None


def test_a_dask_cluster_runs_the_same_analyses_under_the_same_caps(sessions: SessionFactory) -> None:
    """A real scheduler and two real worker processes; each analysis runs in a capped child of a Dask worker."""
    distributed = pytest.importorskip("distributed")
    good, bad = [f"1.1.{n}" for n in range(4)], ["1.2.1", "1.3.1"]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as cluster,
        working(sessions, at_once=4, cluster=cluster.scheduler_address),
    ):
        add(sessions, *good[:2], *bad, *good[2:])
        wait_for(lambda: settled(sessions), 120)
    assert states(sessions, *good) == [JobState.DONE] * 4
    assert states(sessions, *bad) == [JobState.DEAD] * 2
    with sessions.begin() as session:
        pids = {json.loads(result.report_json)["pid"] for result in recent_results(session)}
    assert len(pids) >= 2 and os.getpid() not in pids


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "node.worker_process" in " ".join(process.cmdline())
    except psutil.Error:  # gone, or about to be
        return False


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    POOL.kill_all()
