"""Takes jobs from the database, has them analysed by an executor, and turns what comes back into job states.

The executor is a `concurrent.futures.Executor`: threads that drive local processes, or a Dask cluster. One thread does
all the bookkeeping; an outcome, its outbox rows and the end of its job are one transaction.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from analysis.errors import QctError
from node.capped_process import (
    POOL,
    AnalysisFaultError,
    CapExceededError,
    ProcessOrder,
    load_models,
    run_capped,
)
from node.worker_messages import AnalysisTask
from storage.database import SessionFactory
from storage.jobs import (
    Job,
    JobState,
    Lease,
    RetryRules,
    finish_job,
    put_back,
    reanalyse,
    reclaim_orphans,
    renew_lease,
    take_job,
    worker_died,
)
from storage.outbox import Wanted, queue_result
from storage.retention import mark_delivered
from storage.study_results import StudyOutcome, save_outcome

LOGGER = logging.getLogger(__name__)
LOOK_FOR_JOBS_S = 1.0
CLUSTER_ERRORS = (RuntimeError, OSError)  # distributed.KilledWorker, CommClosedError and their like


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How many analyses run at once, for whom, and what becomes of their results."""

    order: ProcessOrder
    owner: str
    at_once: int = 1
    lease_s: float = 60.0
    retries: RetryRules = RetryRules()
    wanted: tuple[Wanted, ...] = ()
    abandon_after_s: float | None = None  # for a cluster that stops answering; None: the executor is local


@dataclass(frozen=True, slots=True)
class Running:
    job: Job
    since: float = field(default_factory=monotonic)


class Worker:
    """`start`, `stop`; `wake` when a job was added. `alive` for the watchdog."""

    def __init__(
        self,
        sessions: SessionFactory,
        executor: Executor,
        settings: WorkerSettings,
        result_saved: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions, self._executor, self._settings = sessions, executor, settings
        self._result_saved = result_saved
        self._running: dict[Future[StudyOutcome], Running] = {}
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker")
        self._leases_renewed_at = monotonic()
        self._turn_at = monotonic()

    def start(self) -> None:
        """Take back what this node held when it died, then work."""
        with self._sessions.begin() as session:
            _log_orphans(reclaim_orphans(session, self._settings.retries, _now(), owner=self._settings.owner))
        self._thread.start()

    def stop(self, grace_s: float = 20.0) -> None:
        """Take no more jobs, give running ones the grace to end, put back the others."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        wait(self._running, timeout=grace_s)
        self._collect()
        for future, running in list(self._running.items()):
            self._put_back(running.job)
            future.cancel()
        self._running.clear()
        POOL.kill_all()
        self._executor.shutdown(wait=False)

    def wake(self) -> None:
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether the bookkeeping thread runs and came round lately."""
        return self._thread.is_alive() and monotonic() - self._turn_at < self._settings.lease_s

    @property
    def running_jobs(self) -> tuple[Job, ...]:
        return tuple(running.job for running in list(self._running.values()))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._turn_at = monotonic()
            try:
                self._turn()
            except OperationalError as error:  # locked, disk full, server away: what was not written is tried again
                LOGGER.error("database refused the worker: %s", error.orig)
            self._wake.wait(LOOK_FOR_JOBS_S)
            self._wake.clear()

    def _turn(self) -> None:
        self._collect()
        self._renew_leases()
        while len(self._running) < self._settings.at_once and self._take():
            pass

    def _take(self) -> bool:
        now = _now()
        lease = Lease.starting(self._settings.owner, now, self._settings.lease_s)
        with self._sessions.begin() as session:
            job = take_job(session, lease, now)
        if job is None:
            return False
        task = AnalysisTask(job.study_instance_uid, job.version)
        future = self._executor.submit(run_capped, self._settings.order, task)
        self._running[future] = Running(job)
        future.add_done_callback(lambda _: self._wake.set())
        LOGGER.info("analysis started study=%s version=%d", job.study_instance_uid, job.version)
        return True

    def _collect(self) -> None:
        for future in [future for future in self._running if future.done()]:
            running = self._running[future]
            self._end(running.job, future, monotonic() - running.since)
            del self._running[future]
        self._abandon_silent()

    def _end(self, job: Job, future: Future[StudyOutcome], duration_s: float) -> None:
        try:
            outcome = future.result()
        except CapExceededError as error:
            self._put_aside(job, str(error), str(error), duration_s)
        except AnalysisFaultError as error:
            self._put_aside(job, str(error), error.where, duration_s)
        except (QctError, CancelledError, BrokenExecutor, *CLUSTER_ERRORS) as error:
            self._lost_worker(job, str(error) or type(error).__name__, duration_s)
        else:
            self._save(job, outcome, duration_s)

    def _save(self, job: Job, outcome: StudyOutcome, duration_s: float) -> None:
        with self._sessions.begin() as session:
            state = JobState.REFUSED if outcome.status == "refused" else JobState.DONE
            detail = "; ".join(reason.code for reason in outcome.reasons) or outcome.status
            if not finish_job(session, job.id, self._settings.owner, state, detail, _now()):
                LOGGER.warning("result void study=%s: the lease was lost", job.study_instance_uid)
                return
            _publish(session, outcome, self._settings.wanted)
        LOGGER.info(
            "analysis done study=%s version=%d series=%s kind=%s status=%s reasons=%s duration_s=%.1f",
            job.study_instance_uid, job.version, outcome.series_instance_uid, outcome.kind, outcome.status,
            ",".join(reason.code for reason in outcome.reasons) or "none", duration_s,
        )  # fmt: skip
        self._result_saved()

    def _put_aside(self, job: Job, detail: str, loggable: str, duration_s: float) -> None:
        with self._sessions.begin() as session:
            finish_job(session, job.id, self._settings.owner, JobState.DEAD, detail, _now())
        LOGGER.error("analysis put aside study=%s version=%d: %s duration_s=%.1f; `qct-node requeue %s` tries again",
                     job.study_instance_uid, job.version, loggable, duration_s, job.study_instance_uid)  # fmt: skip

    def _lost_worker(self, job: Job, why: str, duration_s: float) -> None:
        with self._sessions.begin() as session:
            state = worker_died(session, job.id, self._settings.owner, self._settings.retries, _now())
        LOGGER.error("worker lost study=%s version=%d: %s duration_s=%.1f; the job is %s",
                     job.study_instance_uid, job.version, why, duration_s, state)  # fmt: skip

    def _put_back(self, job: Job) -> None:
        with self._sessions.begin() as session:
            put_back(session, job.id, self._settings.owner)
        LOGGER.info("analysis put back study=%s version=%d: the node is stopping", job.study_instance_uid, job.version)

    def _renew_leases(self) -> None:
        if monotonic() - self._leases_renewed_at < self._settings.lease_s / 3:
            return
        self._leases_renewed_at = monotonic()
        now = _now()
        lease = Lease.starting(self._settings.owner, now, self._settings.lease_s)
        with self._sessions.begin() as session:
            for running in self._running.values():
                renew_lease(session, running.job.id, lease)
            _log_orphans(reclaim_orphans(session, self._settings.retries, now))

    def _abandon_silent(self) -> None:
        """A cluster that lost a task without saying so must not hold its study for ever."""
        limit_s = self._settings.abandon_after_s
        for future, running in list(self._running.items()):
            if limit_s is not None and monotonic() - running.since > limit_s:
                future.cancel()
                del self._running[future]
                self._lost_worker(running.job, "no answer from the cluster", monotonic() - running.since)


def make_executor(at_once: int, cluster: str) -> Executor:
    """Threads that drive local processes, or the Dask cluster at this address ("tcp://host:port")."""
    if not cluster:
        return ThreadPoolExecutor(at_once, thread_name_prefix="analysis")
    from distributed import Client  # only where a cluster is configured: it takes a second to import

    executor: Executor = Client(cluster, timeout="30s", set_as_default=False).get_executor(pure=False, retries=0)
    return executor


def check_models(executor: Executor, order: ProcessOrder) -> float:
    """Start one worker process where the analyses will run; returns the seconds until its models were loaded.

    Raises
    ------
    WorkerNotReadyError, WorkerDiedError, CapExceededError : the models are not in order
    """
    return executor.submit(load_models, order).result()


def _publish(session: Session, outcome: StudyOutcome, wanted: Sequence[Wanted]) -> None:
    """The result, its outbox rows and the studies that it may amend, in the caller's transaction."""
    now = _now()
    result, new = save_outcome(session, outcome, now)
    queued = queue_result(session, result, wanted, now) if new else 0
    if new and not queued and (wanted or not outcome.objects):  # nothing of it has to be delivered
        mark_delivered(session, outcome.study_instance_uid, outcome.version, now)
    for study_instance_uid in outcome.reanalyse:
        reanalyse(session, study_instance_uid, f"study {outcome.study_instance_uid} may amend it", now)
    LOGGER.info("result %s study=%s version=%d revision=%d objects=%d queued=%d",
                "saved" if new else "unchanged", outcome.study_instance_uid, outcome.version, result.revision,
                len(outcome.objects), queued)  # fmt: skip


def _log_orphans(jobs: Sequence[Job]) -> None:
    for job in jobs:
        LOGGER.warning("job %s study=%s version=%d: %s", job.state, job.study_instance_uid, job.version, job.detail)


def _now() -> datetime:
    return datetime.now(UTC)
