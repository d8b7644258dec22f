"""One clock for the engine: wall time at start, carried on by the monotonic clock, so it never jumps or goes back."""

from __future__ import annotations

import time


class Clock:
    """Seconds since the epoch, as they were at start, plus the monotonic time passed since."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset
