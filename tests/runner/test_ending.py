"""How a run is ended: at its limit, by a cancel, by what it leaves. With real processes and a real scheduler."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpusched.scheduler.runner.model import Run
from gpusched.v1 import scheduler_pb2
from gsrun.running import FOREST
from runner.fake_scheduler import STATE, TOKEN, Scheduler
from runner.running import QUICK, Job, Runner, alive, make_run, output, state, supervisor_of, wait_for_output
from support.server import Server
from support.waiting import wait_until

Begin = Callable[..., tuple[Job, Run]]

POLITE = (
    sys.executable,
    "-uc",
    "import signal, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('asked'), sys.exit(9)))\n"
    "print('up')\n"
    "while True: signal.pause()",
)


@pytest.fixture
def begin(shared_server: Server, shared_runner: Runner, lease: Callable[..., Job], tmp_path: Path) -> Begin:
    """`begin(*command, **changes of the run)` starts it."""

    def start(*command: str, **changes: Any) -> tuple[Job, Run]:
        job = lease(shared_server)
        run = job.run(tmp_path, command, **changes)
        shared_runner.launch(run)
        return job, run

    return start


def lines(run: Run) -> list[str]:
    return output(run).splitlines()


# -- the time limit ----------------------------------------------------------------------------------------


def test_time_limit_asks_first(begin: Begin) -> None:
    job, run = begin(*POLITE, time_limit=1.0, grace=30.0)
    ended = job.wait()
    assert (ended.state, ended.outcome.exit_status) == (state("TIMED_OUT"), 9)
    said = "gpusched: the time limit of 1s is reached; ending the command (SIGTERM, and SIGKILL after 30 s)"
    assert sorted(lines(run)) == sorted(["up", said, "asked"])


@pytest.mark.slow
def test_time_limit_then_kills_all_of_a_tree_that_does_not_listen(begin: Begin) -> None:
    began = time.monotonic()
    job, _ = begin(sys.executable, FOREST, "20", "stubborn", time_limit=1.0, grace=0.5)
    ended = job.wait()
    assert ended.state == state("TIMED_OUT")
    assert not job.processes()
    assert time.monotonic() - began >= 1.5, "it had no grace"


def test_a_run_within_its_limit_is_left_alone(begin: Begin) -> None:
    job, run = begin("sh", "-c", "sleep 0.2; echo done", time_limit=60.0)
    assert job.wait().state == state("COMPLETED")
    assert lines(run) == ["done"]


@pytest.mark.slow
def test_the_limits_coming_is_told(begin: Begin) -> None:
    job, run = begin(*POLITE, time_limit=10.0)
    wait_for_output(run, "gpusched: notice: the time limit of 10s ends in 1s\n", timeout=20.0)
    job.stub.CancelJob(scheduler_pb2.CancelJobRequest(job_id=job.id))
    job.wait()


# -- cancel ------------------------------------------------------------------------------------------------


def cancel(job: Job, reason: str = "") -> None:
    job.stub.CancelJob(scheduler_pb2.CancelJobRequest(job_id=job.id, reason=reason), timeout=10)


def test_cancel_asks_first(begin: Begin) -> None:
    job, run = begin(*POLITE, grace=20.0)
    wait_for_output(run, "up")
    job.wait_until_attached()
    cancel(job, "not needed")
    ended = job.wait()
    assert (ended.state, ended.outcome.exit_status) == (state("CANCELLED"), 9)
    asked, told = sorted(lines(run)[1:])
    assert asked == "asked"
    assert told.startswith("gpusched: the job was cancelled: ") and "not needed" in told
    assert told.endswith("; ending the command (SIGTERM, and SIGKILL after 20 s)")


def test_cancel_then_kills_all_of_a_tree_that_does_not_listen(begin: Begin) -> None:
    job, run = begin(sys.executable, FOREST, "20", "stubborn", grace=0.3)
    wait_for_output(run, "ready")
    job.wait_until_attached()
    cancel(job)
    ended = job.wait()
    assert (ended.state, ended.outcome.signal) == (state("CANCELLED"), 15)
    assert not job.processes()


def test_a_stopped_command_can_be_cancelled(begin: Begin) -> None:
    job, run = begin("sh", "-c", "echo up; kill -STOP $$; echo on")
    wait_for_output(run, "up")
    job.wait_until_attached()
    cancel(job)
    ended = job.wait()
    assert (ended.state, ended.outcome.signal) == (state("CANCELLED"), signal.SIGTERM)


# -- what is left ------------------------------------------------------------------------------------------


def test_what_a_command_leaves_is_ended(begin: Begin) -> None:
    job, run = begin("sh", "-c", "setsid sleep 1000 & sleep 1000 & exit 3")
    ended = job.wait()
    assert ended.outcome.exit_status == 3
    assert not job.processes()
    assert output(run) == "gpusched: ending 2 processes (sleep (2)), left behind by the command\n"


def test_what_a_command_leaves_and_does_not_listen_is_killed(begin: Begin) -> None:
    # It ends itself when it reads its empty stdin.
    job, run = begin(sys.executable, FOREST, "20", "stubborn", "end")
    ended = job.wait()
    assert ended.outcome.exit_status == 3
    assert not job.processes()
    assert "left behind by the command" in output(run)


def test_what_goes_by_itself_is_not_mentioned(begin: Begin) -> None:
    job, run = begin("bash", "-c", "exec > >(sleep 0.02; cat); echo through the pipe")
    assert job.wait().outcome.exit_status == 0
    assert output(run) == "through the pipe\n"


def test_our_lines_are_lines_of_their_own(begin: Begin) -> None:
    job, run = begin("sh", "-c", "printf 'no end'; sleep 1000", time_limit=0.5)
    job.wait()
    assert lines(run)[0] == "no end"
    assert lines(run)[1].startswith("gpusched: the time limit")


# -- what it used ------------------------------------------------------------------------------------------

BURN = """
import os, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
burn(0.3)
if os.fork() == 0:
    burn(0.3)
    os._exit(0)
os.wait()
block = bytearray(150_000_000)
if os.fork() == 0:
    more = bytearray(150_000_000)
    time.sleep(1)
    os._exit(0)
os.wait()
"""


@pytest.fixture
def used(shared_runner: Runner, tmp_path: Path) -> Iterator[Callable[..., scheduler_pb2.ReleaseRequest]]:
    """`used(command, gpus)` runs it under a fake scheduler, and gives what is reported."""
    scheduler = Scheduler()

    def report(command: tuple[str, ...], gpus: str = "") -> scheduler_pb2.ReleaseRequest:
        environment = {"PATH": os.environ["PATH"], "GPUSCHED_GPUS": gpus}
        run = make_run(
            *(tmp_path, command), address=scheduler.address, resume_token=TOKEN, state_id=STATE, environment=environment
        )
        shared_runner.launch(run)
        return wait_until(lambda: scheduler.released, QUICK, "a report")[0]

    yield report
    scheduler.stop()


@pytest.mark.slow
def test_usage(used: Callable[..., scheduler_pb2.ReleaseRequest]) -> None:
    began = time.monotonic()
    usage = used((sys.executable, "-c", BURN), "GPU-1,GPU-2").usage
    took = time.monotonic() - began
    wall = usage.wall.ToMicroseconds() / 1e6
    assert 1.6 < wall < took
    assert 0.6 <= usage.cpu.ToMicroseconds() / 1e6 < wall + 0.5
    assert usage.gpu_seconds == pytest.approx(2 * wall, rel=1e-3)
    assert 300e6 < usage.peak_memory_bytes < 700e6


def test_a_command_does_not_answer_for_the_supervisors_memory(
    used: Callable[..., scheduler_pb2.ReleaseRequest],
) -> None:
    usage = used(("sleep", "0.5")).usage
    assert 0 < usage.peak_memory_bytes < 8e6
    assert usage.gpu_seconds == 0


# -- the signal before the end -----------------------------------------------------------------------------

TOLD = (
    sys.executable,
    "-c",
    # Each line in one write: the supervisor writes lines of its own to the same file.
    "import os, signal, sys\n"
    "say = lambda text: os.write(1, text + b'\\n')\n"
    "signal.signal(signal.SIGUSR1, lambda *_: say(b'usr1'))\n"
    "signal.signal(signal.SIGTERM, lambda *_: (say(b'term'), sys.exit(9)))\n"
    "say(b'up')\n"
    "while True: signal.pause()",
)


def heard(run: Run) -> list[str]:
    return [line for line in lines(run) if line in ("up", "usr1", "term")]


@pytest.fixture
def preempt(shared_runner: Runner, tmp_path: Path) -> Iterator[Callable[..., tuple[Run, Callable[[float], None]]]]:
    """`preempt(time_limit, before)` runs TOLD under a fake scheduler; the second of what it gives has it make room."""
    scheduler = Scheduler()

    def start(time_limit: float, before: float) -> tuple[Run, Callable[[float], None]]:
        known = {"address": scheduler.address, "resume_token": TOKEN, "state_id": STATE}
        run = make_run(tmp_path, TOLD, time_limit=time_limit, signal=("USR1", before), **known)
        shared_runner.launch(run)
        wait_for_output(run, "up")
        scheduler.wait_for_stream()

        def ask(seconds: float) -> None:
            notice = scheduler_pb2.Notice(kind=scheduler_pb2.NOTICE_KIND_PREEMPTION, message="preempted")
            notice.deadline.FromNanoseconds(int((time.time() + seconds) * 1e9))
            scheduler.say(notice=notice)

        return run, ask

    yield start
    wait_until(lambda: scheduler.released, QUICK, "a report")
    scheduler.stop()


def test_a_preemption_after_the_signal_sends_no_second_one(preempt: Callable[..., Any]) -> None:
    run, ask = preempt(time_limit=60.0, before=59.0)
    wait_for_output(run, "usr1\n")
    ask(4.0)
    wait_for_output(run, "the command had its SIGUSR1; SIGKILL follows")
    assert heard(run) == ["up", "usr1"]


def test_a_limit_after_a_preemption_sends_no_second_one(preempt: Callable[..., Any]) -> None:
    run, ask = preempt(time_limit=10.0, before=5.0)
    ask(8.0)  # so it comes in a second; the limit would have it come in five
    wait_for_output(run, "sent the command SIGUSR1; SIGKILL follows")
    pid = supervisor_of(run)
    wait_until(lambda: not alive(pid), QUICK, "an end")
    assert heard(run) == ["up", "usr1"]
