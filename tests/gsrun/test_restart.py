"""Promises 6 and 7: the scheduler is killed or stopped under running and waiting gsruns, and comes back or does not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from gpusched.client.admin import fetch_token
from gpusched.client.transport import open_channel
from gpusched.v1 import admin_pb2, admin_pb2_grpc, job_pb2, scheduler_pb2, scheduler_pb2_grpc
from gsrun.running import FOREST, GSRUN, MARK, QUICK, Gsrun, Terminal, marked, stop
from support.server import Server
from support.waiting import wait_until

Start = Callable[..., Gsrun]

HOLDING = "gsrun: the scheduler is away; holding your GPUs, the command goes on\n"
KEEPING = "gsrun: the scheduler is away; keeping your place in the queue\n"
BACK = "gsrun: the scheduler is back\n"
SHORT = ("--window", "1s")


class Box:
    """What the scheduler says, asked anew each time: it is another process after a restart."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def job(self, job_id: str) -> job_pb2.Job:
        with open_channel(self._server.address) as channel:
            stub = scheduler_pb2_grpc.SchedulerStub(channel)
            answer = stub.GetJob(scheduler_pb2.GetJobRequest(job_id=job_id), timeout=QUICK, wait_for_ready=True)
        job: job_pb2.Job = answer.job
        return job

    def wait_for(self, job_id: str, state: job_pb2.JobState) -> job_pb2.Job:
        def look() -> job_pb2.Job | None:
            try:
                job = self.job(job_id)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.NOT_FOUND, error  # type: ignore[attr-defined]
                return None
            return job if job.state == state else None

        return wait_until(look, QUICK, f"job {job_id} in state {state}")

    def wait_for_return(self, job_id: str) -> None:
        wait_until(lambda: any(line.message == "re-attached" for line in self.job(job_id).history), QUICK)

    def set_state(self, job_id: str, state: job_pb2.JobState, reason: str) -> None:
        with open_channel(self._server.address) as channel:
            status = scheduler_pb2_grpc.SchedulerStub(channel).GetStatus(
                scheduler_pb2.GetStatusRequest(), timeout=QUICK
            )
            admin_pb2_grpc.AdminStub(channel).SetJobState(
                admin_pb2.SetJobStateRequest(job_id=job_id, state=state, reason=reason),
                metadata=[("authorization", f"Bearer {fetch_token(status.admin_socket)}")],
                timeout=QUICK,
            )


@pytest.fixture
def box(own: Server) -> Box:
    return Box(own)


class Ticking:
    """A gsrun whose command writes a line every 20 ms until it is let go, and then exits with 6."""

    def __init__(self, own: Server, at: Start, *options: str) -> None:
        self._go = own.state_dir / "go"
        loop = f"echo up; until [ -e {self._go} ]; do sleep 0.02; echo tick; done; exit 6"
        self.run = at(*options, "sh", "-c", loop)
        self.run.wait_for_out("up")

    def wait_for_ticks(self) -> None:
        """It goes on."""
        before = len(self.run.out)
        wait_until(lambda: len(self.run.out) > before + 10, QUICK, "further ticks")

    def let_go(self) -> None:
        self._go.touch()


def forget_all(server: Server) -> None:
    """The state of a server that does not run."""
    for file in server.state_dir.glob("state.db*"):
        file.unlink()


# -- the scheduler comes back ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("gracefully", [False, True], ids=["kill", "stop"])
def test_a_restart_costs_no_work_and_no_place(own: Server, at: Start, box: Box, gracefully: bool) -> None:
    ticking = Ticking(own, at, "-n", "2")
    order = own.state_dir / "order"
    first = at("-n", "2", "sh", "-c", f"echo first >> {order}")
    first.wait_for_err("1st of 1")
    second = at("-n", "1", "sh", "-c", f"echo second >> {order}")
    second.wait_for_err("2nd of 2")
    before = box.job("1")

    if gracefully:
        own.stop()
    else:
        own.kill()
    ticking.run.wait_for_err(HOLDING)
    for waiter in (first, second):
        waiter.wait_for_err(KEEPING)
    ticking.wait_for_ticks()
    own.start()

    ticking.run.wait_for_err(BACK)
    first.wait_for_err(f"{BACK}gsrun: 1st of 2 in the queue · ")
    second.wait_for_err(f"{BACK}gsrun: 2nd of 2 in the queue")
    ticking.wait_for_ticks()
    after = box.job("1")
    assert after.state == job_pb2.JOB_STATE_RUNNING
    assert (after.lease_id, list(after.gpus)) == (before.lease_id, list(before.gpus))
    assert after.holder_pid == ticking.run.holder

    ticking.let_go()
    assert ticking.run.wait() == 6
    assert ticking.run.err == HOLDING + BACK
    assert first.wait() == second.wait() == 0
    assert order.read_text() == "first\nsecond\n"
    job = box.job("1")
    assert (job.state, job.outcome.exit_status) == (job_pb2.JOB_STATE_FAILED, 6)


@pytest.mark.slow
def test_restart_after_restart(own: Server, at: Start, box: Box) -> None:
    ticking = Ticking(own, at, "-n", "1")
    waiter = at("-n", "2", "echo", "ran")
    waiter.wait_for_err("1st of 1")
    for number in (1, 2, 3):
        own.restart(gracefully=number == 2)
        for run in (ticking.run, waiter):
            run.wait_for_err(f"(?s)(?:{BACK}.*){{{number}}}")
    ticking.let_go()
    assert ticking.run.wait() == 6
    assert ticking.run.err == 3 * (HOLDING + BACK)
    assert waiter.wait() == 0
    assert box.job("1").outcome.exit_status == 6


@pytest.mark.slow
def test_gpus_of_a_holder_that_is_not_back_yet_go_to_nobody(own: Server, at: Start) -> None:
    ticking = Ticking(own, at, "-n", "2")
    holder = ticking.run.holder
    stop(holder)
    own.restart()
    now = at("--immediate", "true")
    assert now.wait() == 75
    ticking.wait_for_ticks()
    os.kill(holder, signal.SIGCONT)
    ticking.run.wait_for_err(BACK)
    ticking.let_go()
    assert ticking.run.wait() == 6


@pytest.mark.slow
def test_after_a_restart_either_process_still_cleans_up_for_the_other(own: Server, at: Start, box: Box) -> None:
    """The front has its share in the new connection: the lease ends only when it has killed what the holder left."""
    run = at("-n", "2", sys.executable, FOREST, "10", "stubborn")
    run.wait_for_out("ready")
    own.restart()
    run.wait_for_err(BACK)
    stop(run.front)
    os.kill(run.holder, signal.SIGKILL)
    with pytest.raises(AssertionError, match="did not end"):
        run.wait(0.5)
    assert box.job("1").state == job_pb2.JOB_STATE_RUNNING
    os.kill(run.front, signal.SIGCONT)
    assert run.wait() == 125
    assert run.survivors() == []
    box.wait_for("1", job_pb2.JOB_STATE_LOST)


@pytest.mark.slow
def test_a_grant_that_was_not_confirmed_is_taken_up_again(own: Server, at: Start, box: Box) -> None:
    """The scheduler dies between the grant and the answer to it: the command starts once, under that grant."""
    busy = at("-n", "2", "sh", "-c", "echo up; exec sleep 100")
    busy.wait_for_out("up")
    run = at("-n", "2", "echo", "ran")
    run.wait_for_err("1st of 1")
    stop(run.front)
    busy.signal(signal.SIGTERM)
    busy.wait()
    lease = box.wait_for("2", job_pb2.JOB_STATE_RUNNING).lease_id
    own.restart()
    os.kill(run.front, signal.SIGCONT)
    assert run.wait() == 0
    assert run.out == "ran\n"
    job = box.job("2")
    assert (job.state, job.lease_id) == (job_pb2.JOB_STATE_COMPLETED, lease)


@pytest.mark.slow
def test_a_waiting_gsrun_starts_its_own_scheduler_again_once(own: Server, at: Start) -> None:
    """It went without a word, was this user's, and GPUSCHED_AUTOSTART does not forbid it."""
    ticking = Ticking(own, at, "-n", "2")
    env = {"GPUSCHED_AUTOSTART": "1", "GPUSCHED_SIMULATE": "2"}
    waiter = at("-n", "1", "echo", "ran", env=env)
    waiter.wait_for_err("1st of 1")
    own.kill()
    try:
        waiter.wait_for_err("gpusched: no scheduler was running; started one on ", 30)
        waiter.wait_for_err(f"{BACK}gsrun: 1st of 1")
        ticking.run.wait_for_err(BACK)
        ticking.let_go()
        assert (ticking.run.wait(), waiter.wait()) == (6, 0)
    finally:
        for line in marked(waiter.mark):
            os.kill(int(line.split()[0]), signal.SIGKILL)


# -- it comes back, and says that it is over ---------------------------------------------------------------


@pytest.fixture(params=["kill", "keep"])
def on_lost(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_lost(ticking: Ticking, on_lost: str, why: str) -> None:
    """The command is ended, or let go on."""
    if on_lost == "kill":
        assert ticking.run.wait() == 76
        ending = "ending the command \\(SIGTERM, and SIGKILL after 2 s\\)"
        assert re.search(f"gsrun: the scheduler took the GPUs back: {why}; {ending}\n", ticking.run.err)
        return
    going_on = "the command goes on \\(--on-lost keep\\), and its GPUs may be given to others"
    ticking.run.wait_for_err(f"gsrun: the scheduler took the GPUs back: {why}; {going_on}\n")
    ticking.wait_for_ticks()
    ticking.let_go()
    assert ticking.run.wait() == 6
    assert ticking.run.err.count("\n") == ticking.run.err.count("away") + 1


@pytest.mark.slow
@pytest.mark.parametrize("own", [SHORT], indirect=True)
def test_too_late_to_come_back(own: Server, at: Start, box: Box, on_lost: str) -> None:
    """A holder that was frozen for longer than the window."""
    ticking = Ticking(own, at, "-n", "2", "--on-lost", on_lost)
    holder = ticking.run.holder
    stop(holder)
    own.restart()
    box.wait_for("1", job_pb2.JOB_STATE_LOST)
    other = at("-n", "2", "sh", "-c", "echo other runs; exec sleep 100")
    other.wait_for_out("other runs")
    os.kill(holder, signal.SIGCONT)
    assert_lost(ticking, on_lost, "its holder did not come back after the restart")
    assert box.job("2").state == job_pb2.JOB_STATE_RUNNING


@pytest.mark.slow
@pytest.mark.parametrize("attached", [True, False], ids=["told", "refused"])
def test_moved_by_hand(own: Server, at: Start, box: Box, on_lost: str, attached: bool) -> None:
    ticking = Ticking(own, at, "-n", "2", "--on-lost", on_lost)
    holder = ticking.run.holder
    if not attached:
        stop(holder)
        own.restart()
    box.set_state("1", job_pb2.JOB_STATE_CANCELLED, "stuck")
    if not attached:
        os.kill(holder, signal.SIGCONT)
    assert_lost(ticking, on_lost, r"moved by hand by \w+: stuck")
    assert box.job("1").state == job_pb2.JOB_STATE_CANCELLED


@pytest.mark.slow
@pytest.mark.parametrize("own", [SHORT], indirect=True)
def test_a_waiter_that_comes_too_late_queues_again(own: Server, at: Start, box: Box) -> None:
    ticking = Ticking(own, at, "-n", "2")
    waiter = at("-n", "1", "echo", "ran")
    waiter.wait_for_err("1st of 1")
    behind = at("-n", "1", "echo", "behind")
    behind.wait_for_err("2nd of 2")
    holder = waiter.holder
    stop(holder)
    own.restart()
    box.wait_for("2", job_pb2.JOB_STATE_CANCELLED)
    behind.wait_for_err("1st of 1")
    os.kill(holder, signal.SIGCONT)
    why = r"its client did not come back after the restart"
    waiter.wait_for_err(rf"gsrun: this job's place in the queue is lost \({why}\); queueing again\n")
    waiter.wait_for_err("gsrun: 2nd of 2 in the queue")
    assert BACK not in waiter.err
    ticking.let_go()
    assert ticking.run.wait() == 6
    assert (behind.wait(), waiter.wait()) == (0, 0)
    assert waiter.out == "ran\n"
    assert box.job("4").state == job_pb2.JOB_STATE_COMPLETED


@pytest.mark.slow
def test_another_state_in_its_place(own: Server, at: Start, tmp_path: Path) -> None:
    """It knows nothing of the lease, and so has no say over it. Who only waits, waits there."""
    ticking = Ticking(own, at, "-n", "2")
    waiter = at("-n", "1", "sh", "-c", f"echo ran; until [ -e {tmp_path / 'go'} ]; do sleep 0.02; done")
    waiter.wait_for_err("1st of 1")
    own.kill()
    state = [(file, file.read_bytes()) for file in own.state_dir.glob("state.db*")]
    forget_all(own)
    own.start()
    stranger = (
        f"gsrun: another scheduler answers at {own.address}, which knows nothing of this job; waiting for its own\n"
    )
    ticking.run.wait_for_err(re.escape(stranger))
    ticking.wait_for_ticks()
    here = f"gsrun: another scheduler answers at {own.address} now, and knows nothing of this job; queueing again\n"
    waiter.wait_for_err(re.escape(here))
    waiter.wait_for_out("ran")
    own.kill()
    forget_all(own)
    for file, data in state:
        file.write_bytes(data)
    own.start()
    ticking.run.wait_for_err(BACK)
    ticking.let_go()
    assert ticking.run.wait() == 6
    assert ticking.run.err == HOLDING + stranger + BACK
    (tmp_path / "go").touch()
    assert waiter.wait() == 0


# -- it does not come back ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_ends_while_the_scheduler_is_away(own: Server, at: Start, box: Box) -> None:
    ticking = Ticking(own, at, "-n", "1")
    own.kill()
    ticking.run.wait_for_err(HOLDING)
    ticking.let_go()
    wait_until(lambda: len(ticking.run.survivors()) <= 2, QUICK, "the command's end")
    began = time.monotonic()
    assert ticking.run.wait() == 6
    assert time.monotonic() - began < 3.0
    assert ticking.run.err == HOLDING


@pytest.mark.slow
def test_the_time_limit_is_kept_while_the_scheduler_is_away(own: Server, at: Start) -> None:
    ticking = Ticking(own, at, "-n", "1", "--time", "1s")
    own.kill()
    assert ticking.run.wait() == 124
    assert "the time limit of 1s is reached; ending the command" in ticking.run.err


@pytest.fixture
def waiting_for_nobody(own: Server, at: Start) -> Iterator[Gsrun]:
    """A gsrun in the queue of a scheduler that is gone for good."""
    busy = at("-n", "2", "sh", "-c", "echo up; exec sleep 100")
    busy.wait_for_out("up")
    waiter = at("-n", "1", "true")
    waiter.wait_for_err("1st of 1")
    own.kill()
    waiter.wait_for_err(KEEPING)
    yield waiter


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_wait_for_a_scheduler_that_is_away(waiting_for_nobody: Gsrun, number: int, code: int) -> None:
    waiting_for_nobody.signal(number)
    assert waiting_for_nobody.wait() == code
    assert waiting_for_nobody.survivors() == []


@pytest.mark.slow
def test_live_line_while_the_scheduler_is_away(own: Server, at: Start) -> None:
    ticking = Ticking(own, at, "-n", "2")
    terminal = Terminal(own.env)
    try:
        terminal.type("$GSRUN -n 1 echo ran\n")
        terminal.expect("1st of 1 in the queue .* waiting")
        own.kill()
        terminal.expect("gsrun: the scheduler is away; keeping your place in the queue · waiting [0-9]+s")
        own.start()
        terminal.expect("\r\x1b\\[Kgsrun: the scheduler is back\r\n")
        terminal.expect("\rgsrun: 1st of 1 in the queue .* waiting [0-9]+s")
        own.kill()
        terminal.expect("keeping your place")
        terminal.type("\x03")
        terminal.expect(re.escape(terminal.PROMPT))
        assert "130" in terminal.run("echo $?")
    finally:
        terminal.close()
    ticking.let_go()
    assert ticking.run.wait() == 6


@pytest.mark.slow
def test_quiet_says_nothing_of_it(own: Server, at: Start, box: Box) -> None:
    ticking = Ticking(own, at, "-q", "-n", "2")
    waiter = at("-q", "-n", "1", "echo", "ran")
    box.wait_for("2", job_pb2.JOB_STATE_QUEUED)
    own.restart()
    for job_id in ("1", "2"):
        box.wait_for_return(job_id)
    ticking.let_go()
    assert (ticking.run.wait(), waiter.wait()) == (6, 0)
    assert (ticking.run.err, waiter.err) == ("", "")


@pytest.mark.slow
def test_gsrun_started_while_the_scheduler_restarts(own: Server) -> None:
    """It was there at the first look, and died before it had taken the job: worth another moment."""
    own.pause()
    run = subprocess.Popen(
        [*GSRUN, "echo", "ran"], env=own.env | {MARK: "x"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Connected, and waiting for the first answer.
    wait_until(lambda: _connections_to(own.port), QUICK, "a connection")
    own.restart()
    out, err = run.communicate(timeout=QUICK)
    assert (run.returncode, out) == (0, "ran\n"), err


def _connections_to(port: int) -> bool:
    lines = Path("/proc/net/tcp6").read_text().splitlines() + Path("/proc/net/tcp").read_text().splitlines()
    return any(line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines[1:])
