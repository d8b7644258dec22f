"""What each user has used, kept over restarts: fair share would forget it otherwise.

What is kept is a figure and its time. It is saved with the end of each lease, in the same transaction, and leases that
have not ended are kept themselves: so the book of a server that was killed is made again to the last second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import recovery
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.fairshare import UsageBook

#: Keys of settings: this and the user's name.
USAGE = "usage:"
#: GPU-seconds that are not worth keeping.
_NOTHING = 0.001


class UsageKeeper:
    """Saves usage while the policy is fair share.

    Args:
        engine: whose book it is.
        now: the engine's clock, in seconds.
    """

    def __init__(self, engine: Engine, now: Callable[[], float]) -> None:
        self._engine = engine
        self._now = now
        self._ordered_by_it = self._wanted

    def on_effect(self, effect: do.Effect) -> None:
        """An early listener: what it keeps is saved together with what caused the effect."""
        match effect:
            case do.Ended() | do.Withdrawn():
                job = self._engine.jobs.get(effect.job)
                if self._wanted and job is not None:
                    self._keep(job.spec.owner.name)
            case do.QueueChanged() if self._wanted != self._ordered_by_it:
                self._ordered_by_it = self._wanted
                if self._wanted:
                    for user in self._engine.usage.users():
                        self._keep(user)

    @property
    def _wanted(self) -> bool:
        return self._engine.settings.policy.order == "fair_share"

    def _keep(self, user: str) -> None:
        now = self._now()
        used = self._engine.usage.used(user, now)
        recovery.keep(self._engine, USAGE + user, json.dumps([used, now]) if used > _NOTHING else None)


def restore_usage(engine: Engine, settings: Mapping[str, str], now: float, shift: float = 0.0) -> None:
    """Tell an engine what everybody had used.

    Args:
        engine: with its jobs restored, and nothing else done yet.
        settings: as they were saved.
        now: seconds of the engine's clock.
        shift: by how much the clock was set forward since then.
    """
    book = UsageBook(engine.usage.half_life)
    since: dict[str, float] = {}
    for key, text in settings.items():
        if key.startswith(USAGE) and (kept := _parsed(text)) is not None:
            user = key[len(USAGE) :]
            since[user] = min(kept[1] + shift, now)
            book.put(user, kept[0], since[user])
    held = []
    for job in engine.running.values():
        if job.lease is not None:
            user = job.spec.owner.name
            began = min(max(job.lease.granted_at, since.get(user, job.lease.granted_at)), now)
            held.append((began, user, len(job.lease.devices)))
    for began, user, gpus in sorted(held):
        book.change(user, gpus, began)
    for user in book.users():
        engine.usage.put(user, book.used(user, now), now)


def _parsed(text: str) -> tuple[float, float] | None:
    """Figure and time, None if it is not one of ours; then the user begins anew, which hurts nobody else."""
    try:
        used, at = map(float, json.loads(text))
    except (TypeError, ValueError):
        return None
    return (used, at) if math.isfinite(at) and 0 <= used < math.inf else None
