"""A command on a terminal of its own, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable

from support.waiting import wait_until

_CONTROL = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


class Screen:
    """As much of a terminal as the commands use: lines, cursor up and home, erase. Colours are left out."""

    def __init__(self) -> None:
        self.rows: list[str] = [""]
        self._row = 0
        self._column = 0

    def feed(self, text: str) -> None:
        """Take in what a program wrote, whole control sequences only."""
        at = 0
        while at < len(text):
            if found := _CONTROL.match(text, at):
                self._control(found[1], found[2])
                at = found.end()
                continue
            self._put(text[at])
            at += 1

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
            if self._row == len(self.rows):
                self.rows.append("")
        else:
            row = self.rows[self._row].ljust(self._column)
            self.rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
            self._column += 1

    def _control(self, argument: str, letter: str) -> None:
        if letter == "A":
            self._row = max(0, self._row - int(argument or 1))
        elif letter == "H":
            self._row = self._column = 0
        elif letter == "K":
            self.rows[self._row] = self.rows[self._row][: self._column]
        elif letter == "J":
            if argument == "2":
                self.rows = [""] * len(self.rows)
            else:
                self.rows[self._row] = self.rows[self._row][: self._column]
                del self.rows[self._row + 1 :]
        else:
            assert letter == "m", f"unexpected control sequence {argument}{letter}"

    @property
    def lines(self) -> list[str]:
        """Lines on the screen, without those at the end that are empty."""
        return "\n".join(line.rstrip() for line in self.rows).rstrip("\n").split("\n")


class Terminal:
    """`gpusched ARGUMENTS` on a pseudo-terminal; a block's end kills it.

    Attributes:
        written: all that it wrote so far, control sequences and all.
    """

    def __init__(self, arguments: list[str], env: dict[str, str], columns: int = 100, rows: int = 30) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        self.written = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpusched.client.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int, rows: int) -> None:
        """Another window size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            self.written += part.decode("utf-8", "replace")

    def lines(self) -> list[str]:
        """What the screen shows now."""
        screen = Screen()
        text = self.written
        if "\x1b" in text[-20:] and not _CONTROL.search(text[text.rindex("\x1b") :]):
            text = text[: text.rindex("\x1b")]  # half a control sequence
        screen.feed(text)
        return screen.lines

    def wait_for(self, condition: Callable[[list[str]], object], timeout: float = 20.0) -> list[str]:
        """Lines of the screen, as soon as they meet a condition."""

        def met() -> list[str] | None:
            lines = self.lines()
            return lines if condition(lines) else None

        try:
            found = wait_until(met, timeout)
        except AssertionError:
            raise AssertionError(f"the screen shows:\n{chr(10).join(self.lines())}\n{self.written!r}") from None
        assert found is not None
        return found

    def interrupt(self) -> int:
        """Type ^C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self, timeout: float = 20.0) -> int:
        """The exit status, after all that it wrote was read."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        os.close(self._master)
