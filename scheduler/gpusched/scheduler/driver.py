"""The single writer: every event goes through here, is saved, and only then has its effects performed.

A burst of events costs one pass and one save: both are put behind whatever else the event loop has at hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import get_args

from gpusched.scheduler import logs
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import DomainError, Unavailable
from gpusched.scheduler.ports import Store
from gpusched.scheduler.saver import RETRY_EVERY, Saver

log = logging.getLogger("gpusched.driver")

Listener = Callable[[do.Effect], None]

#: Seconds between two passes, with the saves that follow them, for each event of the one before: what happens meanwhile
#: is looked at, saved and told together. That costs much the same for one job as for ten, so that the number of jobs a
#: second hangs on this; who comes alone hardly waits. It is somewhat more than an event takes: were it less, the passes
#: of a flood would never grow.
GATHER = 0.000_45
#: The most of it; and while jobs wait that could not start, as a GPU that comes back idles until the next pass.
GATHER_MOST = 0.020
GATHER_WAITING = 0.002


class Driver:
    """Runs an engine on the running event loop.

    Args:
        engine: the state; nobody else may call its `handle`.
        now: the engine's clock, in seconds.
        store: where changes are saved before they are told; None keeps nothing.
    """

    def __init__(self, engine: Engine, now: Callable[[], float], store: Store | None = None) -> None:
        self.engine = engine
        self.now = now
        self._loop = asyncio.get_running_loop()
        self._saver = Saver(store, self._on_trouble)
        self._early: dict[type, list[Listener]] = {}
        self._listeners: dict[type, list[Listener]] = {}
        self._effects: list[do.Effect] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._flush_scheduled = False
        self._flushed_at = 0.0
        self._events = 0
        self._gather = 0.0
        self._saving = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopped = False

    # -- wiring ------------------------------------------------------------------------------------------

    def listen(self, listener: Listener, *kinds: type, early: bool = False) -> None:
        """Have a function called with effects, in order. It must not block, nor call `handle` itself.

        Args:
            listener: the function.
            kinds: the types of the effects that it is called with, all if none is given.
            early: call it at once, before the effect's cause is saved. Only for looking, never for telling.
        """
        table = self._early if early else self._listeners
        for kind in kinds or get_args(do.Effect):
            table.setdefault(kind, []).append(listener)

    # -- events ------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event) -> list[do.Effect]:
        """Let an event happen; its effects are performed when it is saved.

        Returns:
            The effects.

        Raises:
            DomainError: the event is refused.
        """
        try:
            effects = self.engine.handle(event, self.now())
        except DomainError:
            # What fell due before the refusal has happened all the same, and must be told.
            self._take(self.engine.handle(ev.Tick(), self.now()))
            raise
        self._take(effects)
        return effects

    async def saved(self) -> None:
        """Until all that has happened so far is saved.

        Raises:
            Unavailable: it cannot be saved now. It has happened all the same, and is saved when that works again.
        """
        if self._saver.in_place:
            return
        if not (self._flush_scheduled or self._saving):
            if self._saver.behind:
                raise self._not_saved()
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def start(self) -> None:
        """Act on what the engine had to do before the first event (after a restart)."""
        self._take(self.engine.handle(ev.Tick(), self.now()))

    def stop(self) -> None:
        """Start nothing new and fire no more timers; events are still taken and saved."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Save what is left."""
        try:
            await asyncio.wait_for(self.saved(), 5.0)
        except (TimeoutError, Unavailable) as error:
            log.error("not all state was saved: %s", error)
        self._saver.close()

    # -- saving and performing -----------------------------------------------------------------------------

    def _take(self, effects: list[do.Effect]) -> None:
        self._events += 1
        _tell(self._early, effects)
        self._effects += effects
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._schedule_flush()
        self._arm()

    def _schedule_flush(self) -> None:
        """At once where there is little to do; gathered over a moment where one has only just been, as in a burst."""
        since = self._loop.time() - self._flushed_at
        # A synced save goes on beside the loop: what comes meanwhile gathers by itself.
        if since >= self._gather or self._saver.in_place or self.engine.sync_wanted:
            self._loop.call_soon(self._flush)
        else:
            self._loop.call_later(self._gather - since, self._flush)

    def _flush(self) -> None:
        if self._saving:
            return  # _saved comes back here
        self._flush_scheduled = False
        self._flushed_at = self._loop.time()
        events, self._events = self._events, 0
        if self.engine.pass_wanted and not self._stopped:
            try:
                effects = self.engine.handle(ev.Pass(), self.now())
            except Exception:
                # A bug. What has happened is saved and told all the same; the next event has another pass.
                log.exception("the pass failed: jobs may wait that could start")
                effects = []
            _tell(self._early, effects)
            self._effects += effects
            self._arm()
        most = GATHER_WAITING if self.engine.queue.considered else GATHER_MOST
        self._gather = min(most, GATHER * events)
        effects, self._effects = self._effects, []
        waiters, self._waiters = self._waiters, []
        self._saving = True

        def done(ok: bool) -> None:
            self._saved(ok, effects, waiters)

        self._saver.save(self.engine.take_changes(), done)

    def _saved(self, ok: bool, effects: list[do.Effect], waiters: list[asyncio.Future[None]]) -> None:
        self._saving = False
        if ok:
            with logs.gathered():
                _tell(self._listeners, effects)
        else:
            # Not saved, so not told: it waits for the next try.
            self._effects = effects + self._effects
            self._loop.call_later(RETRY_EVERY, self._retry)
        for waiter in waiters:
            if waiter.done():
                continue
            if ok:
                waiter.set_result(None)
            else:
                waiter.set_exception(self._not_saved())
        if self._flush_scheduled:
            self._loop.call_soon(self._flush)

    def _not_saved(self) -> Unavailable:
        return Unavailable(self._saver.trouble or "", reason="STORE", retry_after=RETRY_EVERY)

    def _retry(self) -> None:
        if self._saver.trouble is not None and not self._flush_scheduled:
            self._flush_scheduled = True
            self._flush()

    def _on_trouble(self, trouble: str | None) -> None:
        # Off the saver's stack: its own batch is not dealt with yet.
        self._loop.call_soon(self.handle, ev.Halt(trouble))

    # -- time ----------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        due = self.engine.next_deadline()
        if self._stopped or due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - self.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.handle(ev.Tick())


def _tell(listeners: dict[type, list[Listener]], effects: list[do.Effect]) -> None:
    for effect in effects:
        for listener in listeners.get(type(effect), ()):
            try:
                listener(effect)
            except Exception:
                log.exception("a listener failed on %r", effect)
