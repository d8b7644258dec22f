"""A real scheduler with simulated GPUs, in its own process, port and state directory, for tests."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = [str(ROOT / name) for name in ("scheduler", "client", "generated")]
START_SECONDS = 30.0
STOP_SECONDS = 15.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


_OF_A_LEASE = ("GPUSCHED_", "CUDA_", "NVIDIA_")
_OF_A_TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")


def clean_environment(**changes: str) -> dict[str, str]:
    """Our environment for a subprocess: nothing of the caller's lease or window, the source tree importable.

    pytest-xdist sets `COLUMNS` in its workers, for one. Bytecode is kept: what starts here hundreds of times would
    compile itself each time.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OF_A_LEASE) and name not in _OF_A_TERMINAL
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    inherited = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    env["PYTHONPATH"] = os.pathsep.join([*SOURCE_ROOTS, *inherited])
    env["PYTHONUNBUFFERED"] = "1"
    return env | changes


@functools.cache
def _empty_state() -> bytes:
    """A state file that nobody has used. To make its tables takes a third of a first start's time."""
    from gpusched.scheduler.store.database import DatabaseStore
    from gpusched.scheduler.store.sqlite import sqlite_url

    with tempfile.TemporaryDirectory(prefix="gpusched-test-") as directory:
        path = Path(directory) / "state.db"
        store = DatabaseStore(sqlite_url(path))
        store.open()
        store.close()
        return path.read_bytes()


def _put_empty_state(path: Path) -> None:
    """A state file with an identity of its own, as if it had just been made."""
    path.write_bytes(_empty_state())
    path.chmod(0o600)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE meta SET state_id = ?, starts = 0", (secrets.token_hex(8),))
    connection.close()


class Server:
    """`with Server("8") as server:` runs one until the block ends.

    Args:
        simulate: what `--simulate` gets.
        port: None for a free one.
        state_dir: None for a fresh one, removed at the end. In one that is given, nothing is prepared.
        args: more arguments of `serve`.
        env: more environment variables for it.

    Attributes:
        address: `127.0.0.1:PORT`.
        env: environment for client subprocesses; they find this server and never start another.
        process: the running `serve`.
    """

    def __init__(
        self,
        simulate: str = "8",
        *,
        port: int | None = None,
        state_dir: str | Path | None = None,
        args: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._own_directory = state_dir is None
        self.state_dir = Path(state_dir or tempfile.mkdtemp(prefix="gpusched-test-"))
        self.log_path = self.state_dir / "test-server.log"
        self.command = [
            *(sys.executable, "-m", "gpusched.scheduler", "serve", "--simulate", simulate),
            *("--port", str(self.port), "--state-dir", str(self.state_dir), *args),
        ]
        self.server_env = clean_environment(GPUSCHED_STATE_DIR=str(self.state_dir), **(env or {}))
        self.env = clean_environment(
            GPUSCHED_URL=self.address, GPUSCHED_STATE_DIR=str(self.state_dir), GPUSCHED_AUTOSTART="0"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start it and wait until it serves; raises RuntimeError with its log if it does not."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        if self._own_directory and self.process is None:
            _put_empty_state(self.state_dir / "state.db")
        with self.log_path.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.server_env,
                start_new_session=True,  # a test that kills its process group must not hit the server
            )
        deadline = time.monotonic() + START_SECONDS
        while b"serving on" not in self.log_path.read_bytes()[begin:]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not start (status {self.process.returncode}):\n{self.log}")
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """`kill -9`."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM, and its exit status; killed, and an error, if it takes too long."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not stop on SIGTERM:\n{self.log}") from None

    def restart(self, *, gracefully: bool = False) -> Server:
        """End it, by `kill -9` or by SIGTERM, and start it again on the same port and state directory."""
        if gracefully:
            self.stop()
        else:
            self.kill()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: there, but silent."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def close(self) -> None:
        """Kill it if it still runs, show its log (pytest shows it with a failed test only), and clean up."""
        self.kill()
        self._kill_what_it_left()
        print(f"--- log of the server at {self.address} ---\n{self.log}", file=sys.stderr)
        if self._own_directory:
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def _kill_what_it_left(self) -> None:
        """Agents, supervisors and jobs outlive a killed server, as they should; but not the test."""
        marks = (f"GPUSCHED_STATE_DIR={self.state_dir}\0".encode(), f"GPUSCHED_URL={self.address}\0".encode())
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                if any(mark in environment for mark in marks):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                pass

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
