"""Streams that watch jobs and GPUs: each has a set of what changed, taken when it gets to write."""

from __future__ import annotations

import asyncio

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.jobs import JobId

#: So many changed jobs are remembered for a watcher that does not read; beyond, all count as changed.
MAX_CHANGED = 1000


class Watch:
    """One watching stream's view of what changed since it last looked.

    Attributes:
        only: the one job that is watched, None for all.
        jobs: those that changed.
        many: more changed than are remembered in `jobs`.
        queue: places in the queue may be others.
        gpus: GPUs were read anew, or changed.
    """

    __slots__ = ("_event", "gpus", "jobs", "many", "only", "queue")

    def __init__(self, only: JobId | None = None) -> None:
        self.only = only
        self.jobs: set[JobId] = set()
        self.many = False
        self.queue = False
        self.gpus = False
        self._event = asyncio.Event()

    def job_changed(self, job: JobId) -> None:
        if self.only not in (None, job):
            return
        if len(self.jobs) < MAX_CHANGED:
            self.jobs.add(job)
        else:
            self.many = True
        self.wake()

    def queue_changed(self) -> None:
        # Once is enough: whoever looks at places only now and then sets a timer and leaves this set.
        if not self.queue:
            self.queue = True
            self.wake()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

    def wake(self) -> None:
        self._event.set()

    def take_jobs(self) -> set[JobId] | None:
        """What changed since the last time; None for too much to remember."""
        jobs, self.jobs = self.jobs, set()
        many, self.many = self.many, False
        return None if many else jobs


class Watchers:
    """All watching streams. A listener of the driver."""

    #: The effects that it tells of.
    KINDS = (do.JobChanged, do.Accepted, do.Granted, do.StartRun, do.Ended, do.QueueChanged, do.DevicesChanged)

    def __init__(self) -> None:
        self._of_jobs: set[Watch] = set()
        self._of_gpus: set[Watch] = set()

    def watch_jobs(self, only: JobId | None = None) -> Watch:
        """Watch all jobs, or one."""
        watch = Watch(only)
        self._of_jobs.add(watch)
        return watch

    def watch_gpus(self) -> Watch:
        watch = Watch()
        self._of_gpus.add(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        self._of_jobs.discard(watch)
        self._of_gpus.discard(watch)

    def on_effect(self, effect: do.Effect) -> None:
        match effect:
            case do.JobChanged() | do.Accepted() | do.Ended():
                self._job_changed(effect.job)
            case do.Granted() | do.StartRun():
                self._job_changed(effect.job)
                self.on_reading()
            case do.QueueChanged():
                for watch in self._of_jobs:
                    watch.queue_changed()
            case do.DevicesChanged():
                self.on_reading()

    def _job_changed(self, job: JobId) -> None:
        for watch in self._of_jobs:
            watch.job_changed(job)

    def on_reading(self) -> None:
        """The GPUs were read anew."""
        for watch in self._of_gpus:
            watch.gpus = True
            watch.wake()
