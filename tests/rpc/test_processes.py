"""The promises of the stream, with processes that are killed, stopped and woken."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from gpusched.v1 import job_pb2
from rpc.calls import PATIENCE, Client
from rpc.servers import now, running
from support.server import Server, clean_environment

WINDOW = 1.0


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("4", "--confirm-within", f"{WINDOW}s") as server:
        yield server


class Worker:
    """A client process, `worker.py`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.job_id = ""

    async def says(self, word: str) -> list[str]:
        """Words of the next line that begins with one."""
        assert self.process.stdout is not None
        async with asyncio.timeout(2 * PATIENCE):
            while True:
                line = await self.process.stdout.readline()
                assert line, f"it ended before it said {word!r}"
                words = line.decode().split()
                if words[0] == "accepted":
                    self.job_id = words[1]
                if word in words:
                    return words

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
async def start(box: Server, connect: Callable[..., Client]) -> AsyncIterator[Callable[..., object]]:
    """Starts client processes; killed at the end."""
    workers: list[Worker] = []

    async def make(*arguments: int) -> Worker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(Path(__file__).with_name("worker.py")), box.address, *map(str, arguments)),
            stdout=asyncio.subprocess.PIPE,
            env=clean_environment(),
            # While one is stopped, the kernel may hang up on its whole group, when that is orphaned: not on the tests'.
            process_group=0,
        )
        workers.append(Worker(process))
        return workers[-1]

    yield make
    for worker in workers:
        if worker.process.returncode is None:
            worker.process.kill()
        await worker.process.wait()


async def test_kill_9_of_a_holder_frees_its_gpus_for_the_next_at_once(client: Client, start: Callable) -> None:
    for _ in range(3):
        worker = await start(4)
        await worker.says("confirmed")
        waiter = await client.waiter(4)
        worker.kill()
        began = now()
        await waiter.granted()
        assert now() - began < 1.0
        assert (await client.job(worker.job_id)).state == job_pb2.JOB_STATE_LOST
        waiter.cancel()


async def test_kill_9_of_a_waiter_leaves_no_trace_in_the_queue(client: Client, start: Callable) -> None:
    holder = await client.holder(4)
    worker = await start(4)
    await worker.says("queued")
    behind = await client.waiter(4)
    assert (await client.job(behind.job_id)).position == 2
    worker.kill()
    assert (await behind.queued_as(lambda queued: queued.position == 1)).total == 1
    assert (await client.job(worker.job_id)).state == job_pb2.JOB_STATE_CANCELLED
    holder.cancel()
    await behind.granted()


async def test_a_killed_process_with_many_streams_frees_all_of_them(client: Client, start: Callable) -> None:
    worker = await start(1, 300)
    for _ in range(300):
        await worker.says("accepted")
    last = await client.waiter(4)
    assert (await client.job(last.job_id)).position >= 297
    worker.kill()
    began = now()
    await last.granted()
    assert now() - began < 3.0
    assert (await client.status()).jobs_queued == 0


@pytest.mark.slow
async def test_a_stopped_holder_keeps_its_lease(client: Client, start: Callable) -> None:
    """Ctrl-Z is no end: nothing is asked of a confirmed local holder but that its socket stays open."""
    worker = await start(4)
    await worker.says("confirmed")
    waiter = await client.waiter(1)
    worker.stop()
    await waiter.nothing_for(WINDOW + 1.0)
    job = await client.job(worker.job_id)
    assert (job.state, len(job.gpus)) == (job_pb2.JOB_STATE_RUNNING, 4)
    worker.wake()
    await waiter.nothing_for(0.3)
    # Stopped or not, its death is its end.
    worker.stop()
    worker.kill()
    await waiter.granted()


async def test_a_frozen_waiter_at_the_head_does_not_sit_on_the_gpus(client: Client, start: Callable) -> None:
    holder = await client.holder(4)
    frozen = await start(4)
    await frozen.says("queued")
    behind = await client.waiter(4)
    frozen.stop()
    holder.cancel()
    began = now()
    await behind.granted()
    assert WINDOW - 0.2 < now() - began < WINDOW + 3.0
    job = await client.job(frozen.job_id)
    assert (job.state, job.position) == (job_pb2.JOB_STATE_QUEUED, 1)
    assert job.reason.code == job_pb2.REASON_CODE_UNCONFIRMED
    # Awake again, it learns that the grant is gone, and waits at its old place for the next one.
    frozen.wake()
    await frozen.says("granted")
    assert (await frozen.says("refused")) == ["refused", "ABORTED"]
    late = await client.waiter(4)
    assert (await client.job(late.job_id)).position == 2
    behind.cancel()
    await frozen.says("granted")
    await frozen.says("confirmed")
    assert (await client.job(frozen.job_id)).state == job_pb2.JOB_STATE_RUNNING


@pytest.mark.slow
async def test_two_frozen_waiters_cost_one_window_each(client: Client, start: Callable) -> None:
    holder = await client.holder(4)
    sleepers = [await start(4), await start(2)]
    for sleeper in sleepers:
        await sleeper.says("queued")
        sleeper.stop()
    behind = await client.waiter(3)
    holder.cancel()
    began = now()
    await behind.granted()
    assert now() - began < 2 * WINDOW + 3.0
    assert (await client.status()).jobs_queued == 2
