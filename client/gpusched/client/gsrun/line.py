"""What gsrun says while it waits: one live line on a terminal, plain lines elsewhere. On stderr only."""

from __future__ import annotations

import os
import signal
import sys

from gpusched.client.gsrun import exits

_TO_START_AND_CLEAR = "\r\x1b[K"
_ELLIPSIS = "…"
_FIRST_WIDE = 0x1100
_NARROW = 50
"""Columns below which every word counts."""


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `11th`."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def counted(number: int, noun: str) -> str:
    """`1 GPU`, `2 GPUs`, `3 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def elapsed(seconds: float) -> str:
    """A wait, to the second: `5s`, `1m 12s`, `2h 05m`, `3d 04h`."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d {hours % 24:02d}h"
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m {whole % 60:02d}s"
    return f"{whole}s"


def put_out(text: str) -> int:
    """Write to standard output, and say if that fails. Returns the exit status."""
    data = text.encode("utf-8", "replace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        return exits.for_signal(signal.SIGPIPE)  # who reads has enough
    except OSError as error:
        Output().say(f"gsrun: cannot write the output: {error.strerror}")
        return exits.OWN_FAILURE
    return 0


def harmless(text: str) -> str:
    """Text from elsewhere without control characters, which could drive the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "?" if ord(char) > 32 else " " for char in text)


def cut(text: str, columns: int) -> str:
    """As much of the text as fits into so many columns of a terminal."""
    if width(text) <= columns:
        return text
    room, kept = columns - 1, []
    for char in text:
        room -= width(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + _ELLIPSIS if columns > 0 else ""


def width(text: str) -> int:
    """How many columns a text takes on a terminal."""
    if text.isascii() or max(text) < chr(768):
        return len(text)
    import unicodedata

    columns = 0
    for char in text:
        if unicodedata.combining(char):
            continue
        columns += 2 if ord(char) >= _FIRST_WIDE and unicodedata.east_asian_width(char) in "WF" else 1
    return columns


def compose(text: str, waited: float, columns: int) -> str:
    """The live line: the text, cut so that the time waited is always seen."""
    tail = f" · waiting {elapsed(waited)}"
    if columns < _NARROW:
        # The place matters most; the whole line says where it is from.
        text = text.removeprefix("gsrun: ")
    return cut(cut(text, columns - len(tail)) + tail, columns)


class Output:
    """stderr, with at most one live line at its end.

    On a terminal the live line is redrawn in place, and left out while we are in the terminal's background; elsewhere
    each different text is written once, as a line of its own.
    """

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._live = os.isatty(fd) and os.environ.get("TERM", "") not in ("", "dumb")
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        self._encoding = encoding
        self._shown = ""
        self._last_plain = ""

    @property
    def live(self) -> bool:
        """Whether there is a terminal that can redraw a line."""
        return self._live

    def draw(self, text: str, waited: float) -> None:
        """Show the live line; `text` without the time waited, which is in seconds."""
        text = harmless(text)
        if not self._live:
            if text != self._last_plain:
                self._last_plain = text
                self._write(f"{text}\n")
            return
        if not self._in_foreground():
            return
        # Room is left for the `^C` that a terminal adds: a full line would wrap, and could not be redrawn in place.
        line = compose(text, waited, max(1, self._columns() - 3))
        if line != self._shown:
            self._shown = line
            self._write(f"\r{line}\x1b[K")

    def clear(self) -> None:
        """Take the live line away."""
        if self._shown:
            self._shown = ""
            self._write(_TO_START_AND_CLEAR)

    def forget(self) -> None:
        """Take it that something else has written over the live line: draw it again in full."""
        self._shown = ""

    def say(self, text: str) -> None:
        """A line of its own, above the live line."""
        start = _TO_START_AND_CLEAR if self._shown else ""
        self._shown = ""
        self._write(start + "".join(f"{harmless(line)}\n" for line in text.split("\n")))

    def _write(self, text: str) -> None:
        if self._encoding.lower().replace("-", "") != "utf8":
            text = text.replace("·", "-").replace(_ELLIPSIS, "~")
        data = text.encode(self._encoding, "replace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            pass  # nobody reads our stderr; that is no reason to end the command

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._fd).columns or 80
        except OSError:
            return 80

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal: it has no background for us
