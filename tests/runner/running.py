"""Runs of real commands by a real agent, for tests."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from gpusched.client.transport import open_channel
from gpusched.scheduler.runner.model import Run
from gpusched.scheduler.runner.runner import ProcessRunner
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2, scheduler_pb2_grpc
from support.server import Server
from support.waiting import wait_until

MARK = "RUNNER_TEST_MARK"
QUICK = 15.0
"""Seconds that anything may take here before the test fails; a busy machine is slow."""
SECOND = 1.0


class Runner:
    """A ProcessRunner in an event loop of its own.

    Attributes:
        failures: what it has told as failed: job, epoch, message.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_path = directory / "agent.log"
        self.failures: list[tuple[str, int, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.process_runner = ProcessRunner(lambda *failure: self.failures.append(failure), self.log_path)
        self.call(self.process_runner.start())
        self.agents = [self.agent]

    def call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(QUICK)

    @property
    def agent(self) -> int:
        """Process id of the agent of the moment."""
        link = wait_until(lambda: self.process_runner._agent, QUICK, "an agent")
        return int(link.process.pid)

    def launch(self, run: Run) -> None:
        self._loop.call_soon_threadsafe(self.process_runner.launch, run)

    def close(self) -> None:
        """As the server does at its end."""
        if self._thread.is_alive():
            self.call(self.process_runner.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        agent = self.process_runner._agent
        self.close()
        if self.log_path.exists():
            print(f"--- log of the agent ---\n{self.log_path.read_text()}")
        if agent is not None and psutil.pid_exists(agent.process.pid):
            for process in [*psutil.Process(agent.process.pid).children(recursive=True)]:
                kill(process.pid)
            kill(agent.process.pid)


class Job:
    """A lease from a real server, for a supervisor to take over.

    Args:
        server: that gives it.
        gpus: how many.
    """

    def __init__(self, server: Server, gpus: int = 1) -> None:
        self.server = server
        self.mark = secrets.token_hex(8)
        self._channel = open_channel(server.address)
        self.stub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        request = scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=gpus))
        self._call = self.stub.Acquire(request)  # lives on until a supervisor supersedes it
        self.accepted = scheduler_pb2.Accepted()
        self.granted = scheduler_pb2.Granted()
        for event in self._call:
            if event.HasField("accepted"):
                self.accepted = event.accepted
            if event.HasField("granted"):
                self.granted = event.granted
                break
        self.id = self.accepted.job_id

    def run(self, directory: Path, command: Sequence[str], **changes: Any) -> Run:
        """What a supervisor is to do for it."""
        known = {
            "job_id": self.id,
            "epoch": self.granted.epoch,
            "resume_token": self.accepted.resume_token,
            "address": self.server.address,
            "state_id": self.accepted.state_id,
            "environment": {"PATH": os.environ["PATH"], MARK: self.mark} | dict(self.granted.environment),
        }
        return make_run(directory, command, **known | changes)

    def get(self) -> job_pb2.Job:
        """The job as the server tells it."""
        return self.stub.GetJob(scheduler_pb2.GetJobRequest(job_id=self.id), timeout=QUICK).job

    @property
    def state(self) -> str:
        return str(job_pb2.JobState.Name(self.get().state).removeprefix("JOB_STATE_"))

    def wait(self, timeout: float = QUICK) -> job_pb2.Job:
        """The job once it has ended."""

        def ended() -> job_pb2.Job | None:
            job = self.get()
            return job if job.HasField("ended_at") else None

        return wait_until(ended, timeout, f"an end of job {self.id}")

    def wait_until_attached(self) -> None:
        """Until the supervisor has the stream: ours was superseded."""
        wait_until(lambda: self._call.code() is not None, QUICK, "a supervisor's stream")

    def processes(self) -> list[int]:
        """All living processes of the command, however they have daemonised."""
        return marked(self.mark)

    def close(self) -> None:
        for pid in self.processes():
            kill(pid)
        self._channel.close()


def make_run(directory: Path, command: Sequence[str], **changes: Any) -> Run:
    """A run with something for every field."""
    job_id = changes.get("job_id", "1")
    values: dict[str, Any] = {
        "job_id": job_id,
        "epoch": 1,
        "attempt": 1,
        "resume_token": "secret",
        "address": "127.0.0.1:1",
        "state_id": "a state",
        "command": tuple(command),
        "environment": {"PATH": os.environ["PATH"], MARK: secrets.token_hex(8)},
        "working_directory": str(directory),
        "output_path": str(directory / f"{job_id}.log"),
        "time_limit": None,
        "grace": 5.0,
    }
    return Run(**values | changes)


def output(run: Run) -> str:
    """What is in a run's output file so far."""
    path = Path(run.output_path)
    return path.read_text(errors="replace") if path.exists() else ""


def wait_for_output(run: Run, text: str, timeout: float = QUICK) -> None:
    wait_until(lambda: text in output(run), timeout, f"{text!r} in the output")


def supervisor_of(run: Run) -> int:
    """Process id of a run's supervisor: the nearest of that name above any process of the command."""

    def find() -> int:
        for pid in marked(run.environment[MARK]):
            try:
                above = psutil.Process(pid).parents()
            except psutil.NoSuchProcess:
                continue
            for process in above:
                if process.name() == f"gpusched-{run.job_id}":
                    return process.pid
        return 0

    return wait_until(find, QUICK, "a supervisor")


def marked(mark: str) -> list[int]:
    """All living processes that have inherited a mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(*pids: int) -> None:
    """SIGKILL, for those that are there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def assert_dead_within(job: Job, seconds: float) -> None:
    """All of a job's processes are dead that soon."""
    began = time.monotonic()
    wait_until(lambda: not job.processes(), seconds + 5, "an end of all processes", every=0.005)
    assert time.monotonic() - began < seconds, "too slow"


def state(name: str) -> int:
    """The number of a job's state: `state("LOST")`."""
    return int(job_pb2.JobState.Value(f"JOB_STATE_{name}"))
