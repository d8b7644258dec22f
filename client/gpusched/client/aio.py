"""The same for asyncio: `async with acquire(2) as lease: ...`, and `async with Client() as client: ...`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from gpusched.client.errors import GpuschedWarning, LeaseLost
from gpusched.client.lease import BaseLease
from gpusched.client.lease_views import Notice, QueueUpdate
from gpusched.client.notebook import StatusLine, default_status_line
from gpusched.client.options import checked_options
from gpusched.client.session import FINISH_SECONDS, Message
from gpusched.client.ticket import BaseTicket

if TYPE_CHECKING:
    from gpusched.client.aio_batch import JobFailed as JobFailed
    from gpusched.client.aio_batch import SubmittedJob as SubmittedJob
    from gpusched.client.aio_batch import submit as submit
    from gpusched.client.aio_client import Client as Client
    from gpusched.client.aio_client import connect as connect

C = TypeVar("C")
R = TypeVar("R")

log = logging.getLogger("gpusched.client")

_tasks: set[asyncio.Future[Any]] = set()
"""What callbacks of leases are at."""

_TICK_SECONDS = 1.0
_FROM_CLIENT = ("Client", "connect")
_FROM_BATCH = ("JobFailed", "SubmittedJob", "submit")


class Lease(BaseLease):
    """GPUs that are ours until `await release()`, or the end of the block."""

    _ticket: Ticket

    async def release(self) -> None:
        """Give the GPUs back before the block ends; harmless when done twice, nothing at all in a forked child."""
        await self._ticket.close()


class Ticket(BaseTicket[Lease]):
    """A request for GPUs. It is made when the block is entered, `start()` awaited or the iteration begun.

    `async with ticket as lease` waits for the grant; `async for update in ticket` tells each change of place and ends
    at the grant, after which `ticket.lease` is there and `await ticket.close()` gives it back.
    """

    _lease_class = Lease
    _takes_coroutines = True

    async def start(self) -> Lease:
        """Wait for the grant; afterwards `close()` is to be called. Raises GpuschedError if there is no grant."""
        line: StatusLine | None = None
        if self._on_update is None and not self.granted:
            line = default_status_line()
        try:
            try:
                while (update := await self._wait(self._advance(), line.tick if line else None)) is not None:
                    if line is not None:
                        line.update(update)
                    else:
                        await self._updated(update)
            finally:
                if line is not None:
                    line.close()
        except BaseException:
            self._give_up()  # also after the grant: nobody will enter the block
            raise
        return self.lease

    async def close(self) -> None:
        """End it: leave the queue, or give the GPUs back. Harmless when done twice."""
        await self._finish(None, in_block=False)

    def __await__(self) -> Generator[object, None, Lease]:
        return self.start().__await__()

    async def __aenter__(self) -> Lease:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._finish(error, in_block=True)

    async def __aiter__(self) -> AsyncIterator[QueueUpdate]:
        while True:
            try:
                update = await self._wait(self._advance())
            except BaseException:
                self._give_up()
                raise
            if update is None:
                return
            await self._updated(update)
            yield update

    def _callback(self, callback: Callable[[C], object] | None) -> Callable[[C], None] | None:
        return None if callback is None else functools.partial(_call, callback)

    async def _updated(self, update: QueueUpdate) -> None:
        if self._on_update is not None:
            result = self._on_update(update)
            if inspect.isawaitable(result):
                await result

    async def _finish(self, error: BaseException | None, *, in_block: bool) -> None:
        try:
            await self._wait(self._end(error, in_block=in_block), limit=FINISH_SECONDS)
        except (LeaseLost, GpuschedWarning):
            raise  # said at the end of all, the latter where warnings are errors
        except TimeoutError:
            self._give_up()  # a helper that hangs; without it the lease ends too
        except BaseException:
            self._give_up()
            raise

    async def _wait(
        self,
        steps: Generator[Future[Message], Message, R],
        tick: Callable[[], None] | None = None,
        limit: float | None = None,
    ) -> R:
        """Run the steps, waiting in the event loop; `limit` bounds each wait, in seconds."""
        self._dispatch = asyncio.get_running_loop().call_soon_threadsafe
        try:
            future = next(steps)
            while True:
                future = steps.send(await _result(future, tick, limit))
        except StopIteration as stop:
            result: R = stop.value
            return result
        finally:
            steps.close()


def acquire(
    gpus: int | None = None,
    *,
    gpu_memory: str | int | None = None,
    gpu_model: str | None = None,
    nodes: str | Iterable[str] | None = None,
    gpu_ids: str | int | Iterable[str | int] | None = None,
    exclude: str | int | Iterable[str | int] | None = None,
    labels: Mapping[str, str] | None = None,
    gpus_per_node: int | None = None,
    placement: str | None = None,
    shared: bool = False,
    cpus: int | None = None,
    mem: str | int | None = None,
    priority: int = 0,
    name: str | None = None,
    time_limit: float | str | timedelta | None = None,
    max_wait: float | str | timedelta | None = None,
    immediate: bool = False,
    estimate: float | str | timedelta | None = None,
    preemptible: bool = False,
    signal: str | None = None,
    url: str | None = None,
    on_update: Callable[[QueueUpdate], object] | None = None,
    on_notice: Callable[[Notice], object] | None = None,
    on_lost: Callable[[LeaseLost], object] | None = None,
    environ: bool = True,
    nested: str | None = None,
) -> Ticket:
    """Ask for GPUs, as `gpusched.client.acquire` does, with the same arguments and errors.

    Leases of several tasks at once are leases of their own. As `os.environ` is one for all of them, pass
    `environ=False` there, and `env=os.environ | lease.env` to the subprocesses. `on_notice` and `on_lost` are called in
    the event loop. All three callbacks may be coroutine functions: the wait goes on when `on_update` has ended; the
    other two become tasks, side by side, whose exceptions are logged.
    """
    options = checked_options(
        gpus,
        gpu_memory=gpu_memory,
        gpu_model=gpu_model,
        nodes=nodes,
        gpu_ids=gpu_ids,
        exclude=exclude,
        labels=labels,
        gpus_per_node=gpus_per_node,
        placement=placement,
        shared=shared,
        cpus=cpus,
        mem=mem,
        priority=priority,
        name=name,
        time_limit=time_limit,
        max_wait=max_wait,
        immediate=immediate,
        estimate=estimate,
        preemptible=preemptible,
        signal=signal,
        url=url,
        nested=nested,
    )
    return Ticket(options, on_update, on_notice, on_lost, environ)


def _call(callback: Callable[[C], object], argument: C) -> None:
    """Call it, in the event loop; what it gives to be awaited becomes a task there."""
    result = callback(argument)
    if inspect.isawaitable(result):
        task = asyncio.ensure_future(result)
        _tasks.add(task)  # the loop itself keeps no reference to it
        task.add_done_callback(_called)


def _called(task: asyncio.Future[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a callback of a lease failed", exc_info=error)


async def _result(future: Future[Message], tick: Callable[[], None] | None, limit: float | None) -> Message:
    waiting = asyncio.wrap_future(future)
    if tick is None:
        try:
            return await asyncio.wait_for(waiting, limit)
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # it came this moment, and the loop had not heard of it
            raise
    try:
        while not (await asyncio.wait({waiting}, timeout=_TICK_SECONDS))[0]:
            tick()
    except BaseException:
        waiting.cancel()
        raise
    return waiting.result()


def __getattr__(name: str) -> object:
    # `Client` brings grpc with it, which `acquire` leaves to the helper process.
    if name in _FROM_CLIENT:
        from gpusched.client import aio_client

        return getattr(aio_client, name)
    if name in _FROM_BATCH:
        from gpusched.client import aio_batch

        return getattr(aio_batch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
