"""The server's side of running commands: hands runs to the agent, and keeps one alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from gpusched.scheduler.logs import log_event
from gpusched.scheduler.runner import frames
from gpusched.scheduler.runner.model import Report, Run

log = logging.getLogger("gpusched.runner")

YOUNG_SECONDS = 5.0
"""An agent that dies younger than this, with nothing started, has not come up."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
TRIES = 3

OnReport = Callable[[str, int, Report], Awaitable[bool]]
"""Told the job, the epoch and how the run ended; gives whether that is dealt with."""
OnFailed = Callable[[str, int, str], None]
"""Told the job, the epoch and, for people, why there is no run."""


@dataclass(slots=True)
class _Pending:
    """A run that no agent has reported as started."""

    frame: bytes
    taken: bool = False


class ProcessRunner:
    """Runs commands by one agent, and by another one when that dies. In one event loop.

    Supervisors live on when this is closed, when the server dies, and when the agent dies.
    """

    def __init__(self, on_failed: OnFailed, log_path: Path, on_report: OnReport | None = None) -> None:
        """Nothing is started yet.

        Args:
            on_failed: called in the event loop, never from within `launch`, when a run could not be started or its
                supervisor died, with the lease or before it had that; nothing of the command is left then. If only the
                agent died while it started the run, a supervisor may be on its way: it ends when its lease is refused.
            log_path: file that gets what agents and supervisors have to say about themselves.
            on_report: called in the event loop when a run has ended; where it fails, is slow or is not given,
                supervisors end their leases by a call.
        """
        self._on_failed = on_failed
        self._on_report = on_report
        self._reports: set[asyncio.Task[None]] = set()
        self._log_path = log_path
        self._pending: dict[tuple[str, int], _Pending] = {}
        self._agent: _AgentLink | None = None
        self._restart: asyncio.Task[None] | None = None
        self._failures = 0
        self._closed = False
        # Ours may be lifted later; commands have those that we were started with, whichever agent starts them.
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def start(self) -> None:
        """Start the agent; it comes up meanwhile, and runs wait for it.

        Raises:
            OSError: it cannot be started.
        """
        await self._start_agent()

    def launch(self, run: Run) -> None:
        """Have a command run. Returns at once; `on_failed` tells if it comes to nothing."""
        try:
            pending = _Pending(frames.pack(run.to_json()))
            if self._closed:
                raise ValueError("the scheduler is stopping")
        except (TypeError, ValueError) as error:
            asyncio.get_running_loop().call_soon(self._on_failed, *run.key, f"the run cannot be started: {error}")
            return
        self._pending[run.key] = pending
        if self._agent is not None:
            self._agent.send(pending.frame)

    async def close(self) -> None:
        """Let the agent and all supervisors go on by themselves."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restart
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    # -- the agent -----------------------------------------------------------------------------------------

    async def _start_agent(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            process = _spawn(theirs, self._log_path, self._files)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: _AgentLink(process, self._on_answer, self._on_gone), sock=ours)
        self._agent = link
        for pending in self._pending.values():
            link.send(pending.frame)
        log_event(log, "agent_started", pid=process.pid)

    def _on_answer(self, kind: str, job_id: str, epoch: int, message: str) -> None:
        key = (job_id, epoch)
        if kind == frames.REPORT:
            task = asyncio.get_running_loop().create_task(self._settle(self._agent, key, message))
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)
            return
        self._failures = 0
        if kind == frames.TAKEN:
            if key in self._pending:
                self._pending[key].taken = True
            return
        self._pending.pop(key, None)
        if kind == frames.FAILED:
            self._on_failed(job_id, epoch, message)

    async def _settle(self, link: _AgentLink | None, key: tuple[str, int], text: str) -> None:
        """A run has ended."""
        settled = False
        try:
            settled = self._on_report is not None and await self._on_report(*key, Report.from_json(text))
        except Exception:
            log.exception("the report of job %s failed", key[0])
        if link is not None:
            link.send(frames.reply(*key, settled=settled))

    def _on_gone(self, link: _AgentLink) -> None:
        """The agent has died. What it had taken may run or not; what it had not is for the next one."""
        if self._closed or link is not self._agent:
            return
        self._agent = None
        log_event(log, "agent_lost", level=logging.ERROR, pid=link.process.pid, see=self._log_path)
        self._fail("the scheduler's agent died while it started the job", taken_only=True)
        if time.monotonic() - link.born < YOUNG_SECONDS:
            self._failures += 1
        else:
            self._failures = 0
        self._restart = asyncio.get_running_loop().create_task(self._start_again())

    async def _start_again(self) -> None:
        while not self._closed:
            if self._failures >= TRIES:
                self._fail(f"the scheduler's agent does not start; see {self._log_path} on the server's machine")
            if self._failures:
                await asyncio.sleep(min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 10), LONGEST_PAUSE_SECONDS))
            try:
                await self._start_agent()
                return
            except OSError as error:
                self._failures += 1
                log_event(log, "agent_not_started", level=logging.ERROR, why=str(error))

    def _fail(self, message: str, *, taken_only: bool = False) -> None:
        for key, pending in list(self._pending.items()):
            if pending.taken or not taken_only:
                del self._pending[key]
                self._on_failed(*key, message)


class _AgentLink(asyncio.Protocol):
    """The socket to one agent, and its process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        on_answer: Callable[[str, str, int, str], None],
        on_gone: Callable[[_AgentLink], None],
    ) -> None:
        self.process = process
        self.born = time.monotonic()
        self._on_answer = on_answer
        self._on_gone = on_gone
        self._buffer = frames.Buffer()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    def send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def close(self) -> None:
        """Let go of it, alive or not."""
        self._stop_watching()
        # It is not ours to wait for any more, and goes on after us.
        if self.process.poll() is None:
            self.process.returncode = 0
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every event loop's transports inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer.feed(data)
        while (payload := self._buffer.take()) is not None:
            kind, job_id, epoch, fields = frames.read_answer(payload)
            self._on_answer(kind, job_id, epoch, fields.get("message", fields.get("report", "")))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_gone(self)

    def _reap(self) -> None:
        if self.process.poll() is not None:
            self._stop_watching()

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def _spawn(sock: socket.socket, log_path: Path, files: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Start an agent in a session of its own. Raises OSError."""
    log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    errors = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    environment = os.environ | {
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        # Where we have our modules from, whatever the directory that we were started in.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # Words of commands, environments and paths are bytes; this is how the server reads and we write them.
        "PYTHONUTF8": "1",
    }
    environment.pop("NOTIFY_SOCKET", None)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "gpusched.scheduler.runner.agent", *map(str, (sock.fileno(), *files))],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=environment,
            cwd="/",
            pass_fds=(sock.fileno(),),
            start_new_session=True,
        )
    finally:
        os.close(errors)
