"""Real gsruns for tests: alone, or typed into an interactive shell on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import secrets
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from support.server import Server
from support.waiting import wait_until

GSRUN = [sys.executable, "-m", "gpusched.client.gsrun"]
MARK = "GSRUN_TEST_MARK"
FOREST = str(Path(__file__).with_name("forest.py"))
QUICK = 15.0
"""Seconds that anything may take here before the test fails; a busy machine is slow."""


class Gsrun:
    """One gsrun in a process group of its own, with its output in files.

    Args:
        server: that it talks to.
        words: its command line.
        env: more environment variables.
        popen: more arguments for Popen.
    """

    def __init__(self, server: Server, *words: str, env: dict[str, str] | None = None, **popen: object) -> None:
        self.mark = secrets.token_hex(8)
        self._directory = server.state_dir / f"gsrun-{self.mark}"
        self._directory.mkdir()
        environment = server.env | {MARK: self.mark} | (env or {})
        with self._file("out").open("wb") as out, self._file("err").open("wb") as err:
            arguments = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "process_group": 0} | popen
            self.process = subprocess.Popen([*GSRUN, *words], env=environment, **arguments)  # type: ignore[call-overload]
        self.front = self.process.pid

    def _file(self, name: str) -> Path:
        return self._directory / name

    @property
    def out(self) -> str:
        return self._file("out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._file("err").read_text(errors="replace")

    @property
    def holder(self) -> int:
        """Process id of the holder: the front's only child of that name."""

        def find() -> int:
            found = [child.pid for child in psutil.Process(self.front).children() if child.name() == "gsrun-holder"]
            return found[0] if found else 0

        return wait_until(find, QUICK, "a holder")

    def wait(self, timeout: float = QUICK) -> int:
        """Its exit code, as subprocess tells it (negative: killed by that signal)."""
        try:
            return int(self.process.wait(timeout))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"gsrun did not end within {timeout} s; stderr so far:\n{self.err}") from None

    def wait_for_out(self, pattern: str, timeout: float = QUICK) -> re.Match[str]:
        """The match of a pattern in its stdout."""
        return wait_until(lambda: re.search(pattern, self.out), timeout, f"{pattern!r} in stdout of {self!r}")

    def wait_for_err(self, pattern: str, timeout: float = QUICK) -> re.Match[str]:
        """The match of a pattern in its stderr."""
        return wait_until(lambda: re.search(pattern, self.err), timeout, f"{pattern!r} in stderr of {self!r}")

    def signal(self, number: int) -> None:
        """To the front alone."""
        self.process.send_signal(number)

    def survivors(self) -> list[str]:
        """All processes alive that this gsrun has started, its own included."""
        return marked(self.mark)

    def __repr__(self) -> str:
        return f"<gsrun {self.front}: out={self.out!r} err={self.err!r}>"

    def close(self) -> None:
        """Kill whatever is left of it, so that no failed test disturbs another."""
        for line in self.survivors():
            try:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def marked(mark: str) -> list[str]:
    """`pid name state` of all living processes that have inherited a mark, however they have daemonised."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            if wanted in environment.split(b"\0") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.name()} {process.status()}")
        except (OSError, psutil.Error):
            continue
    return found


def state_of(pid: int) -> str:
    """The state letter of a process, empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def stop(pid: int) -> None:
    """SIGSTOP a process and wait until all of its threads have stopped; only then does the kernel take it as such."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    wait_until(lambda: all(state_of(int(thread.name)) == "T" for thread in threads.iterdir()), QUICK)


class Terminal:
    """An interactive bash on a pseudo-terminal of its own session.

    Args:
        env: its environment.
        rows, columns: size of the window.
    """

    PROMPT = "ready> "

    def __init__(self, env: dict[str, str], rows: int = 24, columns: int = 100) -> None:
        self.mark = secrets.token_hex(8)
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        take_terminal = (
            "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "os.execvp(sys.argv[1], sys.argv[1:])"
        )
        environment = {key: value for key, value in env.items() if key != "PROMPT_COMMAND"}
        environment |= {MARK: self.mark, "TERM": "xterm", "PS1": self.PROMPT, "HISTFILE": "/dev/null"}
        environment["GSRUN"] = " ".join(GSRUN)
        self.shell = subprocess.Popen(
            [sys.executable, "-c", take_terminal, "bash", "--norc", "--noprofile", "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
        )
        os.close(slave)
        self.text = ""
        self._at = 0
        self.expect(re.escape(self.PROMPT))

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Keys; a newline is the return key."""
        os.write(self.master, text.encode())

    def run(self, line: str, timeout: float = QUICK) -> str:
        """Type a command line and return what is printed until the next prompt."""
        self.type(f"{line}\n")
        self.expect(re.escape(line), timeout)
        return self.expect(re.escape(self.PROMPT), timeout)

    def expect(self, pattern: str, timeout: float = QUICK) -> str:
        """Read until a pattern appears; what came before it since the last one, and the match itself."""
        deadline = time.monotonic() + timeout
        while True:
            if match := re.search(pattern, self.text[self._at :]):
                start, self._at = self._at, self._at + match.end()
                return self.text[start : self._at]
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{pattern!r} did not appear within {timeout} s in {self.text[self._at :]!r}")
            self._read(left)

    def read_for(self, seconds: float) -> str:
        """All that appears within some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)
        start, self._at = self._at, len(self.text)
        return self.text[start:]

    def _read(self, timeout: float) -> None:
        if select.select([self.master], [], [], timeout)[0]:
            try:
                self.text += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(f"the terminal is gone; last: {self.text[self._at :]!r}") from None

    def gsrun_pids(self) -> list[int]:
        """The fronts that the shell has started."""
        return [
            child.pid
            for child in psutil.Process(self.shell.pid).children()
            if "gpusched.client.gsrun" in child.cmdline()
        ]

    def close(self) -> None:
        for line in marked(self.mark):
            try:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.shell.kill()
        self.shell.wait()
        os.close(self.master)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL them, one right after the other."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
