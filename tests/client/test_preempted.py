"""A lease that is to make room for another job: what its owner is sent before."""

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest

from gpusched.client import Client, JobState, NoticeKind, acquire, keeper, procs
from gpusched.client.procs import send_if_caught
from support.scripts import Script
from support.waiting import wait_until

GRACE_SECONDS = 4
OWNER = """
    import os, select, signal, time
    from gpusched.client import acquire

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole lines, from either thread

    def caught(number, frame):
        say("caught", signal.Signals(number).name, time.time())

    def on_notice(notice):
        say("notice", notice.kind, notice.deadline.timestamp(), notice.message)

    if {handler}:
        signal.signal(signal.SIGUSR1, caught)
    with acquire(preemptible=True, priority=-1, signal="{wish}", on_notice=on_notice) as lease:
        say("held", lease.job_id)
        # Awake now and then: before Linux 6.9 any thread may take the signal, and this one then sleeps on.
        while not select.select([0], [], [], 0.05)[0]:
            pass
        say("leaves")
"""


@pytest.fixture
def strict(server_factory, use_server):
    """One GPU, whose holder makes room within seconds."""
    args = ("--preemption", "on", "--preempt-after", "0s", "--preempt-grace", f"{GRACE_SECONDS}s")
    server = server_factory("1", args=args)
    use_server(server)
    return server


def owner(server, wish, *, handler=True):
    return Script(OWNER.format(wish=wish, handler=handler), server.env)


@pytest.fixture
def urgent():
    """Somebody in a hurry: one more request, whose place is given up at the end."""
    tickets = []

    def ask():
        tickets.append(acquire(on_update=lambda update: None))
        next(iter(tickets[0]))

    yield ask
    for ticket in tickets:
        ticket.close()


def test_the_signal_comes_so_long_before_the_end(strict, urgent):
    with owner(strict, "USR1@3s") as script:
        assert script.line().startswith("held")
        urgent()
        word, kind, deadline, *_ = script.line().split()
        assert (word, kind) == ("notice", "preemption")
        word, name, at = script.line().split()
        assert (word, name) == ("caught", "SIGUSR1")
        assert 1.0 < float(deadline) - float(at) <= 3.1  # a second after the notice; the machine may be busy
        script.say()
        assert script.line() == "leaves"
        assert script.wait() == 0


def test_the_signal_comes_at_once_where_there_is_less_time(strict, urgent):
    with owner(strict, "USR1@10m") as script:
        assert script.line().startswith("held")
        urgent()
        # One comes from a thread, the other from the system: in any order.
        caught, notice = sorted([script.line(), script.line()])
        assert notice.startswith("notice preemption ")
        assert caught.startswith("caught SIGUSR1 ")
        script.say()
        assert script.line() == "leaves"
        assert script.wait() == 0


@pytest.fixture
def timers(monkeypatch):
    """Those that a keeper sets: [seconds, whether it still runs, what it calls]."""
    made = []

    class Timer:
        def __init__(self, seconds, call, arguments):
            self.entry = [seconds, True, lambda: call(*arguments)]

        def start(self):
            made.append(self.entry)

        def is_alive(self):
            return self.entry[1]

        def cancel(self):
            self.entry[1] = False

    monkeypatch.setattr(keeper.threading, "Timer", Timer)
    return made


def keeper_with(wish):
    one = keeper.Keeper.__new__(keeper.Keeper)
    one._request, one._owner = {"signal": wish}, (17, 4)
    one._signalling, one._finishing = None, False
    return one


@pytest.mark.parametrize(("wish", "wait"), [(("USR1", 20.0), 40.0), (("USR1", 600.0), 0.0), (None, None)])
def test_when_and_how_often(timers, wish, wait):
    one, deadline = keeper_with(wish), datetime.now(UTC) + timedelta(seconds=60)
    for _ in range(2):  # again after the scheduler was away, later by that time
        one._signal_before(deadline, NoticeKind.PREEMPTION, "that")
        deadline += timedelta(seconds=5)
    assert [entry[0] for entry in timers] == ([pytest.approx(wait, abs=1.0)] if wish else [])


def test_a_preemption_before_the_time_limit(monkeypatch, timers):
    """The earlier end counts, and one signal is enough."""
    sent = []
    monkeypatch.setattr(procs, "send_if_caught", lambda *target: sent.append(target) or "")
    one, now = keeper_with(("USR1", 20.0)), datetime.now(UTC)
    one._signal_before(now + timedelta(hours=1), NoticeKind.TIME_LIMIT, "the time limit")
    one._signal_before(now + timedelta(seconds=60), NoticeKind.PREEMPTION, "that")
    assert [(entry[0], entry[1]) for entry in timers] == [
        (pytest.approx(3580, abs=1.0), False),
        (pytest.approx(40, abs=1.0), True),
    ]
    timers[1][2]()
    timers[1][1] = False
    one._signal_before(now + timedelta(seconds=30), NoticeKind.PREEMPTION, "that")
    assert len(timers) == 2 and sent == [(17, 4, "USR1")]


def test_the_signal_comes_before_the_time_limit_too(server_factory, use_server):
    server = server_factory("1")
    use_server(server)
    text = OWNER.format(wish="USR1@9s", handler=True).replace("preemptible=True", "time_limit=10")
    with Script(text, server.env) as script:
        assert script.line().startswith("held")
        assert script.line().startswith("caught SIGUSR1 ")
        script.say()
        assert script.line() == "leaves"
        assert script.wait() == 0


def test_what_would_end_the_owner_is_not_sent(strict, urgent):
    with owner(strict, "USR1@10m", handler=False) as script:
        job_id = script.line().split()[1]
        urgent()
        lines = [script.line(), script.line()]
        assert all(line.startswith("notice preemption") for line in lines)
        assert (
            f"SIGUSR1 was not sent before the GPUs are taken for another job: process {script.pid} has no" in lines[1]
        )
        script.say()
        assert script.line() == "leaves"
        assert script.wait() == 0
        with Client() as client:
            assert client.job(job_id).state is not JobState.LOST


@pytest.mark.parametrize("pidfd", [True, False])
def test_only_the_very_process_and_only_what_it_catches(monkeypatch, pidfd):
    if not pidfd:

        def refuse(pid):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", refuse)
    caught = threading.Event()
    before = signal.signal(signal.SIGUSR2, lambda number, frame: caught.set())
    try:
        pid, ticks = os.getpid(), procs.start_ticks(os.getpid())
        assert send_if_caught(pid, ticks + 1, "USR2") == "the process has ended"
        assert not caught.is_set()
        assert send_if_caught(pid, ticks, "USR2") == ""
        wait_until(caught.is_set)
        for name in ("KILL", "STOP", "TERM"):
            assert send_if_caught(pid, ticks, name) == f"process {pid} has no handler for it"
        assert send_if_caught(pid, ticks, "NONE") == "this system has no such signal"
    finally:
        signal.signal(signal.SIGUSR2, before)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert send_if_caught(child.pid, 1, "USR2") == "the process has ended"
