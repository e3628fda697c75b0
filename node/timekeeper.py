"""What happens because time passes: complete studies become jobs, what is old is purged after its days."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

from sqlalchemy.exc import OperationalError

from storage.completeness import CompletenessRules, due_studies
from storage.database import SessionFactory
from storage.inbox import Inbox
from storage.instances import take_study
from storage.jobs import add_job
from storage.retention import purge_delivered, purge_quarantined

LOGGER = logging.getLogger(__name__)
LOOK_S = 1.0
PURGE_EVERY_S = 3600.0
STUCK_AFTER_S = 300.0


@dataclass(frozen=True, slots=True)
class TimekeeperSettings:
    completeness: CompletenessRules
    keep_delivered_days: float
    keep_quarantined_days: float


class Timekeeper:
    """One thread; `clock` is steady: a step of the system clock completes no study early."""

    def __init__(self, sessions: SessionFactory, inbox: Inbox, settings: TimekeeperSettings,
                 clock: Callable[[], datetime], job_added: Callable[[], None]) -> None:  # fmt: skip
        self._sessions, self._inbox, self._settings = sessions, inbox, settings
        self._clock, self._job_added = clock, job_added
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="timekeeper")
        self._turn_at = monotonic()
        self._purge_at = monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and monotonic() - self._turn_at < STUCK_AFTER_S

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._turn_at = monotonic()
            try:
                self._turn()
            except OperationalError as error:  # locked, disk full, server away: studies stay due
                LOGGER.error("database refused the timekeeper: %s", error.orig)

    def _turn(self) -> None:
        if queue_due_studies(self._sessions, self._clock(), self._settings.completeness):
            self._job_added()
        if monotonic() >= self._purge_at:
            self._purge_at = monotonic() + PURGE_EVERY_S
            self._purge()

    def _purge(self) -> None:
        freed = purge_delivered(self._sessions, self._inbox, self._settings.keep_delivered_days, self._clock())
        if freed:
            LOGGER.info("purged delivered studies freed_mb=%.0f", freed / 1e6)
        purge_quarantined(self._sessions, self._inbox, self._settings.keep_quarantined_days, self._clock())


def queue_due_studies(sessions: SessionFactory, now: datetime, rules: CompletenessRules) -> int:
    """Make a job of every study that is due; a study closes in the transaction that writes its job."""
    with sessions.begin() as session:
        due = due_studies(session, now, rules)
        queued = 0
        for study in due:
            if take_study(session, study.study_instance_uid, study.version):
                add_job(session, study.study_instance_uid, study.version, now)
                queued += 1
                LOGGER.info("study due study=%s version=%d complete=%s because=%s",
                            study.study_instance_uid, study.version, study.complete, study.reason)  # fmt: skip
    return queued
