"""What worker processes run in tests: the study's UID says how the analysis ends."""

import ctypes
import os
import signal
import struct
import sys
import time
from pathlib import Path

from analysis.errors import ModelError
from node.worker_messages import AnalysisTask
from storage.study_results import StudyOutcome


def prepare(config_path: Path | None) -> dict[str, int]:
    """Config path "broken-models" stands for a weights file that is damaged."""
    if config_path is not None and config_path.name == "broken-models":
        raise ModelError("fine.safetensors is damaged; install the package again")
    return {"studies": 0}


def process_study(task: AnalysisTask, context: dict[str, int]) -> StudyOutcome:
    """1.<kind>.<number>, for example 1.2.7: the second kind hangs."""
    context["studies"] += 1
    {"1": ordinary, "2": hang, "3": crash, "4": grow, "5": fault, "6": killed, "7": slow, "8": half_an_answer}[
        task.study_instance_uid.split(".")[1]
    ]()
    report = f'{{"pid": {os.getpid()}, "studies": {context["studies"]}}}'
    return StudyOutcome(task.study_instance_uid, task.version, "PATIENT", "reported", report_json=report)


def ordinary() -> None:
    """Ends at once."""


def hang() -> None:
    time.sleep(600)


def crash() -> None:
    ctypes.string_at(0)  # a segmentation fault, as native code would cause it


def grow() -> None:
    eaten = []
    while True:
        eaten.append(b"\1" * (16 * 2**20))  # not zeros: those would take no memory until they are touched
        time.sleep(0.02)


def fault() -> None:
    raise ValueError("pixels of Doe^Jane make no sense")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_an_answer() -> None:
    """Dies while the answer is on its way: its length has been sent, its content not."""
    os.write(int(sys.argv[1]), struct.pack("!i", 1000) + b"only the beginning")
    os.kill(os.getpid(), signal.SIGKILL)


def slow() -> None:
    time.sleep(1.5)
