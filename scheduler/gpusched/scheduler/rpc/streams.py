"""Streams that stay open: when the server stops, each ends with a word of its own instead of a broken connection."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from gpusched.scheduler.core.errors import Unavailable
from gpusched.scheduler.rpc.errors import abort, guarded, is_gone

Servicer = TypeVar("Servicer", bound=Callable[..., Awaitable[Any]])

#: Seconds after which a client is to try again.
RETRY_AFTER = 1.0


class Streams:
    """The open streams of a server.

    Attributes:
        stopping: the server goes away; ends of streams mean nothing any more.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def stop(self) -> None:
        """End all streams, and those that come from now on."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()

    def enter(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)

    def leave(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)


def stream(method: Servicer) -> Servicer:
    """A `guarded` servicer method that stays open until its client goes, or the server."""
    inner = guarded(method)

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        streams: Streams = self._services.streams
        task = asyncio.current_task()
        assert task is not None
        streams.enter(task)
        try:
            if not streams.stopping:
                return await inner(self, request, context)
        except asyncio.CancelledError:
            if not streams.stopping:
                raise  # the client went
        finally:
            streams.leave(task)
        try:
            await abort(
                context, Unavailable("the scheduler is stopping", reason="SERVER_STOPPING", retry_after=RETRY_AFTER)
            )
        except Exception as error:
            if not is_gone(error):
                raise
            # It went in this moment, or has not taken what was written before: the connection's end will tell it.
            raise asyncio.CancelledError from None

    return call  # type: ignore[return-value]
