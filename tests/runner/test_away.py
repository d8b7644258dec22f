"""Promises 6 and 7: a server that is away ends no command and loses no report; a lease that is gone stops the work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpusched.scheduler.runner.model import Run
from gpusched.v1 import scheduler_pb2
from runner.fake_scheduler import STATE, TOKEN, Scheduler, refusal
from runner.running import (
    QUICK,
    Job,
    Runner,
    alive,
    kill,
    make_run,
    output,
    supervisor_of,
    wait_for_output,
)
from support.server import Server
from support.waiting import wait_until

OTHER = "another state"
WORK = ("sh", "-c", 'echo $$ $PPID; until [ -e "$0.end" ]; do sleep 0.02; done; echo done; exit 7')


@pytest.fixture
def fake() -> Iterator[Callable[..., Scheduler]]:
    """`fake(port, state)` starts a scheduler."""
    started: list[Scheduler] = []

    def start(*arguments: Any) -> Scheduler:
        started.append(Scheduler(*arguments))
        return started[-1]

    yield start
    for scheduler in started:
        scheduler.stop()


class Work:
    """A command under a fake scheduler, that ends with status 7 when it is told to; a deaf one not by SIGTERM."""

    def __init__(self, runner: Runner, directory: Path, address: str, *, deaf: bool = False, **changes: Any) -> None:
        self._end = directory / "work.end"
        command = (*WORK[:2], ('trap "" TERM; ' if deaf else "") + WORK[2], str(directory / "work"))
        self.run: Run = make_run(directory, command, address=address, resume_token=TOKEN, state_id=STATE, **changes)
        runner.launch(self.run)
        wait_for_output(self.run, "\n")
        self.pid, self.supervisor = map(int, output(self.run).split()[:2])

    def end(self) -> None:
        self._end.touch()

    @property
    def runs(self) -> bool:
        return alive(self.pid) and alive(self.supervisor)

    def assert_killed(self) -> None:
        """The command is dead without having ended by itself, and the supervisor gone."""
        wait_until(lambda: not alive(self.supervisor), QUICK, "an end of the supervisor")
        assert not alive(self.pid)
        assert "done" not in output(self.run)

    def assert_goes_on_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.runs
            time.sleep(0.02)


@pytest.fixture
def work(shared_runner: Runner, tmp_path: Path) -> Iterator[Callable[..., Work]]:
    """`work(scheduler)` starts one under that scheduler."""
    started: list[Work] = []

    def start(scheduler: Scheduler, **changes: Any) -> Work:
        started.append(Work(shared_runner, tmp_path, scheduler.address, **changes))
        return started[-1]

    yield start
    for one in started:
        kill(one.supervisor)


def cancel_in(seconds: float) -> scheduler_pb2.Notice:
    """A cancel with its deadline that far away."""
    notice = scheduler_pb2.Notice(job_id="1", kind=scheduler_pb2.NOTICE_KIND_CANCEL, message="enough")
    notice.deadline.FromNanoseconds(int((time.time() + seconds) * 1e9))
    return notice


def connections(pid: int, server: Server) -> list[tuple[str, int]]:
    """Local addresses of a process's open connections to a server."""
    found = psutil.Process(pid).net_connections("tcp")
    return [c.laddr for c in found if c.status == psutil.CONN_ESTABLISHED and c.raddr[1] == server.port]


def reports(scheduler: Scheduler) -> list[int]:
    return [request.outcome.exit_status for request in scheduler.released]


# -- the ordinary course -----------------------------------------------------------------------------------


def test_attaches_confirms_and_reports(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler)
    wait_until(lambda: scheduler.confirmed, QUICK, "a confirmation")
    (request,) = scheduler.attached
    assert (request.resume_token, request.holder.pid) == (TOKEN, one.supervisor)
    assert request.holder.start_ticks > 0
    (confirmation,) = scheduler.confirmed
    assert (confirmation.job_id, confirmation.resume_token, confirmation.epoch) == ("1", TOKEN, 1)
    one.end()
    wait_until(lambda: not alive(one.supervisor), QUICK, "an end of the supervisor")
    (report,) = scheduler.released
    assert (report.job_id, report.resume_token, report.epoch, report.outcome.exit_status) == ("1", TOKEN, 1, 7)


def test_a_grant_that_was_confirmed_is_not_confirmed_again(
    fake: Callable[..., Scheduler], work: Callable[..., Work]
) -> None:
    scheduler = fake()
    scheduler.confirm = False
    one = work(scheduler)
    scheduler.wait_for_stream()
    one.end()
    wait_until(lambda: scheduler.released, QUICK, "a report")
    assert scheduler.confirmed == []


def test_a_quick_command_is_reported_without_a_stream(
    fake: Callable[..., Scheduler], shared_runner: Runner, tmp_path: Path
) -> None:
    """It may have one, if it is slower than the connection; a command that cannot run never has."""
    scheduler = fake()
    shared_runner.launch(make_run(tmp_path, ("no-such",), address=scheduler.address))
    wait_until(lambda: scheduler.released, QUICK, "a report")
    assert reports(scheduler) == [127]
    assert scheduler.attached == []


# -- away --------------------------------------------------------------------------------------------------


def test_comes_back_to_a_server_that_was_away(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.stop()
    one.assert_goes_on_for(0.5)
    began = time.monotonic()
    back = fake(scheduler.port)
    back.wait_for_stream()
    assert time.monotonic() - began < 5
    assert back.attached[0].resume_token == TOKEN
    one.end()
    wait_until(lambda: reports(back) == [7], QUICK, "a report")


def test_an_exit_status_waits_for_the_server(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.stop()
    one.end()
    wait_for_output(one.run, "done")
    assert alive(one.supervisor)
    back = fake(scheduler.port)
    wait_until(lambda: reports(back) == [7], QUICK, "a report")
    wait_until(lambda: not alive(one.supervisor), QUICK, "an end of the supervisor")


def test_a_server_that_is_there_only_later(
    fake: Callable[..., Scheduler], work: Callable[..., Work], shared_runner: Runner, tmp_path: Path
) -> None:
    first = fake()
    first.stop()
    one = work(first)
    back = fake(first.port)
    back.wait_for_stream()
    assert one.runs


@pytest.mark.slow
@pytest.mark.parametrize(
    "status",
    [
        refusal("ABORTED", "LEASE_LOST", state=OTHER),
        refusal("ABORTED", "LEASE_LOST"),
        refusal("PERMISSION_DENIED", "WRONG_TOKEN", state=OTHER),
        refusal("NOT_FOUND"),
        refusal("UNAVAILABLE", "SERVER_STOPPING", state=STATE),
        refusal("UNAUTHENTICATED", "UNAUTHENTICATED", state=STATE),
        refusal("ABORTED", "LEASE_LOST", state=STATE, domain="somebody.else"),
        refusal("UNIMPLEMENTED"),
        refusal("INTERNAL"),
    ],
    ids=lambda status: f"{status.code.name} {status.details}",
)
def test_anothers_refusal_ends_nothing(fake: Callable[..., Scheduler], work: Callable[..., Work], status: Any) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.stop()
    stranger = fake(scheduler.port, OTHER)
    stranger.refuse = {"Acquire": status, "Release": status}
    wait_until(lambda: len(stranger.attached) >= 2, QUICK, "two tries")
    assert one.runs
    one.end()
    wait_for_output(one.run, "done")
    wait_until(lambda: stranger.released, QUICK, "a try to report")
    assert alive(one.supervisor), "the report is for another state"
    stranger.stop()
    back = fake(scheduler.port)
    wait_until(lambda: reports(back) == [7], QUICK, "a report")


def test_anothers_acceptance_ends_nothing_either(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.stop()
    stranger = fake(scheduler.port, OTHER)
    wait_until(lambda: len(stranger.attached) >= 2, QUICK, "two tries")
    assert stranger.confirmed == []
    assert one.runs


@pytest.mark.parametrize("status", [None, refusal("UNAVAILABLE"), refusal("CANCELLED"), refusal("UNKNOWN")])
def test_a_stream_that_ends_without_a_verdict_is_opened_again(
    fake: Callable[..., Scheduler], work: Callable[..., Work], status: Any
) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.end_stream(status)
    scheduler.wait_for_stream(2)
    assert one.runs


def test_a_report_is_tried_again(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.refuse = {"Release": refusal("UNAVAILABLE", "STORE_FAILED", state=STATE, message="the disk is full")}
    one.end()
    wait_until(lambda: len(scheduler.released) >= 3, QUICK, "three tries")
    assert alive(one.supervisor)
    scheduler.refuse = {}
    wait_until(lambda: not alive(one.supervisor), QUICK, "an end of the supervisor")
    assert len(scheduler.attached) == 1, "the lease was held all the time"


# -- lost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        refusal("ABORTED", "LEASE_LOST", state=STATE),
        refusal("PERMISSION_DENIED", "WRONG_TOKEN", state=STATE),
        refusal("NOT_FOUND", "JOB_NOT_FOUND", state=STATE),
    ],
    ids=lambda status: status.code.name,
)
def test_refused_by_its_own_state(fake: Callable[..., Scheduler], work: Callable[..., Work], status: Any) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.stop()
    back = fake(scheduler.port)
    back.refuse = {"Acquire": status}
    one.assert_killed()
    assert "gpusched: the scheduler took the GPUs back: no; killing the command" in output(one.run)
    assert back.released == []


def test_a_report_refused_by_its_own_state_is_over(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.refuse = {"Release": refusal("ABORTED", "JOB_ENDED")}  # of the state that the stream is with
    one.end()
    wait_until(lambda: not alive(one.supervisor), QUICK, "an end of the supervisor")


def test_a_late_report_refused_by_its_own_state_is_over(
    fake: Callable[..., Scheduler], work: Callable[..., Work]
) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    scheduler.stop()
    one.end()
    wait_for_output(one.run, "done")
    back = fake(scheduler.port)
    back.refuse = {"Release": refusal("ABORTED", "JOB_ENDED", state=STATE)}
    wait_until(lambda: not alive(one.supervisor), QUICK, "an end of the supervisor")


@pytest.mark.parametrize("verdict", ["ended", "revoked", "superseded", "queued", "other epoch", "not confirmed"])
def test_told_on_the_stream(fake: Callable[..., Scheduler], work: Callable[..., Work], verdict: str) -> None:
    scheduler = fake()
    if verdict == "other epoch":
        scheduler.epoch = 2
    elif verdict == "not confirmed":
        scheduler.refuse = {"Confirm": refusal("ABORTED", "GRANT_EXPIRED", state=STATE)}
    one = work(scheduler)
    match verdict:
        case "ended":
            scheduler.wait_for_stream()
            scheduler.say(ended=scheduler_pb2.Ended(job_id="1", message="outlived its time limit"))
        case "revoked":
            scheduler.wait_for_stream()
            scheduler.end_stream(refusal("ABORTED", "LEASE_REVOKED"))
        case "superseded":
            scheduler.wait_for_stream()
            scheduler.end_stream(refusal("ABORTED", "SUPERSEDED"))
        case "queued":
            scheduler.wait_for_stream()
            scheduler.say(queued=scheduler_pb2.Queued(job_id="1", position=1))
    one.assert_killed()
    assert "gpusched: the scheduler took the GPUs back: " in output(one.run)
    assert scheduler.released == []


def test_a_cancels_deadline_shortens_the_grace(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler, deaf=True, grace=600.0)
    scheduler.wait_for_stream()
    scheduler.say(notice=cancel_in(2.5))
    wait_until(lambda: scheduler.released, 10, "a report")
    assert "gpusched: the job was cancelled: enough; ending the command" in output(one.run)


def test_other_notices_are_passed_on(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler)
    scheduler.wait_for_stream()
    for kind, text in (("SERVER_STOPPING", "of no concern"), ("DRAIN", "GPU 3 goes"), ("TIME_LIMIT", "our own")):
        kind_number = scheduler_pb2.NoticeKind.Value(f"NOTICE_KIND_{kind}")
        scheduler.say(notice=scheduler_pb2.Notice(job_id="1", kind=kind_number, message=text))
    scheduler.say(ended=scheduler_pb2.Ended(job_id="1", message="that is all"))
    one.assert_killed()
    said = [line for line in output(one.run).splitlines() if line.startswith("gpusched: notice")]
    assert said == ["gpusched: notice: GPU 3 goes"]


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_cancel_after_the_clock_was_set_leaves_the_grace(
    fake: Callable[..., Scheduler], work: Callable[..., Work], jump: float
) -> None:
    scheduler = fake()
    one = work(scheduler, deaf=True, grace=1.0)
    scheduler.wait_for_stream()
    scheduler.say(notice=cancel_in(jump + 30))
    wait_for_output(one.run, "SIGKILL after 1 s")
    began = time.monotonic()
    wait_until(lambda: scheduler.released, 10, "a report")
    assert time.monotonic() - began > 0.5


@pytest.mark.slow
def test_a_cancel_shortens_a_grace_that_is_running(fake: Callable[..., Scheduler], work: Callable[..., Work]) -> None:
    scheduler = fake()
    one = work(scheduler, deaf=True, grace=600.0, time_limit=1.0)
    scheduler.wait_for_stream()
    wait_for_output(one.run, "the time limit of 1s is reached")
    scheduler.say(notice=cancel_in(2.5))
    (report,) = wait_until(lambda: scheduler.released, 10, "a report")
    assert report.timed_out
    assert "was cancelled" not in output(one.run), "one reason is enough"


# -- a real server -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_server_comes_back_with_its_state(
    server_factory: Callable[..., Server], runner: Runner, lease: Callable[..., Job], tmp_path: Path
) -> None:
    server = server_factory("4")
    jobs = [lease(server) for _ in range(3)]
    runs = []
    for number, job in enumerate(jobs):
        end = tmp_path / f"end {number}"
        script = 'echo $$; until [ -e "$0" ]; do sleep 0.02; done; exit "$1"'
        runs.append(job.run(tmp_path, ("sh", "-c", script, str(end), str(number + 10))))
        runner.launch(runs[-1])
    for job, run in zip(jobs, runs, strict=True):
        wait_for_output(run, "\n")
        job.wait_until_attached()
    pids = [int(output(run)) for run in runs]
    server.kill()
    (tmp_path / "end 0").touch()  # ends while the server is away
    wait_until(lambda: not jobs[0].processes(), QUICK, "an end of the first")
    server.start()
    assert jobs[0].wait().outcome.exit_status == 10
    wait_until(lambda: [job.state for job in jobs[1:]] == ["RUNNING"] * 2, QUICK, "both back")
    assert alive(pids[1]) and alive(pids[2])
    for number in (1, 2):
        (tmp_path / f"end {number}").touch()
        assert jobs[number].wait().outcome.exit_status == number + 10
    assert runner.failures == []


@pytest.mark.slow
def test_agent_and_server_killed_one_after_the_other(
    server_factory: Callable[..., Server], runner: Runner, lease: Callable[..., Job], tmp_path: Path
) -> None:
    """A supervisor needs neither."""
    server = server_factory("4")
    job = lease(server)
    end = tmp_path / "end"
    run = job.run(tmp_path, ("sh", "-c", 'echo up; until [ -e "$0" ]; do sleep 0.02; done; exit 8', str(end)))
    runner.launch(run)
    wait_for_output(run, "up")
    job.wait_until_attached()
    supervisor = supervisor_of(run)
    kill(runner.agents[0])
    wait_until(lambda: not alive(runner.agents[0]), QUICK, "an end of the agent")
    server.kill()
    server.start()
    wait_until(lambda: connections(supervisor, server), QUICK, "it is back")
    end.touch()
    assert job.wait().outcome.exit_status == 8


@pytest.mark.slow
def test_another_state_at_the_same_port_ends_nothing(
    server_factory: Callable[..., Server], runner: Runner, lease: Callable[..., Job], tmp_path: Path
) -> None:
    server = server_factory("4")
    job = lease(server)
    run = job.run(tmp_path, ("sh", "-c", "echo up; exec sleep 1000"))
    runner.launch(run)
    wait_for_output(run, "up")
    job.wait_until_attached()
    server.kill()
    other = server_factory("4", port=server.port)
    supervisor = supervisor_of(run)
    for _ in range(2):
        (connection,) = wait_until(lambda: connections(supervisor, server), QUICK, "a try")
        wait_until(lambda: connection not in connections(supervisor, server), QUICK, "its end")  # noqa: B023
    assert job.processes()
    other.stop()
    server.start()
    assert job.processes()
    kill(*job.processes())
    assert job.wait().outcome.signal == signal.SIGKILL


@pytest.mark.slow
def test_a_frozen_server_ends_nothing(
    server_factory: Callable[..., Server], runner: Runner, lease: Callable[..., Job], tmp_path: Path
) -> None:
    server = server_factory("4")
    job = lease(server)
    run = job.run(tmp_path, ("sh", "-c", "echo up; sleep 0.3; echo done; exit 6"))
    runner.launch(run)
    wait_for_output(run, "up")
    job.wait_until_attached()
    server.pause()
    wait_for_output(run, "done")
    server.resume()
    assert job.wait().outcome.exit_status == 6
