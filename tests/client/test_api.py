"""`Client` against a real server."""

import os
import threading

import pytest

from gpusched.client import (
    Client,
    GpuschedError,
    GpuState,
    InvalidRequest,
    JobEnded,
    JobNotFound,
    JobState,
    NotSatisfiable,
    PermissionDenied,
    ReasonCode,
    UsageError,
    acquire,
    aio,
    calls,
    connect,
)
from gpusched.client.views import JobKind
from support.simulation import set_gpu
from support.waiting import wait_until


@pytest.fixture
def waiting(client):
    """A job that waits for the eight GPUs of another."""
    with acquire(8, name="holder", time_limit="1h") as lease:
        ticket = acquire(2, name="waiter", nested="new")
        next(iter(ticket))
        yield lease.job_id, ticket.job_id
        ticket.close()


def test_status(client, here):
    status = client.status()
    assert (status.service, status.address, status.inventory_mode) == ("gpusched", here.address, "simulated")
    assert (status.gpus_total, status.gpus_free, status.jobs_running, status.jobs_queued) == (8, 8, 0, 0)
    assert status.pid == here.process.pid
    assert status.uid == os.getuid()
    assert status.started_at.tzinfo is not None
    assert status.uptime.total_seconds() >= 0
    with connect(here.address) as other:
        assert other.status().state_id == status.state_id


def test_jobs(client, waiting):
    holder, waiter = client.jobs()
    assert [holder.id, waiter.id] == list(waiting)
    assert (holder.state, holder.kind, len(holder.gpus)) == (JobState.RUNNING, JobKind.INTERACTIVE, 8)
    assert holder.time_limit.total_seconds() == 3600
    assert holder.command
    assert (waiter.state, waiter.position, waiter.gpus_requested, waiter.gpus) == (JobState.QUEUED, 1, 2, ())
    assert waiter.reason.code is ReasonCode.RESOURCES
    assert [job.id for job in client.jobs(states=[JobState.QUEUED])] == [waiter.id]
    assert [job.id for job in client.jobs(states="running")] == [holder.id]
    assert [job.id for job in client.jobs(name="wait")] == [waiter.id]
    assert client.jobs(user="nobody-of-this-name") == []
    assert client.job(waiter.id).history[0].state is JobState.QUEUED


def test_pages(client, waiting, monkeypatch):
    monkeypatch.setattr(calls, "PAGE_SIZE", 1)
    assert [job.id for job in client.jobs()] == list(waiting)
    several = [job.id for job in client.jobs(include_ended=True)]
    assert several[:2] == list(waiting)
    assert len(set(several)) == len(several)


def test_explain(client, waiting):
    explanation = client.explain(waiting[1])
    assert explanation.job.id == waiting[1]
    assert any("holder" in line or waiting[0] in line for line in explanation.lines)


def test_cancel_and_priority(client, waiting):
    assert client.set_priority(waiting[1], 5).priority == 5
    with pytest.raises(InvalidRequest):
        client.set_priority(waiting[1], 1000)
    assert client.cancel(waiting[1], "no longer wanted").state is JobState.CANCELLED
    assert "no longer wanted" in client.job(waiting[1]).outcome.message
    with pytest.raises(JobEnded):
        client.cancel(waiting[1])


def test_a_priority_that_is_none(client):
    for value in ("5", 1.5, None, True, 2**40):
        with pytest.raises(UsageError, match=r"^priority: .*whole number"):
            client.set_priority("1", value)


def test_a_timeout_that_is_none():
    for value in ("x", True, []):
        with pytest.raises(UsageError, match=r"^timeout: .*seconds"), Client("127.0.0.1:1", timeout=value) as client:
            client.status()


def test_a_client_that_was_closed_says_so(server):
    client = Client(server.address)
    client.status()
    client.close()
    client.close()
    for use in (client.status, client.jobs, lambda: next(client.watch_gpus()), lambda: client.cancel("1")):
        with pytest.raises(GpuschedError, match="this client was closed") as caught:
            use()
        assert caught.value.reason == "CLOSED"


@pytest.mark.parametrize("job_id", ["999999", "-1", "", "x" * 1000])
def test_no_such_job(client, job_id):
    for call in (client.job, client.cancel, client.explain):
        with pytest.raises((JobNotFound, InvalidRequest)) as caught:
            call(job_id)
        assert len(str(caught.value)) < 300


def test_watching(client):
    changes = client.watch_jobs(include_ended=True)
    first = next(changes)
    assert first.snapshot
    assert all(job.state.ended for job in first.jobs)
    with acquire(name="watched") as lease:
        states = []
        while JobState.RUNNING not in states:
            change = next(changes)
            assert not change.snapshot
            states += [job.state for job in change.jobs if job.id == lease.job_id]
    for change in client.watch_jobs(lease.job_id):
        last = change.jobs[0]
    assert last.state is JobState.COMPLETED
    changes.close()


def test_a_closed_watch_ends_its_call(here):
    with Client() as client:
        changes = client.watch_gpus()
        assert len(next(changes)) == 8
        changes.close()
        with pytest.raises(StopIteration):
            next(changes)


def test_gpus_and_nodes(client):
    with acquire(1) as lease:
        gpus = client.gpus()
        assert [gpu.index for gpu in gpus] == list(range(8))
        held = gpus[lease.gpus[0].index]
        assert (held.state, held.job_id, held.simulated) == (GpuState.ALLOCATED, lease.job_id, True)
        assert gpus[7].state is GpuState.FREE
        set_gpu(client.address, 7, processes=[(os.getppid(), 2**30)], utilization=40)
        foreign = client.gpus()[7]
        assert (foreign.state, foreign.utilization_percent) == (GpuState.FOREIGN, 40)
        assert foreign.processes[0].memory_bytes == 2**30
        assert foreign.message
        (node,) = client.nodes()
        assert (node.gpus_total, node.gpus_allocated, node.local) == (8, 1, True)
        assert client.gpus(node.name) == client.gpus()
    watch = client.watch_gpus()
    set_gpu(client.address, 7, processes=[])
    while next(watch)[7].state is not GpuState.FREE:
        pass
    watch.close()


def test_drain_and_undrain(client):
    (drained,) = client.drain(3, reason="fan")
    assert (drained.index, drained.state) == (3, GpuState.DRAINED)
    assert "fan" in drained.message
    with pytest.raises(UsageError):
        client.drain()
    with pytest.raises(UsageError):
        client.drain(3, node="x")
    assert [gpu.state for gpu in client.undrain(drained.uuid)] == [GpuState.FREE]
    (node,) = client.nodes()
    assert {gpu.state for gpu in client.drain(node=node.name)} == {GpuState.DRAINED}
    assert client.nodes()[0].drained
    client.undrain(node=node.name)


def test_pause_and_resume(client):
    client.pause("maintenance")
    assert (client.status().paused, client.status().pause_reason) == (True, "maintenance")
    ticket = acquire()
    updates = iter(ticket)
    update = next(updates)
    assert update.reason.code is ReasonCode.PAUSED
    assert "maintenance" in update.reason.message
    client.resume()
    with ticket:
        assert not client.status().paused


def test_without_the_token_nothing_is_steered(client, monkeypatch):
    def refuse(*args):
        raise PermissionDenied("no token for you")

    monkeypatch.setattr("gpusched.client.api.fetch_token", refuse)
    with pytest.raises(PermissionDenied) as caught:
        client.drain(3)
    assert caught.value.reason == "ADMIN_REQUIRED"
    assert client.gpus()[3].state is GpuState.FREE


def test_unknown_things(client):
    with pytest.raises(UsageError, match="states: 'asleep' will not do: give any of queued, running"):
        client.jobs(states="asleep")
    with pytest.raises((InvalidRequest, JobNotFound, NotSatisfiable)):
        client.drain(99)


async def test_the_async_client(here, tmp_path):
    async with await aio.connect() as client:
        assert (await client.status()).gpus_total == 8
        assert len(await client.gpus()) == 8
        assert len(await client.nodes()) == 1
        async with aio.acquire(name="n") as lease:
            (job,) = await client.jobs()
            assert (job.id, (await client.job(job.id)).name) == (lease.job_id, "n")
            assert (await client.explain(job.id)).job.id == job.id
            async for change in client.watch_jobs(job.id):
                assert change.jobs[0].state is JobState.RUNNING
                break
            assert (await client.set_priority(job.id, 3)).priority == 3
        assert (await client.drain(0, reason="r"))[0].state is GpuState.DRAINED
        await client.undrain(0)
        await client.pause("p")
        assert (await client.status()).paused
        await client.resume()
        with pytest.raises(JobNotFound):
            await client.cancel("12345")
        async for gpus in client.watch_gpus():
            assert len(gpus) == 8
            break


async def test_what_is_no_use_of_the_async_client(here):
    for value in ("x", None, 0, float("inf")):
        with pytest.raises(UsageError, match=r"^timeout: "):
            aio.Client(here.address, timeout=value)
    async with aio.Client(here.address) as client:
        with pytest.raises(UsageError, match=r"^priority: "):
            await client.set_priority("1", "high")
    with pytest.raises(GpuschedError, match="this client was closed"):
        await client.status()
    with pytest.raises(GpuschedError, match="this client was closed"):
        async for _ in client.watch_gpus():
            pass


def test_one_client_from_several_threads(client):
    failures = []

    def work():
        try:
            for _ in range(20):
                client.status()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    wait_until(lambda: client.status().jobs_running == 0)
