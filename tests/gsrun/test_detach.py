"""`gsrun --detach`: the same command line, as a batch job."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc
from gsrun.running import GSRUN, QUICK, Gsrun
from support.server import Server, free_port
from support.waiting import wait_until

Start = Callable[..., Gsrun]
Stub = scheduler_pb2_grpc.SchedulerStub


def detach(server: Server, *words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GSRUN, "--detach", *words], env=server.env | env, cwd=cwd, capture_output=True, text=True, timeout=30
    )


def ended(stub: Stub, job_id: str) -> job_pb2.Job:
    def look() -> job_pb2.Job | None:
        job: job_pb2.Job = stub.GetJob(scheduler_pb2.GetJobRequest(job_id=job_id), timeout=QUICK).job
        return job if job.HasField("ended_at") else None

    return wait_until(look, QUICK, f"the end of job {job_id}")


def output(stub: Stub, job_id: str) -> str:
    parts = stub.StreamLogs(scheduler_pb2.StreamLogsRequest(job_id=job_id), timeout=QUICK)
    return b"".join(part.data for part in parts).decode()


def test_detach(idle: Server, stub: Stub, tmp_path: Path) -> None:
    script = 'pwd; echo "$GREETING:$CUDA_VISIBLE_DEVICES:$GPUSCHED_HOLDER:"; exit 3'
    options = ("-n", "2", "--name", "later", "--time", "1h", "--priority", "-5")
    done = detach(idle, *options, "sh", "-c", script, cwd=tmp_path, GREETING="hello", GPUSCHED_KILL_AFTER="20s")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\n", done.stdout)
    job_id = done.stdout.strip()
    assert done.stderr == f"gsrun: queued as job {job_id}; follow it with: gpusched logs -f {job_id}\n"
    job = ended(stub, job_id)
    assert (job.kind, job.state, job.outcome.exit_status) == (job_pb2.JOB_KIND_BATCH, job_pb2.JOB_STATE_FAILED, 3)
    assert (job.name, job.priority, job.time_limit.seconds, job.resources.gpus) == ("later", -5, 3600, 2)
    assert list(job.command) == ["sh", "-c", script]
    assert output(stub, job_id) == f"{tmp_path}\nhello:0,1::\n"


def test_quiet_prints_the_id_alone(idle: Server, stub: Stub) -> None:
    done = detach(idle, "-q", "--signal", "USR1@5s", "true")
    assert (done.returncode, done.stderr) == (0, "")
    assert ended(stub, done.stdout.strip()).state == job_pb2.JOB_STATE_COMPLETED


@pytest.mark.parametrize(("more", "said"), [((), True), (("--time", "1h"), False), (("--preemptible",), False)])
def test_a_signal_that_can_never_come(idle: Server, stub: Stub, more: tuple[str, ...], said: bool) -> None:
    done = detach(idle, "--signal", "USR1@5s", *more, "true")
    assert done.returncode == 0 and ended(stub, done.stdout.strip()).state == job_pb2.JOB_STATE_COMPLETED
    assert ("--signal has no effect without --time or --preemptible" in done.stderr) == said


def test_other_address_is_named(idle: Server, stub: Stub) -> None:
    done = detach(idle, "--url", idle.address, "true", GPUSCHED_URL="127.0.0.1:1")
    assert f"follow it with: gpusched --url {idle.address} logs -f {done.stdout.strip()}\n" in done.stderr
    ended(stub, done.stdout.strip())


def test_inside_a_lease_it_is_a_job_of_its_own(gsrun: Start, stub: Stub) -> None:
    script = 'echo "$GPUSCHED_JOB_ID:$GPUSCHED_HOLDER:$CUDA_VISIBLE_DEVICES"'
    run = gsrun("-n", "1", *GSRUN, "--detach", "-n", "2", "sh", "-c", script)
    assert run.wait() == 0
    job_id = run.out.strip()
    ended(stub, job_id)
    assert re.fullmatch(rf"{job_id}::\d,\d\n", output(stub, job_id))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-n", "5", "true"), 2, "-n: "),
        (("--gpu-model", "abacus", "true"), 2, "abacus"),
        (("no-such-command-here",), 127, "no-such-command-here: command not found"),
        ((), 2, "say which command to run"),
        (("--immediate", "true"), 2, "--detach and --immediate together make no sense"),
        (("--max-wait", "1s", "true"), 2, "--detach and --max-wait together make no sense"),
        (("--on-lost", "keep", "true"), 2, "--detach and --on-lost together make no sense"),
        (("--leave-children", "true"), 2, "--detach and --leave-children together make no sense"),
        (("echo", os.fsdecode(b"\xff")), 2, "command: '\\udcff' will not do: give text in UTF-8"),
    ],
)
def test_refusals(idle: Server, words: tuple[str, ...], code: int, said: str) -> None:
    done = detach(idle, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_environment_of_a_megabyte(idle: Server) -> None:
    done = detach(idle, "true", **{f"BIG{number}": "x" * 100_000 for number in range(16)})
    assert (done.returncode, done.stdout) == (2, "")
    assert "the command and its environment are too much for one request" in done.stderr


def test_no_scheduler(idle: Server) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = detach(idle, "--url", address, "true")
    assert (done.returncode, done.stdout) == (69, "")
    assert f"no scheduler answers at {address}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_dry_run_submits_nothing(idle: Server) -> None:
    done = detach(idle, "--dry-run", "-n", "2", "true")
    assert (done.returncode, done.stdout) == (0, "would start now, on GPU 0,1\n")
