"""An association with a destination ends, whatever the other threads of pynetdicom are at."""

import threading
import time

import pytest

from node.pacs_association import Call, associate
from tests.fake_pacs import Behaviour, fake_pacs
from tests.test_sender import destination


def test_an_association_is_released_at_its_end() -> None:
    with fake_pacs() as pacs:
        with associate(Call(destination(pacs.port), "QCT-NODE")) as association:
            association.echo()
        assert association.raw.is_released and not association.alive


def test_an_association_whose_pause_was_taken_back_is_cut_off_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """Seen once in some fifty reports on a busy machine: reactor at its checkpoint, `_is_paused` false for ever."""
    with fake_pacs(Behaviour()) as pacs:
        started = time.monotonic()
        with associate(Call(destination(pacs.port, connect_timeout_s=0.5), "QCT-NODE")) as association:
            raw = association.raw
            raw._reactor_checkpoint.clear()
            while not raw._is_paused:
                time.sleep(0.001)
            raw._is_paused = False
        assert time.monotonic() - started < 5.0
        assert not raw.is_alive() and "was cut off" in caplog.text


def test_no_thread_of_a_release_is_left() -> None:
    with fake_pacs() as pacs:
        before = set(threading.enumerate())
        with associate(Call(destination(pacs.port), "QCT-NODE")):
            pass
        left = {t for t in threading.enumerate() if isinstance(t, threading.Timer)} - before
        assert not any(t.is_alive() and not t.finished.is_set() for t in left)
