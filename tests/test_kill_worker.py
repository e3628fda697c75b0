"""kill -9 of worker processes and of the whole bookkeeping at random moments: each study ends in exactly one result."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from storage.jobs import JobState, add_job, count_jobs
from storage.study_results import results_of_study
from tests.database_builders import NOW, database

STUDIES = [f"1.1.{number}" for number in range(12)]
KILLS = 6
PROGRAM = """
import sys, time
from pathlib import Path
from node.capped_process import ProcessOrder
from node.worker import Worker, WorkerSettings, make_executor
from storage.jobs import RetryRules
from tests.database_builders import *
sessions = open_database(sqlite_url(Path(sys.argv[1]) / "node.sqlite"))
order = ProcessOrder("tests.worker_entry", None)
settings = WorkerSettings(order, "node", 2, retries=RetryRules(100, 100))
Worker(sessions, make_executor(2, ""), settings).start()
print("working", flush=True)
time.sleep(600)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    return process


def unfinished(folder: Path) -> int:
    with database(folder) as sessions, sessions.begin() as session:
        counts = count_jobs(session)
    return counts[JobState.QUEUED] + counts[JobState.RUNNING]


def test_no_study_is_lost_or_reported_twice_under_kill_9(tmp_path: Path) -> None:
    with database(tmp_path) as sessions, sessions.begin() as session:
        for study in STUDIES:
            add_job(session, study, 1, NOW)
    moments = random.Random(7)
    process = start(tmp_path)
    for turn in range(KILLS):
        time.sleep(moments.uniform(0.1, 1.5))
        workers = psutil.Process(process.pid).children(recursive=True)
        if turn % 2 and workers:
            os.kill(moments.choice(workers).pid, signal.SIGKILL)
        else:
            process.kill()
            process.wait()
            process = start(tmp_path)
    deadline = time.monotonic() + 60
    while unfinished(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.3)
    process.kill()
    process.wait()
    with database(tmp_path) as sessions, sessions.begin() as session:
        counts = count_jobs(session)
        results = [len(results_of_study(session, study)) for study in STUDIES]
    assert counts[JobState.DONE] == len(STUDIES), counts
    assert results == [1] * len(STUDIES)
