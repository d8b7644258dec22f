"""`acquire` for ordinary code: `with acquire(2) as lease: ...`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

from gpusched.client.errors import GpuschedWarning, LeaseLost
from gpusched.client.lease import BaseLease
from gpusched.client.lease_views import Notice, QueueUpdate
from gpusched.client.notebook import StatusLine, default_status_line
from gpusched.client.options import checked_options
from gpusched.client.session import FINISH_SECONDS, Message
from gpusched.client.ticket import BaseTicket

R = TypeVar("R")

_TICK_SECONDS = 1.0


class Lease(BaseLease):
    """GPUs that are ours until `release()`, or the end of the block."""

    _ticket: Ticket

    def release(self) -> None:
        """Give the GPUs back before the block ends; harmless when done twice, nothing at all in a forked child."""
        self._ticket.close()


class Ticket(BaseTicket[Lease]):
    """A request for GPUs. It is made when the block is entered, `start()` called or the iteration begun.

    `with ticket as lease` waits for the grant; `for update in ticket` tells each change of place and ends at the
    grant, after which `ticket.lease` is there and `ticket.close()` gives it back.
    """

    _lease_class = Lease

    def start(self) -> Lease:
        """Wait for the grant; afterwards `close()` is to be called.

        Raises:
            GpuschedError: one of its subclasses says why there is no grant.
        """
        line: StatusLine | None = None
        on_update = self._on_update
        if on_update is None and not self.granted:
            line = default_status_line()
            on_update = line.update
        try:
            try:
                while (update := self._wait(self._advance(), line.tick if line else None)) is not None:
                    assert on_update is not None
                    on_update(update)
            finally:
                if line is not None:
                    line.close()
        except BaseException:
            self._give_up()  # also after the grant: nobody will enter the block
            raise
        return self.lease

    def close(self) -> None:
        """End it: leave the queue, or give the GPUs back. Harmless when done twice."""
        self._finish(None, in_block=False)

    def __enter__(self) -> Lease:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finish(error, in_block=True)

    def __iter__(self) -> Iterator[QueueUpdate]:
        while True:
            try:
                update = self._wait(self._advance())
            except BaseException:
                self._give_up()
                raise
            if update is None:
                return
            if self._on_update is not None:
                self._on_update(update)
            yield update

    def _finish(self, error: BaseException | None, *, in_block: bool) -> None:
        try:
            self._wait(self._end(error, in_block=in_block), limit=FINISH_SECONDS)
        except (LeaseLost, GpuschedWarning):
            raise  # said at the end of all, the latter where warnings are errors
        except TimeoutError:
            self._give_up()  # a helper that hangs; without it the lease ends too
        except BaseException:
            self._give_up()
            raise

    def _wait(
        self,
        steps: Generator[Future[Message], Message, R],
        tick: Callable[[], None] | None = None,
        limit: float | None = None,
    ) -> R:
        """Run the steps, waiting in this thread; `limit` bounds each wait, in seconds."""
        try:
            future = next(steps)
            while True:
                future = steps.send(_result(future, tick, limit))
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
    """Ask for GPUs: all of them at once, when it is our turn, for exactly as long as the block runs.

    Args:
        gpus: how many; by default one, or all of `gpu_ids`. 0 where only `cpus` or `mem` is asked for.
        gpu_memory: least total memory of each, such as "40G" or a number of bytes.
        gpu_model: text that each one's model name contains, such as "H100".
        nodes: names of the nodes that will do; a process on the scheduler's machine only gets GPUs of that one.
        gpu_ids: the GPUs that will do, by index, "node:index" or uuid: `3`, "0,3", or a list.
        exclude: GPUs (and nodes, by name) that will not do.
        labels: what the node, or the GPU itself, must be labelled with, such as `{"mig": "3g.20gb"}`.
        gpus_per_node: exactly so many on each node that is used.
        placement: "pack" (the fullest node that holds it, the default) or "spread" (evenly over the emptiest).
        shared: have only `gpu_memory` of each GPU, beside other jobs (of the same user) that do the same. It is counted
            and watched, not enforced.
        cpus: cores on each node that is used, counted so that a machine is not oversold; not enforced.
        mem: memory of the host on each node that is used, such as "32G"; the same.
        priority: tier, -100 to 100, higher first; above 0 is for the scheduler's own user.
        name: shown in lists; by default that of the script or notebook.
        time_limit: such as "2h", a timedelta or seconds; then `lease.check()` raises, and 30 s later the scheduler
            takes the GPUs back.
        max_wait: give up waiting after this long, with WaitTimeout.
        immediate: rather than wait at all, fail with LimitReached.
        estimate: how long the work is expected to take, as `time_limit`; some policies order by it, nothing ends at it.
        preemptible: it may be ended for a job of a higher tier, where the policy has preemption.
        signal: such as "USR1@60s": what this process is sent, and how long before its time limit, or before the lease
            is taken for another job (at once if there is less time than that). Only if it has a handler for it by then
            (`signal.signal`): one that would end the process is not sent, and a notice says so.
        url: the scheduler's address; default `GPUSCHED_URL`, `GPUSCHED_PORT`, or 127.0.0.1:9123, where one is started
            if none runs.
        on_update: called at each change of place; by default a line shows it, live in a notebook or terminal.
        on_notice: called for each notice to the holder; by default it is logged.
        on_lost: called if the lease is taken away; by default it is logged. Both are called in a thread of the lease's
            own, one after another; they may `release()` it, but `sys.exit()` there ends nothing.
        environ: set CUDA_VISIBLE_DEVICES and the like in `os.environ`, and put them back at the end. Without it, for
            several leases at once, give `env=os.environ | lease.env` to subprocesses.
        nested: "auto" uses the GPUs of a lease that we run in already; "new" asks for others (`GPUSCHED_NESTED`).

    Returns:
        A ticket; `with` it, iterate it, or `start()` it. Nothing is asked for before that.

    Raises:
        UsageError: at once, if an argument cannot be meant.
        InvalidRequest, NotSatisfiable, LimitReached, WaitTimeout, JobCancelled, ServerUnavailable, ServerMismatch:
            from the ticket, if there is no grant.
        LeaseLost: at the end of the block, if the lease was taken away in it.
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


def _result(future: Future[Message], tick: Callable[[], None] | None, limit: float | None) -> Message:
    while True:
        try:
            return future.result(_TICK_SECONDS if tick else limit)
        except TimeoutError:
            if future.done():
                continue  # it came this moment
            if tick is None:
                raise
            tick()
