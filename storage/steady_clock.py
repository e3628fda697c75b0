"""UTC that steps of the system clock cannot move: read once at start, then counted by the monotonic clock."""

import time
from datetime import UTC, datetime, timedelta


class SteadyClock:
    """Moments for waiting: a clock step of an hour makes no study due early and none wait longer."""

    def __init__(self) -> None:
        self._started = datetime.now(UTC)
        self._started_s = time.monotonic()

    def now(self) -> datetime:
        return self._started + timedelta(seconds=time.monotonic() - self._started_s)
