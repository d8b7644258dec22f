"""The single writer: every event goes through here, and its effects go out from here.

A burst of events costs one pass: the pass is put behind whatever else the event loop has at hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import DomainError

log = logging.getLogger("gpusched.driver")

Listener = Callable[[do.Effect], None]


class Driver:
    """Runs an engine on the running event loop.

    Args:
        engine: the state; nobody else may call its `handle`.
        now: the engine's clock, in seconds.
    """

    def __init__(self, engine: Engine, now: Callable[[], float]) -> None:
        self.engine = engine
        self.now = now
        self._loop = asyncio.get_running_loop()
        self._listeners: list[Listener] = []
        self._pass_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopped = False

    def listen(self, listener: Listener) -> None:
        """Have a function called with every effect, in order. It must not block, nor call `handle` itself."""
        self._listeners.append(listener)

    def handle(self, event: ev.Event) -> list[do.Effect]:
        """Let an event happen and its effects be performed.

        Returns:
            The effects.

        Raises:
            DomainError: the event is refused.
        """
        try:
            effects = self.engine.handle(event, self.now())
        except DomainError:
            # What fell due before the refusal has happened all the same, and must be told.
            self._perform(self.engine.handle(ev.Tick(), self.now()))
            raise
        self._perform(effects)
        return effects

    def stop(self) -> None:
        """Start nothing new and fire no more timers; events are still taken."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _perform(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            for listener in self._listeners:
                try:
                    listener(effect)
                except Exception:
                    log.exception("a listener failed on %r", effect)
        if self._stopped:
            return
        if self.engine.pass_wanted and not self._pass_scheduled:
            self._pass_scheduled = True
            self._loop.call_soon(self._run_pass)
        self._arm()

    def _run_pass(self) -> None:
        self._pass_scheduled = False
        if not self._stopped:
            self.handle(ev.Pass())

    def _arm(self) -> None:
        due = self.engine.next_deadline()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - self.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.handle(ev.Tick())
