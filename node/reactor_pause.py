"""pynetdicom's reactor really stands still while we send.

A reactor thread takes messages from the queue that a send waits at, so a send first asks it to stop. In pynetdicom
3.0.4 the reactor says that it stopped (`_is_paused`) before it does: it may already have passed the checkpoint, both go
on, and the reactor throws the answer away ("Received unexpected C-STORE service message"). The send then waits for an
answer until it times out. And an N-EVENT-REPORT, which is served in a thread of its own, says and takes back the same
of a reactor that has done nothing: then a send never begins. Here the checkpoint knows whether a reactor stands at it.
"""

import threading
from typing import Any

from pynetdicom import Association


class Checkpoint:
    """What pynetdicom uses of `threading.Event`, and whether somebody is held up here."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self.holds_reactor = False

    def set(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._open = False

    def wait(self) -> None:
        with self._changed:
            self.holds_reactor = True  # seen after `clear` only if we do stop below: both need the lock
            self._changed.wait_for(lambda: self._open)
            self.holds_reactor = False


class PausedForReal(Association):  # type: ignore[misc]
    """An association whose word about its reactor is what its checkpoint sees."""

    _reactor_checkpoint: Any

    @property
    def _is_paused(self) -> bool:
        return bool(self._kill or not self.is_alive() or self._reactor_checkpoint.holds_reactor)

    @_is_paused.setter
    def _is_paused(self, said: bool) -> None:
        """What pynetdicom says is not needed."""


def pause_for_real(association: Association) -> Association:
    """The same association, new and not yet used to send, with a checkpoint that can be relied on."""
    association._reactor_checkpoint = Checkpoint()
    association.__class__ = PausedForReal
    return association
