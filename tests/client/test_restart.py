"""Promises 6 and 7 from Python: the scheduler goes and comes back, or another answers, under leases and waits."""

import asyncio
import os
import signal
import threading
import time

import pytest

from gpusched.client import (
    Client,
    GpuschedError,
    GpuschedWarning,
    JobState,
    LeaseLost,
    NoticeKind,
    ReasonCode,
    acquire,
    aio,
    procs,
)
from gpusched.client.calls import Call
from gpusched.v1 import admin_pb2, job_pb2
from support.scripts import Script
from support.waiting import wait_until

SHORT = ("--window", "1s")


@pytest.fixture
def started(server_factory, use_server, request):
    """A server of this test's own, with one GPU."""
    server = server_factory("1", args=getattr(request, "param", ()))
    use_server(server)
    return server


def kinds(lease):
    return [notice.kind for notice in lease.notices]


def back(lease):
    wait_until(lambda: NoticeKind.BACK in kinds(lease))


def job(job_id):
    with Client() as client:
        return client.job(job_id)


def ended(job_id):
    return wait_until(lambda: (found := job(job_id)).state.ended and found)


def forget_all(server):
    for file in server.state_dir.glob("state.db*"):
        file.unlink()


def set_state(job_id, state, reason):
    with Client() as client:
        request = admin_pb2.SetJobStateRequest(job_id=job_id, state=state, reason=reason)
        client._call(Call("Admin.SetJobState", request, lambda answer: None))


class frozen:  # noqa: N801
    """The lease's helper, or that of a ticket, is stopped in the block."""

    def __init__(self, held):
        self.pid = held._session.helper_pid

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *args):
        os.kill(self.pid, signal.SIGCONT)


# -- it comes back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gracefully", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kill", "stop"])
def test_a_restart_takes_nothing_from_the_holder_nor_its_place_from_the_waiter(started, gracefully):
    seen = []
    with acquire(name="holder") as lease:
        before = job(lease.job_id)
        first, second = acquire(nested="new"), acquire(nested="new")
        places = iter(first), iter(second)
        assert [next(each).position for each in places] == [1, 2]
        if gracefully:
            started.stop()
        else:
            started.kill()
        for each in places:
            while (update := next(each)).reason.code is not ReasonCode.AWAY:
                pass
            seen.append(update)
        wait_until(lambda: NoticeKind.AWAY in kinds(lease))
        assert lease.notices[-1].message == "the scheduler is away; the GPUs stay yours"
        lease.check()
        started.start()
        back(lease)
        for each, place in zip(places, (1, 2), strict=True):
            while (update := next(each)).reason.code is ReasonCode.AWAY:
                pass
            assert update.position == place
        after = job(lease.job_id)
        assert (after.state, after.lease_id, after.gpus) == (JobState.RUNNING, before.lease_id, before.gpus)
        assert after.holder_pid == os.getpid()
        lease.check()
    assert [(update.position, update.reason.message) for update in seen] == [
        (place, "the scheduler is away; keeping your place in the queue") for place in (1, 2)
    ]
    done = ended(lease.job_id)
    assert (done.state, done.outcome.exit_status) == (JobState.COMPLETED, 0)
    with first as lease:
        assert job(second.job_id).state is JobState.QUEUED
        lease.check()
    with second:
        pass


@pytest.mark.slow
def test_restart_after_restart(started):
    with acquire() as lease:
        for times in (1, 2):
            started.restart()
            wait_until(lambda: kinds(lease).count(NoticeKind.BACK) == times)  # noqa: B023
    assert kinds(lease) == [NoticeKind.AWAY, NoticeKind.BACK] * 2
    assert ended(lease.job_id).state is JobState.COMPLETED


@pytest.mark.slow
async def test_the_async_twin(started):
    async with aio.acquire() as lease:
        waiter = aio.acquire(nested="new")
        places = aiter(waiter)
        assert (await anext(places)).position == 1
        await asyncio.to_thread(started.restart)
        await asyncio.to_thread(back, lease)
        while (update := await anext(places)).reason.code is ReasonCode.AWAY:
            pass
        assert update.position == 1
        lease.check()
    async with waiter as lease:
        pass
    assert (await asyncio.to_thread(ended, lease.job_id)).state is JobState.COMPLETED


@pytest.mark.slow
def test_a_grant_that_was_not_confirmed_is_taken_up_again(started):
    first = acquire()
    first.start()
    ticket = acquire(nested="new")
    next(iter(ticket))
    with frozen(ticket):
        first.close()
        wait_until(lambda: job(ticket.job_id).state is JobState.RUNNING)
        lease_id = job(ticket.job_id).lease_id
        started.restart()
    with ticket as lease:
        assert lease.id == lease_id
    assert ended(lease.job_id).state is JobState.COMPLETED


@pytest.mark.slow
def test_a_block_that_ends_before_its_helper_is_back(started):
    ticket = acquire()
    ticket.start()
    with frozen(ticket):
        started.kill()
        closing = threading.Thread(target=ticket.close)
        closing.start()
        started.start()
    closing.join(20)
    done = ended(ticket.job_id)
    assert (done.state, done.outcome.exit_status) == (JobState.COMPLETED, 0)


# -- it comes back, and says that it is over ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("started", [SHORT], indirect=True)
def test_too_late_to_come_back(started):
    with pytest.raises(LeaseLost, match="did not come back"), acquire(on_lost=lambda error: None) as lease:
        ticket = acquire(nested="new")
        next(iter(ticket))
        with frozen(lease), frozen(ticket):
            started.restart()
            assert ended(lease.job_id).state is JobState.LOST
            assert ended(ticket.job_id).state is JobState.CANCELLED
        assert lease.wait_lost(10)
        with pytest.raises(LeaseLost):
            lease.check()
        with pytest.raises(GpuschedError, match=f"place of job {ticket.job_id} in the queue is lost") as caught:
            ticket.start()
        assert caught.value.reason == "PLACE_LOST"


@pytest.mark.slow
def test_moved_by_hand_meanwhile(started):
    with pytest.raises(LeaseLost, match=r"moved by hand by .*: stuck"), acquire(on_lost=lambda error: None) as lease:
        with frozen(lease):
            started.restart()
            set_state(lease.job_id, job_pb2.JOB_STATE_CANCELLED, "stuck")
        assert lease.wait_lost(10)


# -- another answers in its place, or nobody ---------------------------------------------------------------


@pytest.mark.slow
def test_another_state_in_its_place_has_no_say(started):
    """Not in the block, nor at its end."""
    with pytest.warns(GpuschedWarning, match="is away"), acquire() as lease:
        ticket = acquire(nested="new")
        updates = iter(ticket)
        next(updates)
        started.kill()
        forget_all(started)
        started.start()
        wait_until(lambda: [notice for notice in lease.notices if "another scheduler answers" in notice.message])
        while "another scheduler answers" not in (update := next(updates)).reason.message:
            pass
        assert update.reason.code is ReasonCode.AWAY
        ticket.close()
        lease.check()
        assert "stay yours" in lease.notices[-1].message
        began = time.monotonic()
    assert time.monotonic() - began < 4
    assert not lease.lost
    with Client() as client:
        assert client.jobs(include_ended=True) == []


AWAY = """
    import sys, time
    from gpusched.client import acquire
    lease = acquire(on_notice=lambda notice: print(notice.kind)).start()
    print(lease._session.helper_pid)
    sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_an_owner_that_ends_while_nobody_is_there_leaves_nothing(started, how):
    with Script(AWAY, started.env) as script:
        helper = int(script.line())
        started.kill()
        assert script.line() == "away"
        began = time.monotonic()
        if how == "kill":
            script.signal(signal.SIGKILL)
        else:
            script.say()
            assert script.wait() == 0
        wait_until(lambda: not procs.alive(helper), 5)
        assert time.monotonic() - began < 5
