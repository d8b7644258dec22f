"""What gsrun makes of a scheduler's rarer words: lost leases, odd grants, errors, hostile text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from gpusched.v1 import job_pb2, scheduler_pb2
from gsrun.fake import FakeScheduler
from gsrun.running import Gsrun
from support.server import clean_environment
from support.waiting import wait_until

Start = Callable[..., Gsrun]


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


def test_lost_lease_stops_the_work(fake: FakeScheduler, start: Start) -> None:
    """Promise 7: by the word of the scheduler that granted it."""
    run = start("sh", "-c", "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.02; done")
    fake.grant()
    run.wait_for_out("up")
    state = job_pb2.JOB_STATE_CANCELLED
    fake.say(ended=scheduler_pb2.Ended(job_id="7", state=state, message="outlived its time limit"))
    fake.abort(grpc.StatusCode.ABORTED, "outlived its time limit")
    assert run.wait() == 76
    assert "told" in run.out
    assert "gsrun: the scheduler took the GPUs back: outlived its time limit; ending the command" in run.err


def test_a_grant_sets_variables_of_gpus_alone(fake: FakeScheduler, start: Start) -> None:
    run = start("sh", "-c", "echo $CUDA_VISIBLE_DEVICES ${LD_PRELOAD-none} $HOME", env={"HOME": "/home/of/mine"})
    fake.grant(environment={"LD_PRELOAD": "/evil.so", "HOME": "/evil"})
    assert run.wait() == 0
    assert run.out == "0 none /home/of/mine\n"


def test_lost_lease_stops_stubborn_work(fake: FakeScheduler, start: Start) -> None:
    run = start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.02; done", env={"GPUSCHED_KILL_AFTER": "0.2s"})
    fake.grant()
    run.wait_for_out("up")
    fake.abort(grpc.StatusCode.ABORTED, "superseded")
    assert run.wait() == 76
    assert run.survivors() == []


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
def test_anything_else_is_no_verdict(fake: FakeScheduler, start: Start, tmp_path: Path, code: grpc.StatusCode) -> None:
    go = tmp_path / "go"
    run = start("sh", "-c", f"echo up; until [ -e {go} ]; do sleep 0.02; done; exit 4")
    fake.grant()
    run.wait_for_out("up")
    fake.abort(code, "whatever")
    run.wait_for_err("gsrun: the scheduler is away; holding your GPUs, the command goes on\n")
    go.touch()
    assert run.wait() == 4
    assert fake.releases[0].outcome.exit_status == 4, "it is there again, and hears how it ended"


def test_grant_is_confirmed_once_and_released_with_the_outcome(fake: FakeScheduler, start: Start) -> None:
    run = start("sh", "-c", "exit 3")
    fake.grant(epoch=41)
    fake.grant(epoch=41)
    assert run.wait() == 3
    assert fake.confirms == [41]
    release = fake.releases[0]
    assert (release.job_id, release.resume_token, release.epoch) == ("7", "secret", 41)
    assert (release.outcome.exit_status, release.outcome.signal, release.timed_out) == (3, 0, False)
    holder = fake.requests[0].holder
    assert holder.pid and holder.start_ticks


def test_confirm_that_was_not_heard_is_said_again(fake: FakeScheduler, start: Start) -> None:
    fake.confirm_errors = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
    run = start("echo", "ran")
    fake.grant(epoch=5)
    assert run.wait() == 0
    assert fake.confirms == [5, 5, 5]
    assert run.out == "ran\n"


def test_grant_that_was_taken_back(fake: FakeScheduler, start: Start) -> None:
    """Too late to confirm: the command does not start, gsrun waits on and takes the next grant."""
    fake.confirm_errors = [grpc.StatusCode.ABORTED]
    run = start("echo", "ran")
    fake.grant(epoch=5)
    wait_until(lambda: fake.confirms == [5])
    fake.queue("needs 1 GPU, 0 free")
    run.wait_for_err("1st of 1 in the queue")
    assert run.out == ""
    fake.grant(epoch=6)
    assert run.wait() == 0
    assert (fake.confirms, run.out) == ([5, 6], "ran\n")


@pytest.mark.parametrize(
    ("words", "grant", "said"),
    [
        ([], {"node": "elsewhere"}, "granted GPU 0 of elsewhere"),
        (["-n", "2"], {"indices": (3,)}, "granted 1 GPU"),
        (["-n", "1"], {"indices": (3, 4)}, "granted 2 GPUs"),
    ],
)
def test_grants_of_no_use(
    fake: FakeScheduler, start: Start, words: list[str], grant: dict[str, object], said: str
) -> None:
    """GPUs of another node, too few, too many: never handed to the command."""
    run = start(*words, "echo", "ran")
    fake.grant(**grant)  # type: ignore[arg-type]
    assert run.wait() == 125
    assert said in run.err
    assert (run.out, fake.confirms) == ("", [])


def test_notices_are_told(fake: FakeScheduler, start: Start, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run = start("sh", "-c", f"echo up; until [ -e {go} ]; do sleep 0.02; done")
    fake.grant()
    run.wait_for_out("up")
    kind = scheduler_pb2.NOTICE_KIND_GPU_UNHEALTHY
    fake.say(notice=scheduler_pb2.Notice(job_id="7", kind=kind, message="GPU 0: Xid 79"))
    run.wait_for_err("gsrun: notice: GPU 0: Xid 79\n")
    go.touch()
    assert run.wait() == 0


def test_words_that_cannot_be_taken_do_not_end_the_work(fake: FakeScheduler, start: Start) -> None:
    run = start("sh", "-c", "echo ran")
    queued = scheduler_pb2.Queued(job_id="7", position=1, total=1)
    queued.forecast.seconds = 1 << 62
    fake.say(queued=queued)
    fake.say()  # an event of a kind that is not known yet
    run.wait_for_err("gsrun: internal error, going on: ")
    fake.grant()
    assert run.wait() == 0
    assert run.out == "ran\n"


def test_text_from_elsewhere_cannot_drive_the_terminal(fake: FakeScheduler, start: Start) -> None:
    run = start("true")
    fake.queue("held by \x1b]0;title\x07 and\nGPU \x9b31m \u202e \ud7ff")
    run.wait_for_err("1st of 1")
    assert all(char.isprintable() or char == "\n" for char in run.err)
    assert run.err.count("\n") == 1
    fake.grant()
    assert run.wait() == 0


@pytest.mark.slow
def test_flood_of_updates(fake: FakeScheduler, start: Start) -> None:
    """Ten thousand places in a moment cost neither the lease nor the answer to the grant."""
    run = start("-q", "echo", "ran")
    for number in range(10_000):
        fake.queue(f"place {number}", position=number + 1, total=10_000)
    fake.grant()
    assert run.wait() == 0
    assert run.out == "ran\n"


def test_server_of_another_version(start: Start, tmp_path: Path) -> None:
    """It speaks gRPC, and does not know the call."""
    server = grpc.server(ThreadPoolExecutor(2))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    run = start("--url", address, "true")
    assert run.wait() == 69
    assert "another version of gpusched, or not gpusched at all" in run.err
    server.stop(0).wait()
