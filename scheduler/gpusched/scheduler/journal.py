"""What happened, in the log: one line per job's move. A listener of the driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.states import Lease
from gpusched.scheduler.logs import log_event

log = logging.getLogger("gpusched.jobs")


#: Seconds between two looks whether somebody is still missing after a restart.
LOOK_EVERY = 0.02


async def tell_return(engine: Engine, now: Callable[[], float]) -> None:
    """After a restart: say when nobody is waited for any more, having come back or been given up."""
    expected, began = len(engine.absent), now()
    if expected:
        while engine.absent:  # noqa: ASYNC110 - it changes in many places, and nobody else minds
            await asyncio.sleep(LOOK_EVERY)
        log_event(log, "nobody is missing any more", expected=expected, after=round(now() - began, 3))


class Journal:
    """Writes log lines.

    Args:
        engine: where the jobs are looked up.
    """

    #: The effects that it tells of.
    KINDS = (do.Accepted, do.Granted, do.StartRun, do.Withdrawn, do.Notify, do.Ended)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: What each GPU is called in a line.
        self._labels: dict[str, str] = {}

    def on_effect(self, effect: do.Effect) -> None:
        match effect:
            case do.Accepted():
                if log.isEnabledFor(logging.DEBUG):
                    job = self._engine.jobs[effect.job]
                    owner = job.spec.owner.name
                    log_event(log, "accept", level=logging.DEBUG, job=job.id, user=owner, gpus=job.request.gpus)
            case do.Granted() | do.StartRun():
                self._grant(effect.job, effect.lease)
            case do.Withdrawn():
                log_event(log, "withdraw", job=effect.job, epoch=effect.epoch)
            case do.Notify():
                log_event(log, "notice", job=effect.job, kind=effect.kind.value, message=effect.message)
            case do.Ended():
                log_event(log, "end", job=effect.job, state=effect.state.value, message=effect.message)

    def _grant(self, job_id: JobId, lease: Lease) -> None:
        job = self._engine.jobs[job_id]
        log_event(
            log,
            "grant",
            job=job_id,
            lease=lease.id,
            user=job.spec.owner.name,
            name=job.name or None,
            gpus=",".join([self._label(uuid) for uuid in lease.devices]),
            attempt=job.attempt if job.attempt > 1 else None,
            waited=round(lease.granted_at - _waits_since(job), 3),
        )

    def _label(self, uuid: str) -> str:
        label = self._labels.get(uuid)
        if label is None:
            info = self._engine.pool.devices[uuid].info
            label = self._labels[uuid] = f"{info.node}:{info.index}"
        return label


def _waits_since(job: Job) -> float:
    """When the wait began that a grant ends: as it was submitted, or as its run before ended."""
    return max(job.submitted_at, job.attempts[-1].ended_at) if job.attempts else job.submitted_at
