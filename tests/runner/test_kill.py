"""Whoever is killed: nothing of a command outlives its lease, and nothing else ends it. With real processes."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest

from gpusched.client.transport import open_channel
from gpusched.scheduler.runner.model import Run
from gpusched.v1 import resources_pb2, scheduler_pb2, scheduler_pb2_grpc
from gsrun.running import FOREST
from runner.conftest import GPUS
from runner.running import (
    QUICK,
    SECOND,
    Job,
    Runner,
    alive,
    assert_dead_within,
    kill,
    make_run,
    output,
    state,
    supervisor_of,
    wait_for_output,
)
from support.server import Server
from support.waiting import wait_until

Lease = Callable[..., Job]
TREES = 40


class Waiter:
    """The next in the queue for all GPUs; notes how many processes of a job are left when it is granted."""

    def __init__(self, server: Server, job: Job) -> None:
        self.left: list[int] | None = None
        self._channel = open_channel(server.address)
        stub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        request = scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=GPUS))
        self._call = stub.Acquire(request)
        self._queued = threading.Event()
        self._thread = threading.Thread(target=self._wait, args=(job,), daemon=True)
        self._thread.start()
        assert self._queued.wait(QUICK)

    def _wait(self, job: Job) -> None:
        try:
            for event in self._call:
                if event.HasField("queued"):
                    self._queued.set()
                if event.HasField("granted"):
                    self.left = job.processes()
                    return
        except grpc.RpcError:
            return
        finally:
            self._queued.set()

    def granted(self) -> bool:
        return self.left is not None

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def forest(shared_server: Server, lease: Lease, tmp_path: Path) -> Callable[..., tuple[Job, Run]]:
    """`forest(runner, *words)` runs a command with many children of all kinds, on all GPUs."""

    def plant(runner: Runner, *words: str, **changes: object) -> tuple[Job, Run]:
        job = lease(shared_server, GPUS)
        run = job.run(tmp_path, (sys.executable, FOREST, str(TREES), *words), **changes)
        runner.launch(run)
        wait_for_output(run, "ready")
        job.wait_until_attached()
        assert len(job.processes()) >= TREES + 1
        return job, run

    return plant


def failure_of(runner: Runner, run: Run) -> bool:
    return (*run.key, "its supervisor was killed by SIGKILL") in runner.failures


@pytest.mark.parametrize("words", [(), ("stubborn",)])
def test_killed_supervisor_leaves_nothing_and_then_its_lease_ends(
    forest: Callable[..., tuple[Job, Run]], shared_server: Server, shared_runner: Runner, words: tuple[str, ...]
) -> None:
    job, run = forest(shared_runner, *words)
    waiter = Waiter(shared_server, job)
    kill(supervisor_of(run))
    assert_dead_within(job, SECOND)
    assert job.wait().state == state("LOST")
    wait_until(waiter.granted, QUICK, "the next in the queue")
    assert waiter.left == [], "the lease was released while something of the command was alive"
    waiter.close()
    wait_until(lambda: failure_of(shared_runner, run), QUICK, "the agent's word")


def test_a_stopped_supervisor_is_cleaned_up_after_too(
    forest: Callable[..., tuple[Job, Run]], shared_runner: Runner
) -> None:
    job, run = forest(shared_runner)
    supervisor = supervisor_of(run)
    os.kill(supervisor, signal.SIGSTOP)
    kill(supervisor)
    assert_dead_within(job, SECOND)
    assert job.wait().state == state("LOST")


def test_many_supervisors_killed_at_once_and_others_left_alone(
    shared_server: Server, shared_runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    jobs = [lease(shared_server) for _ in range(GPUS)]
    runs = [job.run(tmp_path, (sys.executable, FOREST, "10")) for job in jobs]
    for run in runs:
        shared_runner.launch(run)
    for job, run in zip(jobs, runs, strict=True):
        wait_for_output(run, "ready")
        job.wait_until_attached()
    spared = jobs[0].processes()
    for supervisor in [supervisor_of(run) for run in runs[1:]]:
        kill(supervisor)
    for job in jobs[1:]:
        assert_dead_within(job, SECOND)
        assert job.wait().state == state("LOST")
    assert (jobs[0].state, jobs[0].processes()) == ("RUNNING", spared)
    os.kill(supervisor_of(runs[0]), signal.SIGTERM)
    jobs[0].wait()


def test_a_later_supervisor_keeps_no_earlier_lease(
    shared_server: Server, shared_runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    """What the agent has open must not live on in what it forks."""
    earlier, later = lease(shared_server), lease(shared_server)
    agent = psutil.Process(shared_runner.agent)
    runs: list[Run] = []
    for job in (earlier, later):
        runs.append(job.run(tmp_path, ("sh", "-c", "echo up; exec sleep 1000")))
        shared_runner.launch(runs[-1])
        wait_for_output(runs[-1], "up")
        # The agent has its share in the connection.
        wait_until(lambda: len(agent.net_connections("tcp")) == len(runs), QUICK, "a share")
    supervisor = supervisor_of(runs[1])
    sockets = [c for c in psutil.Process(supervisor).net_connections("tcp") if c.raddr]
    assert len(sockets) == 1
    kill(supervisor_of(runs[0]))
    assert earlier.wait().state == state("LOST")
    assert later.state == "RUNNING"
    kill(supervisor)
    later.wait()


def test_supervisor_told_to_end_ends_its_command_first(
    forest: Callable[..., tuple[Job, Run]], shared_runner: Runner
) -> None:
    job, run = forest(shared_runner, grace=0.5)
    os.kill(supervisor_of(run), signal.SIGTERM)
    assert job.wait().state == state("LOST")
    assert not job.processes()
    assert "gpusched: the job's supervisor was told to end (SIGTERM); ending the command" in output(run)


def test_signals_of_a_terminal_do_not_touch_agent_and_supervisors(
    shared_server: Server, runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    job = lease(shared_server)
    go_on = tmp_path / "go on"
    run = job.run(tmp_path, ("sh", "-c", 'echo up; until [ -e "$1" ]; do sleep 0.02; done; exit 4', "sh", str(go_on)))
    runner.launch(run)
    wait_for_output(run, "up")
    supervisor = supervisor_of(run)
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(supervisor, number)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(runner.agent, number)
    assert len({os.getsid(pid) for pid in (os.getpid(), runner.agent, supervisor)}) == 3
    go_on.touch()
    assert job.wait().outcome.exit_status == 4
    assert runner.agent == runner.agents[0]


def test_killed_agent_harms_no_run_and_is_replaced(
    shared_server: Server, runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    job, other = lease(shared_server), lease(shared_server)
    go_on = tmp_path / "go on"
    run = job.run(tmp_path, ("sh", "-c", 'echo up; until [ -e "$1" ]; do sleep 0.02; done; exit 4', "sh", str(go_on)))
    runner.launch(run)
    wait_for_output(run, "up")
    job.wait_until_attached()
    kill(runner.agents[0])
    wait_until(lambda: runner.agent != runner.agents[0], QUICK, "another agent")
    assert job.state == "RUNNING"
    runner.launch(other.run(tmp_path, ("sh", "-c", "exit 5")))
    assert other.wait().outcome.exit_status == 5
    go_on.touch()
    assert job.wait().outcome.exit_status == 4
    assert runner.failures == []


def test_commands_of_a_later_agent_have_the_same_limit_of_open_files(
    shared_server: Server, lease: Lease, tmp_path: Path
) -> None:
    """The server lifts its own limit once it serves."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    try:
        with Runner(tmp_path) as runner:
            resource.setrlimit(resource.RLIMIT_NOFILE, (800, before[1]))
            kill(runner.agents[0])
            wait_until(lambda: runner.agent != runner.agents[0], QUICK, "another agent")
            job = lease(shared_server)
            run = job.run(tmp_path, ("sh", "-c", "ulimit -Sn"))
            runner.launch(run)
            job.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert output(run) == "400\n"


def test_runs_that_come_while_there_is_no_agent_wait_for_the_next(
    shared_server: Server, runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    jobs = [lease(shared_server) for _ in range(GPUS)]
    os.kill(runner.agent, signal.SIGSTOP)  # it takes nothing any more
    for job in jobs:
        runner.launch(job.run(tmp_path, ("sh", "-c", "exit 5")))
    kill(runner.agents[0])
    assert [job.wait().outcome.exit_status for job in jobs] == [5] * GPUS
    assert runner.failures == []


def test_an_agent_that_cannot_come_up_fails_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "grpc.py").write_text("raise ImportError('broken on purpose')\n")
    monkeypatch.syspath_prepend(str(broken))
    with Runner(tmp_path) as runner:
        runner.launch(make_run(tmp_path, ("true",), job_id="17", epoch=8))
        ((job, epoch, message),) = wait_until(lambda: runner.failures, QUICK, "a failure")
        assert (job, epoch) == ("17", 8)
        assert message == f"the scheduler's agent does not start; see {runner.log_path} on the server's machine"
        assert "broken on purpose" in runner.log_path.read_text()


def test_a_supervisor_that_dies_before_it_has_the_lease_is_told(runner: Runner, tmp_path: Path) -> None:
    """Nobody listens at that port, so it never gets one."""
    witness = tmp_path / "witness"
    run = make_run(tmp_path, ("sh", "-c", 'echo $$ > "$0"; exec sleep 1000', str(witness)), job_id="23", epoch=9)
    runner.launch(run)
    pid = int(wait_until(lambda: witness.exists() and witness.read_text(), QUICK, "the command"))
    kill(psutil.Process(pid).ppid())
    failure = wait_until(lambda: runner.failures, QUICK, "a failure")
    assert failure == [("23", 9, "its supervisor was killed by SIGKILL")]
    assert not alive(pid)


def test_agent_stays_until_its_last_supervisor_is_gone(forest: Callable[..., tuple[Job, Run]], runner: Runner) -> None:
    """The server goes; what was guarded still is."""
    agent = runner.agent
    job, run = forest(runner)
    runner.close()
    assert alive(agent)
    assert job.state == "RUNNING"
    kill(supervisor_of(run))
    assert_dead_within(job, SECOND)
    assert job.wait().state == state("LOST")
    wait_until(lambda: not alive(agent), QUICK, "an end of the agent")


def test_idle_agent_ends_with_its_server(runner: Runner) -> None:
    agent = runner.agent
    runner.close()
    wait_until(lambda: not alive(agent), QUICK, "an end of the agent")


@pytest.mark.slow
def test_nothing_is_left_of_fifty_quick_jobs(
    shared_server: Server, runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    agent = psutil.Process(runner.agent)

    def do(count: int) -> None:
        for _ in range(count):
            job = lease(shared_server)
            runner.launch(job.run(tmp_path, ("true",)))
            job.wait()
        wait_until(lambda: not agent.children(), QUICK, "all supervisors reaped")

    do(10)
    memory, fds = agent.memory_info().rss, agent.num_fds()
    do(50)
    assert agent.num_fds() == fds
    assert agent.memory_info().rss - memory < 512 * 1024
    assert agent.num_threads() == 1


def test_time_is_not_wasted(shared_server: Server, shared_runner: Runner, lease: Lease, tmp_path: Path) -> None:
    """From launch to the command's first instruction."""
    took = []
    for _ in range(10):
        job = lease(shared_server)
        run = job.run(tmp_path, ("date", "+%s.%N"))
        began = time.time()
        shared_runner.launch(run)
        job.wait()
        took.append(float(output(run)) - began)
    assert sorted(took)[2] < 0.2, took
