"""`--watch`: a table redrawn in place on a terminal, appended lines on a pipe, JSON lines for programs."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gpusched.client.cli.output import Mode, Output, paint
from gpusched.client.cli.session import CALL_SECONDS, Session, Stream

TICK_SECONDS = 1.0
"""How often a terminal is redrawn for its clocks, and a lost scheduler is tried again."""

_DRAWS_APART_SECONDS = 0.05


class View(Protocol):
    """What a command shows of the messages it gets."""

    def take(self, message: Any) -> None:
        """Bring the state up to date."""

    def frame(self) -> list[str]:
        """All of it as it is now, for a terminal."""

    def news(self) -> list[str]:
        """What the last message changed, for a pipe."""

    def document(self, message: Any) -> object | None:
        """A message as JSON values; None to leave it out."""


class Poll:
    """A stream made by asking again and again, for what the service has no stream of.

    Args:
        fetch: gives one message.
        last: whether a message is the last one to ask for.
        seconds: between an answer and the next question.
    """

    def __init__(
        self,
        fetch: Callable[[], Any],
        last: Callable[[Any], bool] = lambda _: False,
        seconds: float = TICK_SECONDS,
    ) -> None:
        self._fetch = fetch
        self._last = last
        self._seconds = seconds
        self._stop = threading.Event()
        self._first = True

    def __iter__(self) -> Poll:
        return self

    def __next__(self) -> Any:
        if not self._first and self._stop.wait(self._seconds):
            raise StopIteration
        self._first = False
        message = self._fetch()
        if self._last(message):
            self._stop.set()
        return message

    def cancel(self) -> None:
        """End it after the answer under way."""
        self._stop.set()


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


class _Redraw:
    """The terminal changed: its size, or what stands on it after a stop."""


def follow(session: Session, output: Output, open_stream: Callable[[], Stream], view: View) -> int:
    """Show a stream until it ends or is interrupted; the exit status.

    On a terminal a scheduler that goes away is waited for; on a pipe that is an error.

    Raises:
        GpuschedError: if the stream fails, or its first message does not come in time.
    """
    return _Watch(session, output, open_stream, view).run()


class _Watch:
    def __init__(self, session: Session, output: Output, open_stream: Callable[[], Stream], view: View) -> None:
        self._session = session
        self._output = output
        self._open = open_stream
        self._view = view
        redraws = output.terminal and output.mode is Mode.TABLE and os.environ.get("TERM") != "dumb"
        self._screen = Screen(output) if redraws else None
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stream: Stream | None = None
        self._started = False
        self._away_since = 0.0
        self._retry_at = 0.0

    def run(self) -> int:
        if self._screen:
            signal.signal(signal.SIGWINCH, lambda *_: self._inbox.put(_Redraw()))
            signal.signal(signal.SIGCONT, lambda *_: self._inbox.put(_Redraw()))
        self._connect()
        try:
            while True:
                if self._retry_at and time.monotonic() >= self._retry_at:
                    self._connect()
                if self._handle(self._next()):
                    return 0
        finally:
            if self._stream is not None:
                self._stream.cancel()
            if self._screen:
                self._screen.leave()

    def _connect(self) -> None:
        self._retry_at = 0.0
        self._stream = self._open()
        threading.Thread(target=_read, args=(self._stream, self._inbox), daemon=True).start()

    def _next(self) -> Any:
        if not self._started:
            timeout: float | None = CALL_SECONDS
        else:
            timeout = TICK_SECONDS if self._screen else None
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def _handle(self, item: Any) -> bool:
        """Deal with a message, an end or a tick (None); True when all is over."""
        if isinstance(item, _End):
            if item.error is None:
                return True
            self._lost(item.error)
        elif isinstance(item, _Redraw):
            assert self._screen is not None
            self._screen.forget()
        elif item is None and not self._started:
            from gpusched.client.errors import ServerUnavailable

            raise ServerUnavailable(
                f"the scheduler at {self._session.address} did not answer within {CALL_SECONDS:g} s"
            )
        elif item is not None:
            self._started = True
            self._away_since = 0.0
            self._show(item)
        if self._screen and self._started:
            self._draw()
        return False

    def _lost(self, error: Exception) -> None:
        import grpc

        from gpusched.client.errors import ServerUnavailable

        failure = self._session.failure(error) if isinstance(error, grpc.RpcError) else error
        if not (self._screen and self._started and isinstance(failure, ServerUnavailable)):
            raise failure
        self._away_since = self._away_since or time.time()
        self._retry_at = time.monotonic() + TICK_SECONDS

    def _show(self, message: Any) -> None:
        self._view.take(message)
        if self._output.mode is Mode.JSON:
            document = self._view.document(message)
            if document is not None:
                self._output.json(document, line=True)
        elif not self._screen:
            self._output.lines(self._view.news())

    def _draw(self) -> None:
        assert self._screen is not None
        if not self._inbox.empty() and not self._screen.due():
            return  # a newer state is here already
        lines = self._view.frame()
        if self._away_since:
            since = time.strftime("%H:%M:%S", time.localtime(self._away_since))
            text = f"the scheduler is away since {since}; the above is what it last said; trying again"
            lines += ["", paint(text, "red", self._output.colour)]
        self._screen.draw(lines)


def _read(stream: Stream, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        for message in stream:
            inbox.put(message)
    except Exception as error:
        inbox.put(_End(error))
    else:
        inbox.put(_End(None))


class Screen:
    """Lines on a terminal that are drawn over one another. The cursor stays shown, beneath them."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._drawn = 0
        self._size: tuple[int, int] | None = None
        self._at = 0.0

    def due(self) -> bool:
        """Whether the last drawing is old enough for another one."""
        return time.monotonic() - self._at >= _DRAWS_APART_SECONDS

    def draw(self, lines: list[str]) -> None:
        """Put these lines where the last ones stand; what the window has no room for is counted."""
        size = self._output.size()
        room = max(size[1] - 1, 1)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more lines than the window has room for"]
        start = f"\x1b[{self._drawn}A\r" if self._drawn else "\r"
        if self._size not in (None, size):
            start = "\x1b[2J\x1b[H"  # the terminal has re-wrapped the old lines, nobody knows how
        self._output.raw(start + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._drawn, self._size, self._at = len(lines), size, time.monotonic()

    def forget(self) -> None:
        """Draw anew below the cursor next time, unless the window's size changed."""
        if self._size == self._output.size():
            self._drawn = 0

    def leave(self) -> None:
        """Clean the line that the cursor is on (a `^C` that the terminal echoed)."""
        self._output.raw("\r\x1b[K")
