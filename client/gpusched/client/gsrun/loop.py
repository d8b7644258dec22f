"""The holder's event loop: descriptors, timers, signals, and calls posted by other threads."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any


class Loop:
    """Runs everything in the thread that calls `run`, which must be the process's main thread.

    Args:
        on_error: called with what a posted call raises; the loop goes on.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._on_signal: Callable[[int], None] | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._wake_read, self._drain)

    def watch(self, fd: int, on_ready: Callable[[], None]) -> None:
        """Call a function whenever a descriptor is readable or its other end is gone."""
        self._readers[fd] = on_ready
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no longer; to be called before it is closed."""
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def want_write(self, fd: int, wanted: bool) -> None:
        """Also call the function of a watched descriptor when it is writable."""
        self._poll.modify(fd, select.POLLIN | (select.POLLOUT if wanted else 0))

    def set_timer(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        """Call a function once after so many seconds; takes the place of an earlier timer of that name."""
        self._timers[name] = (time.monotonic() + seconds, function)

    def cancel_timer(self, name: str) -> None:
        self._timers.pop(name, None)

    def has_timer(self, name: str) -> bool:
        return name in self._timers

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have a function called by the loop soon. From any thread."""
        self._posted.append((function, arguments))
        self._wake()

    def on_signals(self, numbers: Iterable[int], function: Callable[[int], None]) -> None:
        """Have a function called by the loop with each of these signals that arrives.

        A handler, not SIG_IGN, so that a command started from here begins with the default action.
        """
        self._on_signal = function
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _nothing)

    def run(self) -> None:
        """Never returns; something that it calls ends the process."""
        while True:
            for fd, _ in self._poll.poll(self._milliseconds()):
                if on_ready := self._readers.get(fd):
                    on_ready()
            now = time.monotonic()
            for name, (due, function) in list(self._timers.items()):
                if due <= now and self._timers.get(name) == (due, function):
                    del self._timers[name]
                    function()

    def _milliseconds(self) -> int | None:
        if not self._timers:
            return None
        due = min(due for due, _ in self._timers.values())
        # Rounded up, or the last fraction of a millisecond would be spent turning round. Not beyond poll's int.
        return max(0, min(int((due - time.monotonic()) * 1000) + 1, 86_400_000))

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # full of wake-ups already

    def _drain(self) -> None:
        while True:
            try:
                data = os.read(self._wake_read, 4096)
            except BlockingIOError:
                break
            # Each byte is a signal's number, or 0 from _wake.
            for number in data:
                if number and self._on_signal is not None:
                    self._on_signal(number)
        while self._posted:
            function, arguments = self._posted.popleft()
            try:
                function(*arguments)
            except Exception as error:
                self._on_error(error)


def _nothing(_number: int, _frame: object) -> None:
    """A signal handler whose work is done by the wake-up descriptor."""
