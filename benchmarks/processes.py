"""The processes under measurement: the scheduler, the bare server, and what the kernel says about them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 30.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def clean_environment(**changes: str) -> dict[str, str]:
    """Our environment for a process: no settings of the caller's, the source tree importable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GPUSCHED_", "CUDA_", "NVIDIA_"))}
    return env | changes


class Server:
    """A server in a process of its own; `with` it, it runs.

    Args:
        command: what starts it, after the Python interpreter; `{port}` and `{state}` are filled in.

    Attributes:
        address: `127.0.0.1:PORT`.
        pid: its process id.
    """

    def __init__(self, *command: str) -> None:
        self._command = command
        self._state = ""
        self._log = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """For clients in processes of their own: they find this server, and never start another."""
        return clean_environment(GPUSCHED_URL=self.address, GPUSCHED_STATE_DIR=self._state, GPUSCHED_AUTOSTART="0")

    @property
    def state(self) -> Path:
        """Its directory."""
        return Path(self._state)

    @property
    def log(self) -> str:
        """What it has printed since its last start."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Server:
        self._state = tempfile.mkdtemp(prefix="gpusched-bench-")
        self.address = f"127.0.0.1:{free_port()}"
        self._log = Path(self._state) / "output.log"
        self.start()
        return self

    def start(self) -> None:
        """Start it, or start it again after `kill`, and return when it serves. Raises RuntimeError."""
        port = self.address.rpartition(":")[2]
        words = [word.format(port=port, state=self._state) for word in self._command]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while b"serving on" not in (output := self._log.read_bytes()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError(f"the server did not start: {' '.join(words)}\n{output.decode(errors='replace')}")
            time.sleep(0.005)

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._state, ignore_errors=True)


def scheduler(gpus: int) -> Server:
    """The scheduler as users run it, with simulated GPUs."""
    serve = ("-m", "gpusched.scheduler", "serve", "--simulate", str(gpus))
    return Server(*serve, "--port", "{port}", "--state-dir", "{state}")


def bare() -> Server:
    """A grpc.aio server with nothing behind it."""
    return Server("-m", "benchmarks.bare", "{port}")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, in user and kernel mode."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def gsrun_command() -> list[str]:
    """The installed gsrun of this interpreter's environment."""
    return [str(Path(sys.executable).with_name("gsrun"))]
