"""gsrun while it waits: what it says, how it is interrupted, what happens when the scheduler goes away."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc
from gsrun.conftest import GPUS
from gsrun.running import GSRUN, MARK, Gsrun, marked, state_of
from support.server import Server, free_port
from support.waiting import wait_until

Start = Callable[..., Gsrun]
Stub = scheduler_pb2_grpc.SchedulerStub
ALL = ("-n", str(GPUS))


@pytest.fixture
def busy(gsrun: Start) -> Iterator[Gsrun]:
    """A gsrun on all GPUs, until it is told to end or the test is over."""
    run = gsrun(*ALL, "--name", "train", "sh", "-c", "echo up; exec sleep 100")
    run.wait_for_out("up")
    yield run
    run.signal(signal.SIGTERM)
    run.wait()


def queued_jobs(stub: Stub) -> list[job_pb2.Job]:
    states = [job_pb2.JOB_STATE_QUEUED]
    return list(stub.ListJobs(scheduler_pb2.ListJobsRequest(filter=scheduler_pb2.JobFilter(states=states))).jobs)


def test_plain_lines_on_a_pipe(gsrun: Start, busy: Gsrun) -> None:
    """One line for each change, no escapes, nothing on stdout."""
    first = gsrun("-n", "2", "true")
    reason = r"needs 2 GPUs, 0 free; GPU 0,1,2,3 held by \w+ \(train\)( · expected at [0-9:]+)?"
    first.wait_for_err(rf"gsrun: 1st of 1 in the queue · {reason}\n")
    second = gsrun("-n", "3", "true")
    second.wait_for_err(r"gsrun: 2nd of 2 in the queue · 3 GPUs · waits behind job \d+ ")
    first.wait_for_err("1st of 2 in the queue")
    busy.signal(signal.SIGTERM)
    assert first.wait() == second.wait() == 0
    for run in (first, second):
        assert "\x1b" not in run.err and "\r" not in run.err
        assert re.search(r"gsrun: got GPU [\d,]+ \(job \d+\) after \d+s\n$", run.err)
        assert len(set(run.err.splitlines())) == len(run.err.splitlines())
        assert run.out == ""


def test_quiet_says_nothing(gsrun: Start, busy: Gsrun, stub: Stub) -> None:
    run = gsrun("-q", "-n", "1", "true")
    wait_until(lambda: queued_jobs(stub))
    busy.signal(signal.SIGTERM)
    assert run.wait() == 0
    assert run.err == ""


def test_verbose_names_the_job(gsrun: Start) -> None:
    run = gsrun("-v", "-n", "2", "true")
    assert run.wait() == 0
    assert re.fullmatch(r"gsrun: job (\d+) at 127.0.0.1:\d+\ngsrun: got GPU 0,1 \(job \1\) after 0s\n", run.err)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
)
def test_a_signal_ends_the_wait(gsrun: Start, busy: Gsrun, stub: Stub, number: int, code: int) -> None:
    run = gsrun("-n", "1", "--name", f"leaves by {number}.", "sh", "-c", "echo started")
    run.wait_for_err("1st of 1")
    run.signal(number)
    assert run.wait() == code
    assert run.survivors() == []
    assert run.out == ""
    wait_until(lambda: not queued_jobs(stub))
    request = scheduler_pb2.ListJobsRequest(
        filter=scheduler_pb2.JobFilter(name=f"leaves by {number}.", include_ended=True)
    )
    assert [job.state for job in stub.ListJobs(request).jobs] == [job_pb2.JOB_STATE_CANCELLED]


def test_harmless_signals_do_not_end_the_wait(gsrun: Start, busy: Gsrun) -> None:
    run = gsrun("-n", "1", "true")
    run.wait_for_err("1st of 1")
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH, signal.SIGCONT):
        run.signal(number)
    busy.signal(signal.SIGTERM)
    assert run.wait() == 0


def test_immediate(gsrun: Start, busy: Gsrun) -> None:
    run = gsrun("--immediate", "true")
    assert run.wait() == 75
    assert "gsrun: " in run.err
    assert run.err.count("\n") == 1


def test_max_wait(gsrun: Start, busy: Gsrun) -> None:
    run = gsrun("--max-wait", "0.4s", "true")
    assert run.wait() == 75
    assert "waited 0.4 s" in run.err


def test_dry_run(gsrun: Start, busy: Gsrun) -> None:
    run = gsrun("--dry-run", "-n", "2", "true")
    assert run.wait() == 0
    assert re.fullmatch(r"would wait, 1st in the queue: needs 2 GPUs, 0 free.*\n", run.out)
    run = gsrun("--dry-run", "--immediate", "-n", "2", "true")
    assert run.wait() == 0
    assert re.fullmatch(r"would fail at once, as --immediate asks \(status 75\): needs 2 GPUs, 0 free.*\n", run.out)
    busy.signal(signal.SIGTERM)
    busy.wait()
    run = gsrun("--dry-run", "-n", "2")
    assert run.wait() == 0
    assert run.out == "would start now, on GPU 0,1\n"
    assert run.err == ""


@pytest.mark.slow
def test_dry_run_of_certain_gpus(gsrun: Start, busy: Gsrun) -> None:
    """Conditions decide what would be had, and what can never be had is refused with what there is."""
    run = gsrun("--dry-run", "--gpu-id", "2,1")
    assert run.wait() == 0
    assert re.fullmatch(r"would wait, 1st in the queue: needs 2 GPUs, 0 free; GPU 1,2 held by .*\n", run.out)
    busy.signal(signal.SIGTERM)
    busy.wait()
    for words, gpus in (("--gpu-id 2,1", "1,2"), ("-n 1 --gpu-id 2,1", "1"), ("-n 2 --exclude 0,2", "1,3")):
        run = gsrun("--dry-run", *words.split())
        assert run.wait() == 0, run.err
        assert run.out == f"would start now, on GPU {gpus}\n"
    for words, said in (
        ("--gpu-id 9", "gsrun: --gpu-id: there is no GPU '9'"),
        ("--node mars", "gsrun: --node: there is no node 'mars'"),
        ("--constraint disk=nvme", "gsrun: --constraint: no GPU or node on node "),
        ("-n 3 --gpus-per-node 2", "gsrun: --gpus-per-node: 3 GPUs in all cannot be 2 on each node"),
    ):
        run = gsrun("--dry-run", *words.split())
        assert run.wait() == 2
        assert said in run.err


def test_cancelled_by_somebody_while_queued(gsrun: Start, busy: Gsrun, stub: Stub) -> None:
    run = gsrun("-n", "1", "true")
    job = wait_until(lambda: next(iter(queued_jobs(stub)), None))
    stub.CancelJob(scheduler_pb2.CancelJobRequest(job_id=job.id, reason="no longer needed"))
    assert run.wait() == 143
    assert "no longer needed" in run.err


@pytest.mark.slow
def test_frozen_waiter_is_passed_over_and_comes_back(gsrun: Start, busy: Gsrun, stub: Stub) -> None:
    """A stopped gsrun at the head does not sit on GPUs; woken, it has its old place."""
    frozen = gsrun(*ALL, "sh", "-c", "echo frozen ran")
    frozen.wait_for_err("1st of 1")
    frozen.signal(signal.SIGSTOP)
    wait_until(lambda: state_of(frozen.front) == "T")
    behind = gsrun(*ALL, "sh", "-c", "echo behind ran; exec sleep 100")
    behind.wait_for_err("2nd of 2")
    later = gsrun(*ALL, "sh", "-c", "echo later ran")
    later.wait_for_err("3rd of 3")
    busy.signal(signal.SIGTERM)
    behind.wait_for_out("behind ran", 10)
    assert frozen.out == ""
    frozen.signal(signal.SIGCONT)
    frozen.wait_for_err("1st of 2 in the queue")
    behind.signal(signal.SIGTERM)
    frozen.wait_for_out("frozen ran")
    assert frozen.wait() == later.wait() == 0


# -- a scheduler that is not there, or goes ----------------------------------------------------------------


@pytest.mark.slow
def test_servers_death_does_not_end_a_command(own: Server, at: Start) -> None:
    go = own.state_dir / "go"
    run = at("sh", "-c", f"echo up; until [ -e {go} ]; do sleep 0.05; done; echo done; exit 6")
    run.wait_for_out("up")
    own.kill()
    run.wait_for_err("gsrun: the scheduler is away; holding your GPUs, the command goes on")
    go.touch()
    assert run.wait() == 6
    assert "done" in run.out
    assert run.err.count("\n") == 1


@pytest.mark.slow
def test_servers_stop_does_not_end_a_command(own: Server, at: Start) -> None:
    go = own.state_dir / "go"
    run = at("sh", "-c", f"echo up; until [ -e {go} ]; do sleep 0.05; done; exit 6")
    run.wait_for_out("up")
    own.stop()
    run.wait_for_err("the scheduler is away")
    go.touch()
    assert run.wait() == 6


@pytest.mark.slow
def test_max_wait_counts_while_the_server_is_away(own: Server, at: Start) -> None:
    busy = at("-n", "2", "sh", "-c", "echo up; exec sleep 100")
    busy.wait_for_out("up")
    waiter = at("-n", "1", "--max-wait", "1s", "true")
    waiter.wait_for_err("1st of 1")
    own.kill()
    assert waiter.wait() == 75


def test_no_server(idle: Server) -> None:
    port = free_port()
    done = subprocess.run(
        [*GSRUN, "--url", f"127.0.0.1:{port}", "true"], capture_output=True, text=True, env=idle.env, timeout=20
    )
    assert done.returncode == 69
    assert (
        f"gsrun: no scheduler answers at 127.0.0.1:{port} (connection refused); start one with `gpusched serve`"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_not_gpusched(idle: Server) -> None:
    """A web server on the port."""
    script = (
        "import http.server; s = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler); "
        "print(s.server_port, flush=True); s.serve_forever()"
    )
    web = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert web.stdout is not None
        port = int(web.stdout.readline())
        done = subprocess.run(
            [*GSRUN, "--url", f"127.0.0.1:{port}", "true"], capture_output=True, text=True, env=idle.env, timeout=30
        )
    finally:
        web.kill()
        web.wait()
    assert done.returncode == 69
    assert f"what listens at 127.0.0.1:{port} does not answer as a scheduler does" in done.stderr


@pytest.mark.slow
def test_autostart_outlives_gsrun(idle: Server) -> None:
    """With no server, one is started, said so once, and it is no child that gsrun would end."""
    with Server("2") as prepared:
        prepared.stop()
        mark = secrets.token_hex(8)
        env = prepared.env | {"GPUSCHED_AUTOSTART": "1", "GPUSCHED_SIMULATE": "2", MARK: mark}
        first = subprocess.run([*GSRUN, "true"], capture_output=True, text=True, env=env, timeout=30)
        try:
            assert first.returncode == 0, first.stderr
            assert "gpusched: no scheduler was running; started one on" in first.stderr
            second = subprocess.run([*GSRUN, "echo", "hi"], capture_output=True, text=True, env=env, timeout=30)
            assert (second.returncode, second.stdout, second.stderr) == (0, "hi\n", "")
        finally:
            for line in marked(mark):
                os.kill(int(line.split()[0]), signal.SIGKILL)
