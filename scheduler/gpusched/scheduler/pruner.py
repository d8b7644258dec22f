"""Forgets ended jobs, and the logs that the scheduler keeps for them, once they are old enough."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path

from gpusched.scheduler.launcher import Launcher
from gpusched.scheduler.logs import log_event
from gpusched.scheduler.ports import Store, StoreError

log = logging.getLogger("gpusched.store")

#: Seconds between two prunings; and between two steps of one, so that nobody waits for long.
EVERY = 3600.0
STEP = 0.05
#: Jobs forgotten in one step.
CHUNK = 200

_LOG_NAME = re.compile(r"([0-9]{1,18})\.[0-9]+\.log")


async def prune_for_ever(store: Store, launcher: Launcher, now: Callable[[], float], keep: float) -> None:
    """Prune now and then.

    Args:
        store: from which.
        launcher: knows where logs are.
        now: seconds since the epoch.
        keep: seconds that an ended job is kept.
    """
    while True:
        try:
            await _prune(store, now() - keep)
            await asyncio.get_running_loop().run_in_executor(None, _prune_logs, launcher.logs, store, now() - keep)
        except (StoreError, OSError) as error:
            log_event(log, "pruning failed", level=logging.WARNING, message=str(error))
        await asyncio.sleep(EVERY)


async def _prune(store: Store, before: float) -> None:
    total = 0
    while True:
        count = store.prune(before, CHUNK)
        total += count
        if count < CHUNK:
            break
        await asyncio.sleep(STEP)
    if total:
        log_event(log, "pruned", jobs=total)


def _prune_logs(directory: Path, store: Store, before: float) -> None:
    """Remove old logs of jobs that are forgotten. One of a silent job may be older than its job's end."""
    for path in directory.glob("*.log"):
        ours = _LOG_NAME.fullmatch(path.name)
        if ours and path.stat().st_mtime < before and store.job(int(ours[1])) is None:
            path.unlink(missing_ok=True)
