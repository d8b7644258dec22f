"""Promise 5: whichever process is killed, all that the command started is dead within a second, and only then is the
lease given back. With commands whose children fork, daemonise and call setsid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc
from gsrun.conftest import GPUS
from gsrun.running import FOREST, GSRUN, MARK, QUICK, Gsrun, state_of, stop
from support.server import Server
from support.waiting import wait_until

Start = Callable[..., Gsrun]
Stub = scheduler_pb2_grpc.SchedulerStub

TREES = 40
ALL = ("-n", str(GPUS))
SECOND = 1.0
NAME_SURVIVORS = """
for file in $(grep -lzx "$1" /proc/[0-9]*/environ 2>/dev/null); do
  directory=${file%/environ}
  name=$(cat $directory/comm 2>/dev/null) && echo ${directory#/proc/} $name
done
exit 0  # the last one may have gone between the two looks"""


def start_forest(gsrun: Start, *more: str, options: tuple[str, ...] = ()) -> tuple[Gsrun, int]:
    """A gsrun on all GPUs whose command has a forest below it; and the command's process id."""
    run = gsrun(*ALL, *options, sys.executable, FOREST, str(TREES), *more)
    run.wait_for_out("ready")
    holder = run.holder
    with open(f"/proc/{holder}/task/{holder}/children") as file:
        pids = [int(pid) for pid in file.read().split()]
    command = next(pid for pid in pids if os.getpgid(pid) == os.getpgid(run.front))
    assert len(run.survivors()) >= TREES + 3
    return run, command


def queue_behind(gsrun: Start, run: Gsrun) -> Gsrun:
    """The next in the queue; when it is granted, it prints pid and name of the other's processes left that moment."""
    waiter = gsrun(*ALL, "sh", "-c", NAME_SURVIVORS, "sh", f"{MARK}={run.mark}")
    waiter.wait_for_err("1st of 1 in the queue")
    return waiter


def assert_nothing_lived(run: Gsrun, waiter: Gsrun) -> None:
    """At the waiter's start. gsrun's own two processes may: the holder gives the lease back and tells the front."""
    lived = [line.split(None, 1) for line in waiter.out.splitlines()]
    left = [(pid, name) for pid, name in lived if name != "gsrun-holder" and int(pid) != run.front]
    assert not left, "the lease was given back while something lived"


def within_a_second() -> float:
    """Seconds that this may take here: longer, where more wants to run than there are processors for."""
    return SECOND * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def assert_all_dead_then_released(run: Gsrun, waiter: Gsrun) -> None:
    allowed, began = within_a_second(), time.monotonic()
    wait_until(lambda: not run.survivors(), allowed + 5, "an end of all processes")
    assert time.monotonic() - began < allowed, "too slow"
    assert waiter.wait() == 0
    assert_nothing_lived(run, waiter)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("stubborn",)], ids=["plain", "stubborn"])
@pytest.mark.parametrize("victim", ["front", "holder", "command", "group"])
def test_one_is_killed(gsrun: Start, stub: Stub, victim: str, more: tuple[str, ...]) -> None:
    run, command = start_forest(gsrun, *more)
    holder = run.holder
    waiter = queue_behind(gsrun, run)
    match victim:
        case "front":
            os.kill(run.front, signal.SIGKILL)
        case "holder":
            os.kill(holder, signal.SIGKILL)
        case "command":
            os.kill(command, signal.SIGKILL)
        case "group":
            os.killpg(os.getpgid(run.front), signal.SIGKILL)
    assert_all_dead_then_released(run, waiter)
    assert run.wait() == {"front": -9, "group": -9, "holder": 125, "command": 137}[victim]
    if victim == "holder":
        assert "was killed; the command and all that it started were ended" in run.err
    if victim == "command":
        assert "that the command left behind" in run.err


SLOWER = pytest.mark.slow  # the more ways to die: one of each kind is enough in a hurry


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGSEGV,
        *(pytest.param(number, marks=SLOWER) for number in (signal.SIGHUP, signal.SIGABRT, signal.SIGXCPU)),
    ],
)
def test_front_killed_by_other_signals(gsrun: Start, number: signal.Signals) -> None:
    """Some are passed on to the command, some kill gsrun: all end the same way."""
    run, _ = start_forest(gsrun)
    waiter = queue_behind(gsrun, run)
    os.kill(run.front, number)
    assert_all_dead_then_released(run, waiter)
    assert run.wait() in (128 + number, -number)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(number, marks=SLOWER) for number in (signal.SIGSEGV, signal.SIGABRT))]
)
def test_holder_killed_by_other_signals(gsrun: Start, number: signal.Signals) -> None:
    run, _ = start_forest(gsrun)
    waiter = queue_behind(gsrun, run)
    os.kill(run.holder, number)
    assert_all_dead_then_released(run, waiter)
    assert run.wait() in (125, 128 + number)


@pytest.mark.parametrize("pair", ["front+command", "holder+command"])
def test_a_pair_is_killed(gsrun: Start, pair: str) -> None:
    run, command = start_forest(gsrun, "stubborn")
    holder = run.holder
    waiter = queue_behind(gsrun, run)
    for name in pair.split("+"):
        os.kill({"front": run.front, "holder": holder, "command": command}[name], signal.SIGKILL)
    assert_all_dead_then_released(run, waiter)


def test_both_of_ours_are_killed(gsrun: Start) -> None:
    """What is known to escape: the processes live on (until `close`), and the lease is freed."""
    run, _ = start_forest(gsrun)
    holder = run.holder
    waiter = queue_behind(gsrun, run)
    os.kill(run.front, signal.SIGSTOP)  # or it might be quick enough to see the holder die
    os.kill(holder, signal.SIGKILL)
    os.kill(run.front, signal.SIGKILL)
    assert waiter.wait() == 0


@pytest.mark.slow
def test_lease_outlives_the_holder_until_the_front_has_killed(gsrun: Start) -> None:
    """The front shares the holder's connection: frozen, it keeps the lease of a holder that was killed."""
    run, _ = start_forest(gsrun)
    waiter = queue_behind(gsrun, run)
    holder = run.holder
    os.kill(run.front, signal.SIGSTOP)
    os.kill(holder, signal.SIGKILL)
    with pytest.raises(AssertionError, match="did not end"):
        waiter.wait(0.7)
    assert len(run.survivors()) > TREES
    os.kill(run.front, signal.SIGCONT)
    assert_all_dead_then_released(run, waiter)


def test_front_killed_while_the_holder_is_stopped(gsrun: Start) -> None:
    """The kernel wakes the holder then, with a SIGHUP that must not kill it."""
    run, _ = start_forest(gsrun)
    waiter = queue_behind(gsrun, run)
    stop(run.holder)
    os.kill(run.front, signal.SIGKILL)
    assert_all_dead_then_released(run, waiter)


@pytest.mark.slow
def test_stopped_holder_keeps_the_lease(gsrun: Start, stub: Stub) -> None:
    run = gsrun(*ALL, "sh", "-c", "echo up; exec sleep 100")
    run.wait_for_out("up")
    waiter = queue_behind(gsrun, run)
    stop(run.holder)
    with pytest.raises(AssertionError, match="did not end"):
        waiter.wait(1.0)
    os.kill(run.holder, signal.SIGCONT)
    run.signal(signal.SIGTERM)
    assert run.wait() == 143
    assert waiter.wait() == 0


def test_normal_end_ends_what_is_left(gsrun: Start) -> None:
    run = gsrun(*ALL, sys.executable, FOREST, str(TREES), "end", stdin=subprocess.PIPE)
    run.wait_for_out("ready")
    waiter = queue_behind(gsrun, run)
    run.process.communicate(b"\n", timeout=QUICK)
    assert run.wait() == 3
    assert waiter.wait() == 0
    assert_nothing_lived(run, waiter)
    assert run.survivors() == []
    assert "gsrun: ending " in run.err
    assert "processes that the command left behind: python" in run.err


def test_what_ends_by_itself_is_not_worth_a_word(gsrun: Start) -> None:
    run = gsrun("sh", "-c", "sleep 0.02 & exit 0")
    assert run.wait() == 0
    assert run.err == ""


def test_leave_children(gsrun: Start) -> None:
    run = gsrun(*ALL, "--leave-children", "sh", "-c", "sleep 100 >/dev/null 2>&1 & sleep 0.1; exit 4")
    assert run.wait() == 4
    assert "left running" in run.err and "sleep" in run.err
    assert [line.split()[1] for line in run.survivors()] == ["sleep"]
    assert gsrun(*ALL, "--immediate", "true").wait() == 0


def test_children_that_came_through_exec_are_spared(idle: Server) -> None:
    """`sleep & exec gsrun …` in a script: that sleep is our child, and none of the command's."""
    script = f"sleep 100 >/dev/null 2>&1 & echo $! >&2; exec {' '.join(GSRUN)} sh -c 'echo up; exec sleep 100'"
    process = subprocess.Popen(
        ["bash", "-c", script], env=idle.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    assert process.stderr is not None and process.stdout is not None
    sleeper = int(process.stderr.readline())
    process.stdout.readline()
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        holder = next(int(pid) for pid in file.read().split() if int(pid) != sleeper)
    os.kill(holder, signal.SIGKILL)
    assert process.wait(10) == 125
    assert state_of(sleeper) == "S"
    os.kill(sleeper, signal.SIGKILL)


def test_killed_while_queued_leaves_the_queue(gsrun: Start, stub: Stub) -> None:
    first = gsrun(*ALL, "sleep", "100")
    wait_until(lambda: stub.GetStatus(scheduler_pb2.GetStatusRequest()).jobs_running == 1)
    for victim in ("front", "holder"):
        waiter = queue_behind(gsrun, first)
        os.kill(waiter.front if victim == "front" else waiter.holder, signal.SIGKILL)
        wait_until(lambda: stub.GetStatus(scheduler_pb2.GetStatusRequest()).jobs_queued == 0, SECOND)
        assert waiter.wait() == (-9 if victim == "front" else 125)
    first.signal(signal.SIGTERM)
    first.wait()


def test_lost_job_is_in_the_history(gsrun: Start, stub: Stub) -> None:
    run = gsrun("--name", "killed front", "sh", "-c", "echo up; exec sleep 100")
    run.wait_for_out("up")
    os.kill(run.front, signal.SIGKILL)
    request = scheduler_pb2.ListJobsRequest(filter=scheduler_pb2.JobFilter(name="killed front", include_ended=True))
    job = wait_until(lambda: next((job for job in stub.ListJobs(request).jobs if job.HasField("ended_at")), None))
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert "gsrun was killed" in job.outcome.message
