"""A circuit breaker: after repeated failures a destination is only probed, at growing, jittered intervals."""

import random
from collections.abc import Callable
from time import monotonic

from node.destinations import RetrySettings


class Breaker:
    """Closed: deliver. After a failure: wait. After `failures_to_open` failures in a row: probe before delivering."""

    def __init__(self, settings: RetrySettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._failures = 0
        self._closed_until = clock()

    @property
    def wait_s(self) -> float:
        """Seconds until the next attempt is allowed."""
        return max(0.0, self._closed_until - self._clock())

    @property
    def is_open(self) -> bool:
        """Whether the next attempt is a probe by C-ECHO."""
        return self._failures >= self._settings.failures_to_open

    @property
    def failures(self) -> int:
        return self._failures

    def failed(self) -> float:
        """Count a failure; returns the seconds until the next attempt."""
        self._failures += 1
        delay_s = delay(self._failures, self._settings.longest_delay_s, self._settings)
        self._closed_until = self._clock() + delay_s
        return delay_s

    def succeeded(self) -> None:
        self._failures = 0


def delay(attempt: int, longest_s: float, settings: RetrySettings) -> float:
    """Seconds before the next attempt: doubled each time up to the longest, then varied by the jitter."""
    plain_s = min(settings.first_delay_s * 2.0 ** min(attempt - 1, 30), longest_s)
    return plain_s * (1.0 + random.uniform(-settings.jitter, settings.jitter))
