"""User programs in processes of their own, for tests that kill them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from types import TracebackType


class Script:
    """A Python program; `with Script(code, env) as script:` kills its whole process group at the end.

    Args:
        code: what it runs; indented code is dedented.
        env: its whole environment.
    """

    def __init__(self, code: str, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env | {"PYTHONUNBUFFERED": "1"},
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def line(self, timeout: float = 20.0) -> str:
        """Its next line of output, without the end; fails the test if there is none in time."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no line within {timeout} s; stderr:\n{self.errors}") from None
        if line is None:
            raise AssertionError(f"it ended with status {self.process.wait(10)}; stderr:\n{self.errors}")
        return line

    def say(self, text: str = "") -> None:
        """A line for its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def wait(self, timeout: float = 20.0) -> int:
        """Its exit status, once it has ended; its last words are in `errors` then."""
        status = self.process.wait(timeout)
        self._readers[1].join(5)
        return status

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        return "".join(self._errors)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def __enter__(self) -> Script:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                stream.close()  # type: ignore[union-attr]
            except OSError:
                pass  # what is left for its input has no reader
        if error is not None and self._errors:
            print(f"--- stderr of the script ---\n{self.errors}", file=sys.stderr)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line)
