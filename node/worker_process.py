"""The process that analyses: loads the models once, then takes one study after the other from its parent.

    python -m node.worker_process FD ENTRY_MODULE CONFIG_PATH_OR_EMPTY

ENTRY_MODULE offers `prepare(config_path) -> context` and `process_study(task, context) -> StudyOutcome`. Answers go
back over the inherited socket FD. A fault in one study is an answer like any other; the next study runs.
"""

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from analysis.errors import QctError
from node.process_memory import give_back_freed_memory, keep_freed_memory
from node.worker_messages import AnalysisTask, Fault, NotReady, Ready

PARENT_CHECK_S = 1.0
OOM_SCORE_ADJUSTMENT = "500"  # proc(5): under memory pressure the kernel kills an analysis, not the receiver


def main(arguments: list[str]) -> int:
    """Serve tasks until the parent closes the socket or is gone."""
    connection = Connection(int(arguments[0]))
    _settle_in()
    keep_freed_memory()
    entry = importlib.import_module(arguments[1])
    try:
        context = entry.prepare(Path(arguments[2]) if arguments[2] else None)
    except QctError as error:
        with suppress(OSError):
            connection.send(NotReady(str(error)))
        return 1
    with suppress(EOFError, OSError):  # the parent closed the socket or is gone: nobody is left to tell
        connection.send(Ready())
        while True:
            connection.send(answer(entry.process_study, connection.recv(), context))
            give_back_freed_memory()
    return 0


def answer(process_study: Callable[[Any, Any], Any], task: AnalysisTask, context: Any) -> Any:
    """The job boundary: whatever goes wrong in one study becomes a Fault, and the process lives on."""
    try:
        return process_study(task, context)
    except Exception as error:  # the one broad except of the project
        frames = traceback.extract_tb(error.__traceback__)
        where = " <- ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-6:]))
        return Fault(type(error).__name__, where, str(error))


def _settle_in() -> None:
    """Leave signals to the parent, offer ourselves to the kernel first, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    score = Path("/proc/self/oom_score_adj")
    if score.exists() and os.access(score, os.W_OK):
        score.write_text(OOM_SCORE_ADJUSTMENT)
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()


def _follow_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
