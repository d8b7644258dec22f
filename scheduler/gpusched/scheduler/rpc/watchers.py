"""Streams that watch jobs and GPUs: each has a set of what changed, taken when it gets to write."""

from __future__ import annotations

import asyncio

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.jobs import JobId


class Watch:
    """One watching stream's view of what changed since it last looked."""

    __slots__ = ("_event", "gpus", "jobs", "queue")

    def __init__(self) -> None:
        self.jobs: set[JobId] = set()
        self.queue = False
        self.gpus = False
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

    def wake(self) -> None:
        self._event.set()

    def take_jobs(self) -> set[JobId]:
        jobs, self.jobs = self.jobs, set()
        return jobs


class Watchers:
    """All watching streams. A listener of the driver."""

    def __init__(self) -> None:
        self._of_jobs: set[Watch] = set()
        self._of_gpus: set[Watch] = set()

    def watch_jobs(self) -> Watch:
        watch = Watch()
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
            case do.JobChanged():
                for watch in self._of_jobs:
                    watch.jobs.add(effect.job)
                    watch.wake()
            case do.QueueChanged():
                for watch in self._of_jobs:
                    watch.queue = True
                    watch.wake()
            case do.DevicesChanged():
                self.on_reading()

    def on_reading(self) -> None:
        """The GPUs were read anew."""
        for watch in self._of_gpus:
            watch.gpus = True
            watch.wake()
