"""Where streams wait: a mailbox for each, and a publisher of queue positions that keeps its cost bounded.

The engine never waits for a client's socket. What must be told (grant, notice, end) waits in order in the
ticket's mailbox; a place in the queue is only marked as out of date and worked out when it is written, so a
slow reader gets the newest state, not a backlog.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.queue import Place


class Superseded:
    """Another stream took the ticket over."""


Message: TypeAlias = do.Granted | do.Withdrawn | do.Notify | do.Ended | Superseded


class Ticket:
    """One stream's end of the desk.

    Attributes:
        stale: the place in the queue may differ from what was last written.
    """

    __slots__ = ("_box", "_waiter", "attachment", "job", "stale")

    def __init__(self, job: Job, attachment: int) -> None:
        self.job = job
        self.attachment = attachment
        self.stale = True
        self._box: deque[Message] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, message: Message) -> None:
        if self._box is None:
            self._box = deque()
        self._box.append(message)
        self._wake()

    def poke(self) -> None:
        """The place in the queue may be another."""
        self.stale = True
        self._wake()

    def take(self) -> Message | None:
        """The next message, None if there is none."""
        return self._box.popleft() if self._box else None

    async def wait(self) -> None:
        """Until there is a message or the place is stale."""
        if self._box or self.stale:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Desk:
    """All open tickets. A listener of the driver."""

    #: The effects that it tells of.
    KINDS = (do.Granted, do.Withdrawn, do.Notify, do.Ended, do.QueueChanged)
    #: Tickets told at once, and then per tick, when the queue has changed: nearest to the front first.
    CHUNK = 64
    #: Seconds between two chunks. Together: at most ~1,300 updates a second however long the queue.
    TICK = 0.1
    #: Seconds from a change to the first chunk, so that a grant of the same moment goes out before it.
    LEAD = 0.005

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tickets: dict[JobId, Ticket] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tickets)

    def open(self, job: Job, attachment: int) -> Ticket:
        """Make a ticket; the older stream of the same job, if any, is told that it is superseded."""
        older = self._tickets.get(job.id)
        if older is not None:
            older.put(Superseded())
        ticket = self._tickets[job.id] = Ticket(job, attachment)
        return ticket

    def close(self, ticket: Ticket) -> None:
        """Forget a ticket, unless a newer stream has the job's place at the desk."""
        if self._tickets.get(ticket.job.id) is ticket:
            del self._tickets[ticket.job.id]

    def on_effect(self, effect: do.Effect) -> None:
        match effect:
            case do.Granted() | do.Withdrawn() | do.Notify() | do.Ended():
                ticket = self._tickets.get(effect.job)
                if ticket is not None:
                    ticket.put(effect)
            case do.QueueChanged():
                self._changed.set()

    def notify_all(self, kind: do.NoticeKind, message: str) -> None:
        """A notice to every open stream."""
        for job_id, ticket in self._tickets.items():
            ticket.put(do.Notify(job_id, kind, message))

    async def publish(self) -> None:
        """Tell waiters their places for ever, nearest to the front first, at a bounded rate."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(self.LEAD)
            self._changed.clear()
            cursor: Place | None = None
            again = False
            while True:
                cursor = self._poke_chunk(cursor)
                await asyncio.sleep(self.TICK)
                if self._changed.is_set():
                    # The front is told of each change; the rest of this round goes on, and one more follows.
                    self._changed.clear()
                    again = cursor is not None
                    front = self._poke_chunk(None)
                    if cursor is None:
                        cursor = front
                if cursor is None:
                    if not again:
                        break
                    again = False

    def _poke_chunk(self, cursor: Place | None) -> Place | None:
        """Poke the next tickets after a key. Returns where to go on, None at the end."""
        job = self._engine.queue.after(cursor)
        for _ in range(self.CHUNK):
            if job is None:
                return None
            ticket = self._tickets.get(job.id)
            if ticket is not None:
                ticket.poke()
            cursor = (job.lane, job.key)
            job = self._engine.queue.after(cursor)
        return cursor
