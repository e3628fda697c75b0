"""An association with a destination ends, whatever the other threads of pynetdicom are at."""

import threading
import time

import pytest

from node.pacs_association import Call, associate
from tests.fake_pacs import fake_pacs
from tests.test_sender import destination, wait_for


def test_an_association_is_released_at_its_end() -> None:
    with fake_pacs() as pacs:
        with associate(Call(destination(pacs.port), "QCT-NODE")) as association:
            association.echo()
        assert association.raw.is_released and not association.alive


def test_a_release_goes_on_when_the_word_that_the_reactor_paused_was_taken_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Seen once in some fifty reports on a busy machine: reactor at its checkpoint, `_is_paused` false for ever."""
    caplog.set_level("INFO", "node")
    with fake_pacs() as pacs:
        started = time.monotonic()
        with associate(Call(destination(pacs.port), "QCT-NODE")) as association:
            raw = association.raw
            raw._reactor_checkpoint.clear()
            while not raw._is_paused:
                time.sleep(0.001)
            raw._is_paused = False
        assert time.monotonic() - started < 4.0
        assert raw.is_released and "stood still" in caplog.text
        raw.join(5.0)
        assert not raw.is_alive()


def test_no_thread_of_a_release_is_left() -> None:
    with fake_pacs() as pacs:
        before = set(threading.enumerate())
        with associate(Call(destination(pacs.port), "QCT-NODE")) as association:
            assert set(threading.enumerate()) > before, "the association has threads of its own"
        association.raw.join(5.0)
        wait_for(lambda: {t for t in threading.enumerate() if "_repeat_that_it_paused" in t.name} == set())
