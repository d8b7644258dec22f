"""How gsrun comes back to a job, and what it takes for a verdict on it: only the word of the state that granted it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from gpusched.client.gsrun import reach
from gpusched.v1 import job_pb2, scheduler_pb2
from gsrun.fake import FakeScheduler
from gsrun.running import Gsrun
from support.scripts import Script
from support.server import clean_environment, free_port
from support.waiting import wait_until

Start = Callable[..., Gsrun]

HOLDING = "gsrun: the scheduler is away; holding your GPUs, the command goes on\n"
BACK = "gsrun: the scheduler is back\n"


class Surroundings:
    """As much of a `Server` as a Gsrun needs."""

    def __init__(self, address: str, directory: Path) -> None:
        self.state_dir = directory
        self.env = clean_environment(GPUSCHED_URL=address, GPUSCHED_AUTOSTART="0")


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    with FakeScheduler() as scheduler:
        yield scheduler


@pytest.fixture
def start(fake: FakeScheduler, tmp_path: Path) -> Iterator[Start]:
    started: list[Gsrun] = []

    def run(*words: str, **more: object) -> Gsrun:
        started.append(Gsrun(Surroundings(fake.address, tmp_path), *words, **more))  # type: ignore[arg-type]
        return started[-1]

    yield run
    for each in started:
        each.close()


@pytest.fixture
def running(fake: FakeScheduler, start: Start, tmp_path: Path) -> Gsrun:
    """A gsrun whose command runs until `tmp_path / "go"` is there, and then exits with 4."""
    run = start("sh", "-c", f"echo up; until [ -e {tmp_path / 'go'} ]; do sleep 0.02; done; exit 4")
    fake.grant(epoch=5)
    run.wait_for_out("up")
    return run


def lose(fake: FakeScheduler) -> None:
    """The stream breaks."""
    fake.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def test_the_return_names_job_and_holder(fake: FakeScheduler, running: Gsrun, tmp_path: Path) -> None:
    lose(fake)
    fake.grant(epoch=5, confirm=False)
    running.wait_for_err(BACK)
    first, second = fake.requests
    assert second == scheduler_pb2.AcquireRequest(resume_token="secret", holder=first.holder)
    assert fake.confirms == [5], "it was confirmed before"
    (tmp_path / "go").touch()
    assert running.wait() == 4
    assert (fake.releases[0].epoch, fake.releases[0].outcome.exit_status) == (5, 4)
    assert running.err == HOLDING + BACK


def test_a_command_without_gpus_has_a_lease(fake: FakeScheduler, start: Start) -> None:
    run = start("-n", "0", "--cpus", "2", "sh", "-c", "echo up; exec sleep 100")
    fake.grant(epoch=5, indices=())
    run.wait_for_out("up")
    lose(fake)
    run.wait_for_err("gsrun: the scheduler is away; holding your lease, the command goes on\n")
    fake.say(queued=scheduler_pb2.Queued(job_id="7", position=1, total=1))
    assert run.wait() == 76
    assert "gsrun: the scheduler took the lease back: it takes this job for one that waits; ending" in run.err
    assert "GPU" not in run.err


def test_a_grant_that_is_to_be_confirmed_again_is(fake: FakeScheduler, running: Gsrun, tmp_path: Path) -> None:
    lose(fake)
    fake.grant(epoch=5)
    fake.grant(epoch=5)
    wait_until(lambda: fake.confirms == [5, 5])
    (tmp_path / "go").touch()
    assert running.wait() == 4
    assert running.out == "up\n", "the command was not started again"


def test_notices_count_again_after_the_return(fake: FakeScheduler, running: Gsrun) -> None:
    lose(fake)
    fake.grant(epoch=5)
    kind = scheduler_pb2.NOTICE_KIND_CANCEL
    fake.say(notice=scheduler_pb2.Notice(job_id="7", kind=kind, message="enough"))
    assert running.wait() == 143
    assert "gsrun: the job was cancelled: enough; ending the command" in running.err


def test_a_verdict_after_the_return_counts(fake: FakeScheduler, running: Gsrun) -> None:
    lose(fake)
    fake.grant(epoch=5)
    running.wait_for_err(BACK)
    fake.say(ended=scheduler_pb2.Ended(job_id="7", state=job_pb2.JOB_STATE_CANCELLED, message="revoked"))
    fake.abort(grpc.StatusCode.ABORTED, "revoked")
    assert running.wait() == 76
    assert "gsrun: the scheduler took the GPUs back: revoked; ending the command" in running.err
    assert fake.releases == [], "there is no lease to give back"


def test_another_epoch(fake: FakeScheduler, running: Gsrun) -> None:
    lose(fake)
    fake.grant(epoch=6)
    assert running.wait() == 76
    assert "the scheduler took the GPUs back: it has granted this job GPUs anew" in running.err
    assert 6 not in fake.confirms


def test_queued_again(fake: FakeScheduler, running: Gsrun) -> None:
    """The grant was taken back, say because its confirmation was lost."""
    lose(fake)
    fake.queue("needs 1 GPU, 0 free")
    assert running.wait() == 76
    assert "the scheduler took the GPUs back: it takes this job for one that waits" in running.err


def test_fewer_gpus_than_before_do_not_end_the_command(fake: FakeScheduler, running: Gsrun, tmp_path: Path) -> None:
    """One has left the machine, and the scheduler no longer knows it."""
    lose(fake)
    fake.grant(epoch=5, indices=())
    running.wait_for_err(BACK)
    (tmp_path / "go").touch()
    assert running.wait() == 4


def test_refused_by_the_state_that_granted(fake: FakeScheduler, running: Gsrun) -> None:
    fake.turn_away = ["s"]
    lose(fake)
    assert running.wait() == 76
    assert "gsrun: the scheduler took the GPUs back: it was late; ending the command" in running.err


@pytest.mark.slow
@pytest.mark.parametrize("state", ["", "another"])
def test_refused_by_anybody_else(fake: FakeScheduler, running: Gsrun, tmp_path: Path, state: str) -> None:
    fake.turn_away = [state, state, state]
    lose(fake)
    fake.grant(epoch=5)
    running.wait_for_err(BACK)
    (tmp_path / "go").touch()
    assert running.wait() == 4
    strange = (
        f"gsrun: another scheduler answers at {fake.address}, which knows nothing of this job; waiting for its own\n"
    )
    assert running.err == HOLDING + (strange if state else "") + BACK


def test_taken_in_by_another_state(start: Start, fake: FakeScheduler, running: Gsrun, tmp_path: Path) -> None:
    """It may know the secret, from a copy of the state; its word does not count all the same."""
    fake.state_id = "copy"
    lose(fake)
    running.wait_for_err("another scheduler answers at")
    wait_until(lambda: len(fake.requests) > 2, what="further tries")
    (tmp_path / "go").touch()
    assert running.wait() == 4


@pytest.mark.slow
def test_tries_are_paced(fake: FakeScheduler, running: Gsrun, tmp_path: Path) -> None:
    """A server that refuses at once is not stormed."""
    fake.turn_away = [""] * 100
    began = time.monotonic()
    lose(fake)
    wait_until(lambda: len(fake.requests) >= 5)
    assert time.monotonic() - began > 0.05 + 0.1 + 0.2 + 0.4
    (tmp_path / "go").touch()
    assert running.wait() == 4


def test_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(reach.time, "sleep", pauses.append)
    backoff = reach.Backoff()
    for _ in range(7):
        backoff.pause()
    backoff.reset()
    backoff.pause()
    for pause, most in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 0.1), strict=True):
        assert most / 2 <= pause <= most


def test_the_end_is_reported_to_a_scheduler_that_is_just_back(start: Start, tmp_path: Path) -> None:
    """The command ends while it is away, and it returns within the second that gsrun takes to say so."""
    port = free_port()
    go = tmp_path / "go"
    with FakeScheduler(port) as before:
        run = start(
            "--url", f"127.0.0.1:{port}", "sh", "-c", f"echo up; until [ -e {go} ]; do sleep 0.02; done; exit 4"
        )
        before.grant(epoch=5)
        run.wait_for_out("up")
    run.wait_for_err(HOLDING)
    go.touch()
    wait_until(lambda: len(run.survivors()) <= 2, what="the command's end")
    with FakeScheduler(port) as after:
        assert run.wait() == 4
        assert [release.outcome.exit_status for release in after.releases] == [4]


def test_a_waiter_comes_back_by_its_secret(fake: FakeScheduler, start: Start) -> None:
    run = start("echo", "ran")
    fake.queue("needs 1 GPU, 0 free")
    run.wait_for_err("1st of 1")
    lose(fake)
    fake.queue("needs 1 GPU, 0 free")
    run.wait_for_err(BACK)
    assert [request.resume_token for request in fake.requests] == ["", "secret"]
    fake.grant()
    assert run.wait() == 0
    assert run.out == "ran\n"


@pytest.mark.parametrize(("state", "said"), [("s", "place in the queue is lost (it was late)"), ("t", "knows nothing")])
def test_a_waiter_that_is_refused_queues_anew(fake: FakeScheduler, start: Start, state: str, said: str) -> None:
    run = start("-n", "1", "--name", "x", "echo", "ran")
    fake.queue("needs 1 GPU, 0 free")
    run.wait_for_err("1st of 1")
    fake.turn_away = [state]
    lose(fake)
    fake.grant()
    assert run.wait() == 0
    assert said in run.err
    assert [request.resume_token for request in fake.requests] == ["", "secret", ""]
    assert fake.requests[2] == fake.requests[0]


def test_a_waiter_that_has_waited_enough_does_not_queue_anew(fake: FakeScheduler, start: Start) -> None:
    run = start("--max-wait", "0.3s", "echo", "ran")
    fake.queue("needs 1 GPU, 0 free")
    run.wait_for_err("1st of 1")
    time.sleep(0.3)
    fake.turn_away = ["s"]
    lose(fake)
    assert run.wait() == 75
    assert "gsrun: it was late\n" in run.err
    assert len(fake.requests) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user as well")
def test_a_program_of_another_user_is_told_nothing(start: Start, tmp_path: Path) -> None:
    """It may take the port of a scheduler that is away, and would learn the secret, or end commands."""
    port = free_port()
    go = tmp_path / "go"
    with FakeScheduler(port) as before:
        run = start("--url", before.address, "sh", "-c", f"echo up; until [ -e {go} ]; do sleep 0.02; done; exit 4")
        before.queue("needs 1 GPU, 0 free")
        before.grant(epoch=5)
        run.wait_for_out("up")
    run.wait_for_err(HOLDING)
    heard = tmp_path / "heard"
    code = f"""
        import os, socket
        heard = open({str(heard)!r}, "ab", buffering=0)
        os.setuid(12345)
        server = socket.create_server(("127.0.0.1", {port}))
        while True:
            connection, _ = server.accept()
            heard.write(b"call" + connection.recv(1000) + b";")
    """
    with Script(code, clean_environment()):
        run.wait_for_err(f"another scheduler answers at 127.0.0.1:{port}")
        wait_until(lambda: heard.read_bytes().count(b"call") >= 3, what="further looks")
        assert set(heard.read_bytes().split(b";")) == {b"call", b""}
    with FakeScheduler(port) as after:
        after.grant(epoch=5)
        run.wait_for_err(BACK)
        go.touch()
        assert run.wait() == 4


@pytest.mark.slow
def test_a_waiter_outlasts_errors_that_are_no_verdict(fake: FakeScheduler, start: Start) -> None:
    run = start("echo", "ran")
    fake.queue("needs 1 GPU, 0 free")
    run.wait_for_err("1st of 1")
    fake.turn_away = ["", ""]
    lose(fake)
    fake.grant()
    assert run.wait() == 0
    assert [request.resume_token for request in fake.requests] == ["", "secret", "secret", "secret"]


def test_a_grant_lost_before_it_was_confirmed(fake: FakeScheduler, start: Start) -> None:
    """The answer to the grant never arrived; told again, it is answered again, and the command starts once."""
    run = start("sh", "-c", "echo ran")
    fake.confirm_errors = [grpc.StatusCode.UNAVAILABLE] * 3
    fake.grant(epoch=5)
    wait_until(lambda: fake.confirms)
    lose(fake)
    wait_until(lambda: len(fake.requests) == 2)
    assert run.out == ""
    fake.confirm_errors = []
    fake.grant(epoch=5, confirm=False)
    assert run.wait() == 0
    assert run.out == "ran\n"
