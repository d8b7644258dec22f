"""What happened, in the log: one line per job's move. A listener of the driver."""

from __future__ import annotations

import logging

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.logs import log_event

log = logging.getLogger("gpusched.jobs")


class Journal:
    """Writes log lines.

    Args:
        engine: where the jobs are looked up.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def on_effect(self, effect: do.Effect) -> None:
        match effect:
            case do.Accepted():
                job = self._engine.jobs[effect.job]
                log_event(log, "accept", job=job.id, user=job.spec.owner.name, gpus=job.request.gpus, name=job.name)
            case do.Granted():
                devices = [self._engine.pool.devices[uuid].info for uuid in effect.lease.devices]
                gpus = ",".join(f"{device.node}:{device.index}" for device in devices)
                waited = effect.lease.granted_at - self._engine.jobs[effect.job].submitted_at
                log_event(log, "grant", job=effect.job, epoch=effect.lease.epoch, gpus=gpus, waited=round(waited, 3))
            case do.Withdrawn():
                log_event(log, "withdraw", job=effect.job, epoch=effect.epoch)
            case do.Notify():
                log_event(log, "notice", job=effect.job, kind=effect.kind.value, message=effect.message)
            case do.Ended():
                log_event(log, "end", job=effect.job, state=effect.state.value, message=effect.message)
