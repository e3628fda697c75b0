"""Start here (running it): assembles all parts, speaks to systemd, stops in an orderly way.

    receiver -> inbox + rows -> timekeeper -> jobs -> worker -> results + outbox -> senders -> destinations

READY is said when the port is bound, the database is at its schema and the models are loaded. SIGTERM drains: open
associations finish their images, running analyses get a grace and are then put back, the object being sent is finished.
"""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from pynetdicom import AE
from pynetdicom.sop_class import Verification
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from analysis.errors import ConfigError, QctError
from analysis.version import SOFTWARE_VERSION
from node.capped_process import ProcessOrder
from node.commitment import CommitmentReceiver
from node.config import Config, load_config_or_default
from node.logs import WATCHDOG_AE_TITLE, set_up_logging
from node.monitoring import prometheus_text, read_state, write_prometheus_file
from node.receiver import Extras, Receiver
from node.receiver_settings import Peer
from node.sender import Senders
from node.systemd import Notifier
from node.timekeeper import Timekeeper, TimekeeperSettings
from node.worker import Worker, WorkerSettings, check_models, make_executor
from storage.database import close_database
from storage.inbox import Inbox
from storage.jobs import JobState, count_jobs
from storage.outbox import Wanted
from storage.schema import open_database

LOGGER = logging.getLogger(__name__)
DONE, FAULT, USAGE = 0, 1, 2
STATUS_EVERY_S = 15.0
CLUSTER_PATIENCE = 2.0  # times the time limit, for a task that waits in a cluster's queue
WATCHDOG_PEER = Peer(WATCHDOG_AE_TITLE, ("127.0.0.0/8", "::1/128"))


@dataclass(frozen=True, slots=True)
class Entry:
    """What the worker processes run, and the configuration file that they read."""

    module: str = "node.workflow"
    config_path: Path | None = None


class Service:
    """The whole node; `start` returns when it is ready."""

    def __init__(self, config: Config, entry: Entry) -> None:
        self._config = config
        config.storage.folder.mkdir(parents=True, exist_ok=True)
        self.sessions = open_database(config.database_url)
        self._inbox = Inbox(config.storage.inbox_folder, config.disk)
        self._order = _process_order(config, entry)
        self._executor = make_executor(config.jobs.worker_processes, config.jobs.cluster)
        self._senders = Senders(self.sessions, config.destinations, config.node.ae_title)
        self.receiver = Receiver(
            config.listen_address, _receiver_settings(config), self.sessions, self._inbox, self._extras()
        )
        self.worker = Worker(self.sessions, self._executor, _worker_settings(config, self._order), self._senders.wake)
        days = config.storage.keep_delivered_days, config.storage.keep_quarantined_days
        rules = TimekeeperSettings(config.completeness, *days)
        self._timekeeper = Timekeeper(self.sessions, self._inbox, rules, self.receiver.clock.now, self.worker.wake)

    def start(self) -> None:
        """Load the models, then listen, then work.

        Raises
        ------
        QctError : the models are not in order
        OSError : a port is not free, or a TLS file cannot be read
        """
        duration_s = check_models(self._executor, self._order)
        LOGGER.info("models loaded duration_s=%.1f", duration_s)
        self.receiver.start()
        self._senders.start()
        self.worker.start()
        self._timekeeper.start()

    def stop(self) -> None:
        """Drain: nothing acknowledged is lost, nothing running is forgotten."""
        self._timekeeper.stop()
        self.receiver.stop(self._config.jobs.stop_grace_s)
        self.worker.stop(self._config.jobs.stop_grace_s)
        self._senders.stop()
        close_database(self.sessions)

    def faults(self) -> list[str]:
        """What is not as it should be, by real checks: threads, a database transaction, a C-ECHO to our own port."""
        checks = (
            ("receiver", self.receiver.alive),
            ("worker", self.worker.alive),
            ("senders", self._senders.alive),
            ("timekeeper", self._timekeeper.alive),
            ("database", self._database_answers()),
            ("port", self._port_answers()),
        )
        return [name for name, in_order in checks if not in_order]

    def tell_monitoring(self, faults: Sequence[str]) -> None:
        """Write the file for Prometheus where one is configured; a node that cannot tell goes on working."""
        if (path := self._config.monitoring.prometheus_file) is None:
            return
        try:
            with self.sessions.begin() as session:
                state = read_state(session, self._config, self.receiver.clock.now())
            write_prometheus_file(path, prometheus_text(state, faults))
        except (OSError, OperationalError) as error:
            LOGGER.error("monitoring.prometheus_file not written: %s", str(error).splitlines()[0])

    def summary(self) -> str:
        """One line for `systemctl status`."""
        with self.sessions.begin() as session:
            counts = count_jobs(session)
        words = [f"{counts[state]} {state}" for state in (JobState.QUEUED, JobState.RUNNING, JobState.DEAD)]
        return f"{len(self.receiver.open_associations())} associations; studies: {', '.join(words)}"

    def _extras(self) -> Extras:
        commitments = CommitmentReceiver(self.sessions, answered=self._senders.wake)
        return Extras((commitments.context(),), tuple(commitments.handlers()))

    def _database_answers(self) -> bool:
        """SQLite: the write lock can be had; see storage.database."""
        try:
            with self.sessions.begin() as session:
                return bool(session.execute(text("SELECT 1")).scalar_one() == 1)
        except OperationalError:
            return False

    def _port_answers(self) -> bool:
        host = self._config.node.bind_address
        ae = AE(WATCHDOG_PEER.ae_title)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 5
        ae.add_requested_context(Verification)
        loopback = "127.0.0.1" if host in ("0.0.0.0", "", "::") else host
        association = ae.associate(loopback, self.receiver.port, ae_title=self._config.node.ae_title)
        if association.is_established:
            association.release()
        return bool(association.is_released or association.is_rejected)


def main(config_path: Path | None, entry: Entry | None = None) -> int:
    """Run the node until SIGTERM or SIGINT; returns the exit code."""
    notifier = Notifier()
    try:
        config = load_config_or_default(config_path)
        set_up_logging(config.logging.level)
        entry = entry or Entry(config_path=config_path)
        service = Service(config, entry)
        notifier.status("loading models")
        service.start()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except (QctError, OSError) as error:
        sys.stderr.write(f"<3>cannot start: {error}\n")
        return FAULT
    return _run(service, notifier)


def _run(service: Service, notifier: Notifier) -> int:
    stop, surprises = threading.Event(), []

    def surprise(arguments: threading.ExceptHookArgs) -> None:
        """An error nobody foresaw in a thread: stop in order, and let systemd start the node again."""
        LOGGER.critical("thread %s died", getattr(arguments.thread, "name", "?"), exc_info=arguments.exc_value)
        surprises.append(arguments.exc_type.__name__)
        stop.set()

    threading.excepthook = surprise
    _stop_on_signals(stop)
    LOGGER.info("ready version=%s port=%d", SOFTWARE_VERSION, service.receiver.port)
    notifier.ready(service.summary())
    _watch(service, notifier, stop)
    notifier.stopping()
    LOGGER.info("stopping")
    service.stop()
    LOGGER.info("stopped")
    return FAULT if surprises else DONE


def _watch(service: Service, notifier: Notifier, stop: threading.Event) -> None:
    """Feed the watchdog only while every check passes."""
    pause_s = min(STATUS_EVERY_S, notifier.watchdog_s / 3 if notifier.watchdog_s else STATUS_EVERY_S)
    while not stop.wait(pause_s):
        faults = service.faults()
        service.tell_monitoring(faults)
        if faults:
            LOGGER.error("not in order: %s", ", ".join(faults))
            notifier.status(f"not in order: {', '.join(faults)}")
        else:
            notifier.watchdog()
            notifier.status(service.summary())


def _stop_on_signals(stop: threading.Event) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # a test runs main() in a thread and has no signals

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _process_order(config: Config, entry: Entry) -> ProcessOrder:
    path = entry.config_path
    return ProcessOrder(
        entry.module, path.resolve() if path else None, config.jobs.time_limit_s, config.jobs.memory_limit_mb
    )


def _worker_settings(config: Config, order: ProcessOrder) -> WorkerSettings:
    wanted = tuple(
        Wanted(one.name, frozenset(str(kind) for kind in one.objects), one.preferred_classes())
        for one in config.destinations
    )
    patience_s = CLUSTER_PATIENCE * config.jobs.time_limit_s if config.jobs.cluster else None
    owner = f"{socket.gethostname()}:{config.storage.folder}"[:128]
    return WorkerSettings(
        order, owner, config.jobs.worker_processes, config.jobs.lease_s, config.jobs.retries, wanted, patience_s
    )


def _receiver_settings(config: Config) -> Any:
    """The site's settings, and our own watchdog as a caller from this machine."""
    return replace(config.receiving, peers=(*config.receiving.peers, WATCHDOG_PEER))
