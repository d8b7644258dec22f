"""`--signal`: what a command is sent before its end, be it the time limit or a preemption, and only once."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpusched.v1 import scheduler_pb2
from gsrun.fake import FakeScheduler
from gsrun.running import Gsrun
from gsrun.test_return import Surroundings
from support.server import Server

Start = Callable[..., Gsrun]

# Tells when it got which signal, ends by itself at a second one of a kind, and with 9 at SIGTERM.
TOLD = (
    sys.executable,
    "-uc",
    "import signal, sys, time\n"
    "began = time.monotonic()\n"
    "def told(number, _):\n"
    "    print(signal.Signals(number).name, f'{time.monotonic() - began:.3f}')\n"
    "    if number == signal.SIGTERM: sys.exit(9)\n"
    "signal.signal(signal.SIGUSR1, told)\n"
    "signal.signal(signal.SIGTERM, told)\n"
    "print('up')\n"
    "while True: signal.pause()",
)


def told(run: Gsrun) -> list[str]:
    return [line.split()[0] for line in run.out.splitlines()]


def test_it_comes_before_the_time_limit(gsrun: Start) -> None:
    run = gsrun("--time", "5s", "--signal", "USR1@2s", *TOLD)
    assert run.wait() == 124
    assert told(run) == ["up", "SIGUSR1", "SIGTERM"]
    first, last = (float(line.split()[1]) for line in run.out.splitlines()[1:])
    assert last - first == pytest.approx(2.0, abs=0.5)
    assert re.search("notice: sent the command SIGUSR1; its time limit ends in [12]s", run.err)


def test_who_ends_of_it_has_ended_by_itself(gsrun: Start) -> None:
    run = gsrun("--time", "60s", "--signal", "USR1@59s", "sh", "-c", "trap 'exit 4' USR1; while :; do sleep .05; done")
    assert run.wait() == 4


def test_a_limit_that_is_nearer_than_that(gsrun: Start, tmp_path: Path) -> None:
    """At once, but a command that is still starting does not die of it."""
    go = tmp_path / "go"
    text = f"echo up; until [ -e {go} ]; do sleep .05; done; trap 'echo USR1; exit 4' USR1; while :; do sleep .05; done"
    run = gsrun("--time", "60s", "--signal", "USR1", "sh", "-c", text)
    run.wait_for_out("up")
    go.touch()
    assert run.wait() == 4
    assert run.out == "up\nUSR1\n"


def test_quiet(gsrun: Start) -> None:
    run = gsrun(
        "-q", "--time", "60s", "--signal", "USR1@60s", "sh", "-c", "trap 'exit 4' USR1; while :; do sleep .05; done"
    )
    assert run.wait() == 4
    assert run.err == ""


@pytest.mark.parametrize("more", [(), ("--preemptible",), ("--time", "1h"), ("-q",)], ids=" ".join)
def test_a_signal_that_can_never_come_is_mentioned(gsrun: Start, more: tuple[str, ...]) -> None:
    run = gsrun("--signal", "USR1@60s", *more, "true")
    assert run.wait() == 0
    assert ("--signal has no effect without --time or --preemptible" in run.err) == (not more)


@pytest.mark.parametrize(
    ("signal_words", "said"),
    [
        ("FOO@1s", r"gsrun: --signal: 'FOO@1s' will not do: .*; the signals are HUP, INT, .*"),
        ("USR1@100d", r"gsrun: --signal: 'USR1@100d' will not do: .*; the time is more than 0, and at most 1d"),
    ],
)
def test_a_signal_that_there_is_not_is_all_that_is_said(gsrun: Start, signal_words: str, said: str) -> None:
    for more in ((), ("--dry-run",)):
        run = gsrun("--signal", signal_words, *more, "true")
        assert run.wait() == 2
        assert re.fullmatch(said + "\n", run.err)


# -- with a scheduler that preempts when it is told to ---------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    with FakeScheduler() as scheduler:
        yield scheduler


@pytest.fixture
def start(fake: FakeScheduler, tmp_path: Path) -> Iterator[Start]:
    started: list[Gsrun] = []

    def run(*words: str) -> Gsrun:
        started.append(Gsrun(Surroundings(fake.address, tmp_path), *words))  # type: ignore[arg-type]
        fake.grant()
        started[-1].wait_for_out("up")
        return started[-1]

    yield run
    for each in started:
        each.close()


def announce(fake: FakeScheduler, kind: str, seconds: float) -> None:
    notice = scheduler_pb2.Notice(
        job_id="7", kind=scheduler_pb2.NoticeKind.Value(f"NOTICE_KIND_{kind}"), message="asked"
    )
    notice.deadline.FromNanoseconds(int((time.time() + seconds) * 1e9))
    fake.say(notice=notice)


def test_a_preemption_after_it_sends_no_second_one(fake: FakeScheduler, start: Start) -> None:
    run = start("--preemptible", "--time", "60s", "--signal", "USR1@59s", *TOLD)
    run.wait_for_out("SIGUSR1")
    announce(fake, "PREEMPTION", 3.0)
    assert run.wait() == 76
    assert told(run) == ["up", "SIGUSR1"], "and SIGKILL follows"
    assert "the command had its SIGUSR1; SIGKILL follows" in run.err


def test_a_limit_after_a_preemption_sends_no_second_one(fake: FakeScheduler, start: Start) -> None:
    run = start("--preemptible", "--time", "8s", "--signal", "USR1@4s", *TOLD)
    announce(fake, "PREEMPTION", 6.0)  # so it comes in a second; the limit would have it come in four
    assert run.wait() == 76
    assert told(run) == ["up", "SIGUSR1"]


def test_a_limit_of_the_schedulers_own(server_factory: Callable[..., Server]) -> None:
    """One that no `--time` asked for is kept, and told, as any other."""
    server = server_factory("1", args=("--default-time-limit", "3s"))
    run = Gsrun(server, "--signal", "USR1@2s", *TOLD)
    run.wait_for_out("SIGUSR1")
    assert run.wait() == 124
    assert "the time limit of 3s is reached" in run.err
    run.close()
