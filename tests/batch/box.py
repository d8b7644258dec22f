"""A server and what people do with batch jobs on it: by the contract, and by the real command."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cli.commands import CLI, gpusched
from gpusched.client.admin import fetch_token
from gpusched.client.cli.main import run
from gpusched.client.transport import open_channel
from gpusched.v1 import admin_pb2, admin_pb2_grpc, job_pb2, resources_pb2, scheduler_pb2, scheduler_pb2_grpc
from support.server import Server
from support.waiting import wait_until

PATH = "/usr/bin:/bin"
SOON = 30.0
"""Seconds that anything may take here before the test fails; a busy machine is slow."""


class Box:
    """Calls to one server; they wait for it where it is being restarted."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._channel = open_channel(server.address)
        self.stub = scheduler_pb2_grpc.SchedulerStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    # -- submitting ----------------------------------------------------------------------------------------

    def submit(self, *command: str, gpus: int = 1, time_limit: float | None = None, **fields: Any) -> str:
        """Submit by the contract; one word alone is a script for `sh`. The job's id."""
        return str(self.stub.Submit(request(*command, gpus=gpus, time_limit=time_limit, **fields), timeout=SOON).job.id)

    # -- looking -------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Any:
        call = scheduler_pb2.GetJobRequest(job_id=job_id)
        return self.stub.GetJob(call, timeout=SOON, wait_for_ready=True).job

    def state(self, job_id: str) -> str:
        return state_of(self.job(job_id))

    def reason(self, job_id: str) -> str:
        """Why it waits, as a word."""
        return job_pb2.ReasonCode.Name(self.job(job_id).reason.code).removeprefix("REASON_CODE_")

    def ended(self, job_id: str) -> Any:
        """The job, once it has ended."""
        call = scheduler_pb2.WaitJobRequest(job_id=job_id)
        *_, last = self.stub.WaitJob(call, timeout=SOON, wait_for_ready=True)
        return self.job(last.job.id)

    def attached(self, job_id: str) -> Any:
        """The job, if its supervisor has come for the lease."""
        job = self.job(job_id)
        lines = [line.message for line in job.history]
        return job if job.holder_pid and "confirmed" in lines else None

    def in_state(self, job_id: str, state: str) -> Any:
        """The job, once it is in a state."""
        wait_until(lambda: self.state(job_id) == state, SOON, f"job {job_id} {state}, it is {self.state(job_id)}")
        return self.job(job_id)

    def said(self, job_id: str, text: str) -> bytes:
        """What a job has written, once there is some text in it."""
        return wait_until(lambda: (log := self.log(job_id)) if text.encode() in self.log(job_id) else b"", SOON, text)

    def log(self, job_id: str, **fields: Any) -> bytes:
        """What a job has written so far; nothing if there is nothing to be read."""
        call = scheduler_pb2.StreamLogsRequest(job_id=job_id, **fields)
        try:
            return b"".join(piece.data for piece in self.stub.StreamLogs(call, timeout=SOON, wait_for_ready=True))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                return b""
            raise

    def attempts(self, job_id: str) -> list[tuple[str, str]]:
        """How its runs ended."""
        return [(state_of(each), each.outcome.message) for each in self.job(job_id).attempts]

    def history(self, job_id: str) -> str:
        return "\n".join(line.message for line in self.job(job_id).history)

    # -- steering ------------------------------------------------------------------------------------------

    def update(self, job_id: str, **fields: Any) -> Any:
        wanted = job_pb2.Job(id=job_id, **fields)
        call = scheduler_pb2.UpdateJobRequest(job=wanted, update_mask=FieldMask(paths=list(fields)))
        return self.stub.UpdateJob(call, timeout=SOON).job

    def cancel(self, job_id: str) -> Any:
        return self.stub.CancelJob(scheduler_pb2.CancelJobRequest(job_id=job_id), timeout=SOON).job

    def requeue(self, job_id: str) -> Any:
        return self.stub.RequeueJob(scheduler_pb2.RequeueJobRequest(job_id=job_id), timeout=SOON).job

    def pause(self, on: bool = True) -> None:
        """Start nothing new, or do again."""
        status = self.stub.GetStatus(scheduler_pb2.GetStatusRequest(), timeout=SOON, wait_for_ready=True)
        metadata = [("authorization", f"Bearer {fetch_token(status.admin_socket)}")]
        admin = admin_pb2_grpc.AdminStub(self._channel)
        if on:
            admin.PauseScheduling(admin_pb2.PauseSchedulingRequest(reason="a test"), timeout=SOON, metadata=metadata)
        else:
            admin.ResumeScheduling(admin_pb2.ResumeSchedulingRequest(), timeout=SOON, metadata=metadata)

    # -- the command ---------------------------------------------------------------------------------------

    def cli(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return gpusched(self.server, *argv, **options)

    def quick(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        """The command without a process of its own: for many of them in a row."""
        out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(["--url", self.server.address, *argv])
        written = [stream.buffer.getvalue() for stream in (out, err)]  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(argv, status, *written)

    def good(self, *argv: str) -> str:
        """Standard output of a `quick` one that must work and have nothing to complain of."""
        done = self.quick(*argv)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def begin(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """A command that goes on beside the test."""
        return subprocess.Popen(
            [*CLI, *argv],
            env=self.server.env,
            stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )


class Gate:
    """A place in a job's script where it waits until the test lets it (and all others there) go on.

    Attributes:
        words: the line of the script.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.words = f"read _ <{path}"
        self._path = path
        self._fd = -1

    def open(self) -> None:
        # Held open for both ways: nobody waits for the other end, for as long as the test goes on.
        self._fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
        os.write(self._fd, b"\n" * 1000)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def request(*command: str, gpus: int = 1, time_limit: float | None = None, **fields: Any) -> Any:
    """A `SubmitRequest` for a job that depends on nothing of this machine; one word is a script for `sh`."""
    words = ("sh", "-c", command[0]) if len(command) == 1 else command
    fields = {"environment": {"PATH": PATH}, "working_directory": "/", **fields}
    message = scheduler_pb2.SubmitRequest(command=words, resources=resources_pb2.ResourceRequest(gpus=gpus), **fields)
    if time_limit is not None:
        message.time_limit.CopyFrom(seconds(time_limit))
    return message


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def retry(max_retries: int, backoff: float = 0.05, *statuses: int) -> Any:
    return job_pb2.RetryPolicy(max_retries=max_retries, backoff=seconds(backoff), exit_statuses=statuses)


def after(job_id: str, condition: str = "UNSPECIFIED") -> list[Any]:
    value: Any = job_pb2.DependencyCondition.Value(f"DEPENDENCY_CONDITION_{condition}")
    return [job_pb2.Dependency(job_id=job_id, condition=value)]


def state_of(message: Any) -> str:
    """`RUNNING` for a job or an attempt."""
    return job_pb2.JobState.Name(message.state).removeprefix("JOB_STATE_")


def refusal(error: Any) -> tuple[str, str, str, str]:
    """Status, reason, field and text of a call that was refused."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info, violation = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(violation)
    field = violation.field_violations[0].field if violation.field_violations else ""
    return error.code().name, info.reason, field, status.message


def is_dead(pid: int) -> bool:
    """No process, or one that only waits to be reaped."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def peak_memory(pid: int) -> int:
    """The most memory that a process has had resident, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    """Count a process's most memory anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
