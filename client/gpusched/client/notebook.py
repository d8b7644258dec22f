"""The line that shows a wait: live in a notebook or terminal, plain lines elsewhere. Never imports IPython itself."""

from __future__ import annotations

import html
import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

from gpusched.client.lease_views import QueueUpdate
from gpusched.client.units import format_duration

log = logging.getLogger("gpusched.client")


def show(text: str) -> None:
    """Write to stderr as it is now, where it can be written to: nobody loses a place or a lease for a word on it."""
    # None where the program has no stderr; the others for a full disk, a closed pipe, a terminal that is gone.
    if sys.stderr is not None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


def describe(update: QueueUpdate, *, with_wait: bool = True) -> str:
    """A place in the queue as one line for people; `with_wait` adds how long it has waited."""
    where = f"is number {update.position} of {update.total} in the queue" if update.position else "is not in line"
    text = f"gpusched: job {update.job_id} {where}"
    if update.reason.message:
        text += f": {update.reason.message}"
    if with_wait and update.submitted_at is not None:
        text += f" (waiting {format_duration((datetime.now(UTC) - update.submitted_at).total_seconds())})"
    return "".join(c if c.isprintable() else "?" for c in text)


class StatusLine:
    """Shows the newest place on stderr: a line of its own for each change of place or reason."""

    _counts_time = False

    def __init__(self) -> None:
        self._update: QueueUpdate | None = None
        self._shown = ""

    def update(self, update: QueueUpdate) -> None:
        """Show another place."""
        self._update = update
        self._draw()

    def tick(self) -> None:
        """Time has passed."""
        if self._counts_time:
            self._draw()

    def close(self) -> None:
        """The wait is over."""

    def _draw(self) -> None:
        if self._update is not None:
            text = describe(self._update, with_wait=self._counts_time)
            if text != self._shown:
                self._shown = text
                self._show(text)

    def _show(self, text: str) -> None:
        show(f"{text}\n")


class TerminalLine(StatusLine):
    """One line, redrawn in place and taken away at the end."""

    _counts_time = True

    def close(self) -> None:
        if self._shown:
            self._show("")

    def _show(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns - 1
        except (OSError, ValueError, AttributeError):  # the last where it is None by now
            columns = 79
        cut = text if len(text) <= columns else text[: max(0, columns - 1)] + "…"
        show(f"\r{cut}\x1b[K")


class NotebookLine(StatusLine):
    """A display of its own in the cell's output, updated in place."""

    _counts_time = True

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None
        self._began = time.monotonic()

    def close(self) -> None:
        if self._handle is not None and self._update is not None:
            waited = format_duration(time.monotonic() - self._began)
            self._show(f"gpusched: job {self._update.job_id}: the wait is over after {waited}")

    def _show(self, text: str) -> None:
        try:
            self._display(text)
        except Exception:  # IPython's own, or the connection's to the browser
            log.debug("the line of a wait could not be shown", exc_info=True)

    def _display(self, text: str) -> None:
        # IPython is there, as this class is used in a kernel only.
        from IPython.display import HTML, display  # type: ignore[import-not-found, unused-ignore]

        shown = HTML(f"<pre style='margin:0'>{html.escape(text)}</pre>")
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if callable(get_ipython) else None
    return getattr(shell, "kernel", None) is not None


def default_status_line() -> StatusLine:
    """What shows a wait where `on_update` is not given."""
    if in_notebook():
        return NotebookLine()
    if _on_terminal() and os.environ.get("TERM", "") not in ("", "dumb"):
        return TerminalLine()
    return StatusLine()


def _on_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (OSError, ValueError):  # it is closed
        return False
