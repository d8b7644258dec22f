"""The asyncio twin."""

import asyncio
import inspect
import os
import threading
from concurrent.futures import Future

import pytest

from gpusched.client import (
    GpuschedWarning,
    JobState,
    LeaseLost,
    LimitReached,
    NoticeKind,
    NotSatisfiable,
    UsageError,
    WaitTimeout,
    aio,
    api,
    notebook,
    sync,
)
from gpusched.client.aio import acquire
from support.simulation import set_gpu
from support.waiting import wait_until


@pytest.fixture
async def one_gpu(here_with_one):
    async with aio.Client() as client:
        yield client


@pytest.fixture
async def aclient(here):
    async with aio.Client() as client:
        yield client


async def until(condition, timeout=10.0):
    async with asyncio.timeout(timeout):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


def test_the_twins_have_the_same_shape():
    assert inspect.signature(aio.acquire).parameters == inspect.signature(sync.acquire).parameters
    for ours, theirs in ((api.Client, aio.Client), (sync.Ticket, aio.Ticket), (sync.Lease, aio.Lease)):
        public = {name for name in dir(ours) if not name.startswith("_")}
        assert public == {name for name in dir(theirs) if not name.startswith("_")}
        for name in public:
            member = getattr(ours, name)
            if inspect.isfunction(member):
                twin = getattr(theirs, name)
                assert inspect.signature(member).parameters == inspect.signature(twin).parameters, name
                assert inspect.getdoc(member) or not inspect.getdoc(twin), name


async def test_grant_and_release(aclient):
    before = dict(os.environ)
    async with acquire(2) as lease:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
        job = await aclient.job(lease.job_id)
        assert (job.state, job.gpus) == (JobState.RUNNING, lease.gpus)
        lease.check()
    assert dict(os.environ) == before
    assert (await aclient.job(lease.job_id)).state is JobState.COMPLETED


async def test_a_line_that_fails_at_the_grant_leaves_no_lease(aclient, monkeypatch):
    class Line(notebook.StatusLine):
        def close(self):
            raise ZeroDivisionError

    monkeypatch.setattr(aio, "default_status_line", Line)
    ticket = acquire()
    with pytest.raises(ZeroDivisionError):
        await ticket
    assert ticket.lease.released
    await asyncio.to_thread(wait_until, lambda: "GPUSCHED_JOB_ID" not in os.environ)

    async def ended():
        return (await aclient.job(ticket.job_id)).state.ended

    await until(ended)


async def test_an_answer_at_the_very_moment_of_the_timeout_counts():
    class Late(Future):
        """Done, while the loop is busy until the time is up."""

        def add_done_callback(self, callback):
            pass  # the loop does not hear of it

        def cancel(self):
            self.set_result({"kind": "released"})
            return False

    assert await aio._result(Late(), None, 0.01) == {"kind": "released"}
    with pytest.raises(TimeoutError):
        await aio._result(Future(), None, 0.01)


async def test_awaiting_and_closing(aclient):
    ticket = acquire()
    lease = await ticket
    assert lease is ticket.lease
    await lease.release()
    await ticket.close()
    assert (await aclient.job(lease.job_id)).state is JobState.COMPLETED


async def test_updates(one_gpu):
    first = await acquire()
    ticket, seen = acquire(nested="new"), []
    async for update in ticket:
        seen.append(update.position)
        await first.release()
    assert seen[0] == 1
    assert ticket.granted
    await ticket.close()


async def test_on_update_may_be_a_coroutine(one_gpu):
    first = await acquire()

    async def on_update(update):
        await first.release()

    async with acquire(nested="new", on_update=on_update) as lease:
        assert lease.gpus == first.gpus


async def test_the_loop_goes_on_while_waiting(one_gpu):
    async with acquire():
        waiter = asyncio.create_task(acquire(nested="new").start())
        await until(lambda: queued(one_gpu, 1))
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await until(lambda: queued(one_gpu, 0))


async def queued(client, number):
    return (await client.status()).jobs_queued == number


async def test_a_timeout_of_ones_own(one_gpu):
    async with acquire():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), acquire(nested="new"):
                pass
        await until(lambda: queued(one_gpu, 0))


async def test_a_cancelled_block_gives_back(aclient):
    held = asyncio.Event()
    jobs = []

    async def work():
        async with acquire() as lease:
            jobs.append(lease.job_id)
            held.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    job = await aclient.job(jobs[0])
    assert (job.state, "CancelledError" in job.outcome.message) == (JobState.FAILED, True)


async def test_tasks_have_leases_of_their_own(aclient):
    together = asyncio.Barrier(3)

    async def work():
        async with acquire(environ=False) as lease:
            await together.wait()
            child = await asyncio.create_subprocess_exec(
                "sh", "-c", "echo $CUDA_VISIBLE_DEVICES", env=os.environ | lease.env, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await child.communicate()
            await together.wait()
            return out.decode().strip(), str(lease.gpus[0].index)

    results = await asyncio.gather(*(work() for _ in range(3)))
    assert {seen for seen, _ in results} == {"0", "1", "2"}
    assert all(seen == own for seen, own in results)


async def test_a_block_in_a_block_shares(aclient):
    async with acquire(2) as outer, acquire(1) as inner:
        assert inner.nested
        assert inner.gpus == outer.gpus[:1]
        with pytest.raises(NotSatisfiable):
            await acquire(3)
        # A task begun in here is in here.
        async with asyncio.TaskGroup() as group:
            child = group.create_task(acquire(1).start())
        assert child.result().nested
        with sync.acquire(1) as within:
            assert within.job_id == outer.job_id


async def test_a_lease_that_its_task_left_open_encloses_what_follows(aclient):
    # As `lease = await acquire(2)` in a cell of a notebook, and another cell after it.
    outer = await asyncio.create_task(acquire(2).start())
    inner = await asyncio.create_task(acquire(1).start())
    assert inner.job_id == outer.job_id
    await outer.release()
    assert inner.released
    assert "GPUSCHED_JOB_ID" not in os.environ


async def test_leases_without_variables_are_side_by_side(aclient):
    one = await acquire(environ=False)
    two = await acquire(environ=False)
    assert one.gpus != two.gpus
    await one.release()
    await two.release()


async def test_errors_are_the_same(one_gpu):
    with pytest.raises(UsageError):
        acquire(0)
    with pytest.raises(NotSatisfiable):
        await acquire(9)
    async with acquire():
        with pytest.raises(LimitReached):
            await acquire(nested="new", immediate=True)
        with pytest.raises(WaitTimeout):
            await acquire(nested="new", max_wait="0.2s")


@pytest.mark.slow
async def test_callbacks_are_called_in_the_loop(one_gpu):
    noticed, lost = asyncio.Event(), asyncio.Event()
    threads = []

    def on_notice(notice):
        threads.append(threading.current_thread())
        assert notice.kind is NoticeKind.CANCEL
        noticed.set()

    def on_lost(error):
        threads.append(threading.current_thread())
        lost.set()

    with pytest.raises(LeaseLost, match="for the test"):
        async with acquire(on_notice=on_notice, on_lost=on_lost) as lease:
            await one_gpu.cancel(lease.job_id, "for the test")
            async with asyncio.timeout(10):
                await noticed.wait()
                await lost.wait()
            with pytest.raises(LeaseLost):
                lease.check()
    assert threads == [threading.main_thread()] * 2


async def test_callbacks_may_be_coroutine_functions(aclient, caplog):
    noticed, lost = asyncio.Event(), asyncio.Event()

    async def on_notice(notice):
        await asyncio.sleep(0)
        noticed.set()

    async def on_lost(error):
        await asyncio.sleep(0)
        lost.set()
        raise ZeroDivisionError

    with pytest.raises(LeaseLost):
        async with acquire(on_notice=on_notice, on_lost=on_lost) as lease, asyncio.timeout(10):
            await asyncio.to_thread(set_gpu, aclient.address, lease.gpus[0].index, fault="Xid 79")
            await noticed.wait()
            os.kill(lease._session.helper_pid, 9)
            await lost.wait()
            await asyncio.to_thread(wait_until, lambda: "ZeroDivisionError" in caplog.text)


async def test_a_callback_may_await_the_end_of_the_lease(aclient):
    ended = asyncio.Event()

    async def on_notice(notice):
        await lease.release()
        ended.set()

    async with acquire(on_notice=on_notice) as lease, asyncio.timeout(10):
        await asyncio.to_thread(set_gpu, aclient.address, lease.gpus[0].index, fault="Xid 79")
        await ended.wait()
        assert (await aclient.job(lease.job_id)).state is JobState.COMPLETED


async def test_a_gpu_that_is_not_empty_keeps_its_lease(aclient):
    with pytest.warns(GpuschedWarning, match="the lease is kept"):
        async with acquire() as first:
            await asyncio.to_thread(set_gpu, aclient.address, 0, processes=[(os.getpid(), 2**30)])
    async with acquire() as second:
        assert second.job_id == first.job_id
        await asyncio.to_thread(set_gpu, aclient.address, 0, processes=[])
    assert (await aclient.job(first.job_id)).state is JobState.COMPLETED


async def test_a_loop_that_has_ended_is_not_called(here):
    # A kept lease outlives the loop that acquired it.
    leases = []

    def run():
        async def work():
            leases.append(await acquire(on_notice=lambda notice: pytest.fail("called")))

        asyncio.run(work())

    await asyncio.to_thread(run)
    await asyncio.to_thread(set_gpu, here.address, 0, fault="Xid 79")
    await asyncio.to_thread(wait_until, lambda: leases[0].notices)
    await leases[0].release()
