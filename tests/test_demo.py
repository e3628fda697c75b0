"""The demonstration waits as long as its node makes progress."""

import time
from pathlib import Path
from threading import Timer

import pytest
from rich.progress import Progress

from analysis.errors import QctError
from node import demo
from node.demo import DemoStudy
from node.send_folder import Peer


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[DemoStudy]:
    monkeypatch.setattr(demo, "RESULT_LIMIT_S", 1.0)
    monkeypatch.setattr(demo, "send_folder", lambda folder, peer: None)
    named = [DemoStudy(f"patient-{n}", Path(f"patient-{n}")) for n in range(3)]
    for study in named:
        study.study_instance_uid = study.name
    return named


def wait(studies: list[DemoStudy], answers: dict[str, float]) -> None:
    demo._send_and_wait(studies, Peer("127.0.0.1", 1, "NODE", "DEMO"), answers, Progress(disable=True), "patients")


def test_answers_may_take_longer_than_the_limit_when_they_come_one_by_one(studies: list[DemoStudy]) -> None:
    answers: dict[str, float] = {}
    for n, study in enumerate(studies):
        Timer(0.6 * (n + 1), answers.setdefault, (study.name, time.monotonic())).start()
    wait(studies, answers)
    assert all(study.answered_at for study in studies)


def test_a_node_that_stopped_answering_ends_the_demonstration(studies: list[DemoStudy]) -> None:
    with pytest.raises(QctError, match="no result for patient-1, patient-2 within 1 s"):
        wait(studies, {"patient-0": time.monotonic()})
