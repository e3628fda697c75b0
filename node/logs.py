"""Logging: one line per event on stderr, for the journal; no patient's name or ID.

Under systemd each line starts with its priority (sd-daemon(3)) and the journal adds the time.
"""

import logging
import os
import warnings
from typing import Any

WATCHDOG_AE_TITLE = "QCT-WATCHDOG"  # as which the node calls itself to see whether its port answers
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
# Libraries whose lines may quote values of a data set, or whose INFO is no event of ours.
QUIET = {"pydicom": logging.CRITICAL, "pynetdicom": logging.CRITICAL, "alembic": logging.WARNING,
         "distributed": logging.WARNING, "highdicom": logging.ERROR, "radiomics": logging.ERROR}  # fmt: skip


class OwnWatchdog(logging.Filter):
    """Drops the lines about the node's C-ECHO to itself; when it fails, the service says so."""

    def filter(self, record: logging.LogRecord) -> bool:
        return WATCHDOG_AE_TITLE not in record.getMessage()


class JournalFormatter(logging.Formatter):
    """`<priority>module: message`, on one line whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.name.removeprefix('node.')}: {super().format(record)}"
        return f"<{PRIORITIES.get(record.levelno, 6)}>" + " | ".join(line.splitlines())


class TerminalFormatter(logging.Formatter):
    """Time, level and module, for a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")


def set_up_logging(level: str, environment: Any = os.environ) -> None:
    """Called once, by the process's entry."""
    handler = logging.StreamHandler()
    handler.setFormatter(JournalFormatter() if "JOURNAL_STREAM" in environment else TerminalFormatter())
    handler.addFilter(OwnWatchdog())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(least)
    warnings.filterwarnings("ignore", module=r"pydicom\.")  # pydicom's warnings quote values
