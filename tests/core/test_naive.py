"""Conservative backfill against the plan as a book would tell it: each question is a walk over everything."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings

from core.test_backfill import EXAMPLES, Replay, Work, crowds
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.queue import limit_of


class Span(NamedTuple):
    """So many GPUs from then until then."""

    start: float
    end: float
    gpus: int


class NaivePlan:
    """Who runs, and who is booked for when; all devices are alike.

    Args:
        total: number of devices.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.booked: dict[JobId, Span] = {}
        self.running: dict[JobId, Span] = {}

    def settle(self, waiting: list[Job], running: set[JobId], now: float) -> set[JobId]:
        """Bring the plan up to date.

        Args:
            waiting: in the queue's order, before anybody starts.
            running: likewise.
            now: seconds of the engine's clock.

        Returns:
            Who starts now.
        """
        ended = [self.running.pop(number) for number in self.running.keys() - running]
        left = [self.booked.pop(number) for number in self.booked.keys() - {job.id for job in waiting}]
        # An end just in time opens no hole, but who came forward at the last one may have left one to those before him.
        room = bool(left or ended)
        for job in waiting:
            booking = self.booked.get(job.id)
            if booking is None or (room and booking.start > now):
                # Its own booking is out while a place is looked for, those of all others are there.
                self.booked.pop(job.id, None)
                self.booked[job.id] = self._earliest(job, now)
        due = {number for number, span in self.booked.items() if span.start <= now}
        self.running |= {job.id: self._span(job, now) for job in waiting if job.id in due}
        self.booked = {number: span for number, span in self.booked.items() if number not in due}
        return due

    def _earliest(self, job: Job, now: float) -> Span:
        """The first hole: it begins now or where something ends."""
        times = sorted({now, *(span.end for span in self._spans() if span.end > now)})
        return next(span for span in (self._span(job, at) for at in times) if self._fits(span))

    def _fits(self, new: Span) -> bool:
        spans = self._spans()
        moments = [new.start, *(span.start for span in spans if new.start < span.start < new.end)]
        used = [sum(span.gpus for span in spans if span.start <= at < span.end) for at in moments]
        return max(used) + new.gpus <= self.total

    def _spans(self) -> list[Span]:
        return [*self.booked.values(), *self.running.values()]

    def _span(self, job: Job, start: float) -> Span:
        return Span(start, start + limit_of(job), job.request.gpus)


@settings(deadline=None, max_examples=3 * EXAMPLES)
@given(history=crowds())
def test_conservative_is_the_naive_plan(history: list[Work]) -> None:
    """After each pass: the same jobs have started, and all others are booked for the same times."""
    naive, seen = NaivePlan(8), set[JobId]()

    def look(replay: Replay) -> None:
        engine = replay.engine
        assert engine.bookings is not None
        began = replay.starts.keys() - seen
        seen.update(began)
        waiting = sorted([*engine.queue, *(engine.jobs[number] for number in began)], key=lambda job: job.id)
        assert naive.settle(waiting, engine.running.keys() - began, replay.now) == began
        booked = {job.id: engine.bookings.start_of(job) for job in engine.queue}
        assert booked == {number: span.start for number, span in naive.booked.items()}

    Replay("flat", PolicySettings("fifo", "conservative")).run(history, look)
