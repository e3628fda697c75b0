"""An association with a destination is used and ends, whatever the other threads of pynetdicom are at."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from node.pacs_association import Call, associate
from tests.fake_pacs import fake_pacs
from tests.test_sender import destination, wait_for


def test_an_association_is_released_at_its_end() -> None:
    with fake_pacs() as pacs:
        with associate(Call(destination(pacs.port), "QCT-NODE")) as association:
            association.echo()
        assert association.raw.is_released and not association.alive


def late(call: Callable[..., Any], by_s: float) -> Callable[..., Any]:
    """What was called returns late: its thread is not given the processor."""

    def late_call(*args: Any) -> Any:
        returned = call(*args)
        time.sleep(by_s)
        return returned

    return late_call


def test_no_answer_is_taken_by_a_reactor_that_had_just_passed_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen once in some thousand objects on a busy machine: an answer was waited for until the time limit.

    Here the reactor goes on 0.1 s after it passed, and the sender looks for the answer 0.3 s after it sent.
    """
    with fake_pacs() as pacs, associate(Call(destination(pacs.port), "QCT-NODE")) as association:
        raw = association.raw
        monkeypatch.setattr(raw._reactor_checkpoint, "wait", late(raw._reactor_checkpoint.wait, 0.1))
        monkeypatch.setattr(raw.dimse, "send_msg", late(raw.dimse.send_msg, 0.3))
        for _ in range(3):
            time.sleep(0.15)  # into the reactor's delay
            association.echo()
        assert pacs.echoes == 3
    assert "unexpected" not in caplog.text


def test_what_is_said_of_the_reactor_while_it_stands_at_its_checkpoint_holds_nothing_up() -> None:
    """Seen once in some fifty reports: one that ends, served in a thread of its own, says that the reactor runs."""
    with fake_pacs() as pacs:
        started = time.monotonic()
        with associate(Call(destination(pacs.port), "QCT-NODE")) as association:
            raw = association.raw
            raw._reactor_checkpoint.clear()
            wait_for(lambda: raw._is_paused)
            raw._is_paused = False
            association.echo()
            raw._reactor_checkpoint.clear()
            raw._is_paused = False
        assert time.monotonic() - started < 4.0
        assert raw.is_released
        raw.join(5.0)
        assert not raw.is_alive()


def test_nothing_waits_for_the_reactor_of_an_association_that_was_aborted() -> None:
    with fake_pacs() as pacs, associate(Call(destination(pacs.port), "QCT-NODE")) as association:
        association.raw.abort()
        association.raw.join(5.0)
        assert association.raw._is_paused and not association.alive


def test_no_thread_of_an_association_is_left() -> None:
    with fake_pacs() as pacs:
        before = set(threading.enumerate())
        with associate(Call(destination(pacs.port), "QCT-NODE")) as association:
            assert set(threading.enumerate()) > before, "the association has threads of its own"
        wait_for(lambda: not {association.raw, association.raw.dul} & set(threading.enumerate()))
