"""When running jobs give their devices back at the latest, as far as their time limits tell."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

NEVER = float("inf")

#: The end in seconds of the engine's clock, the job's id, and the uuids of its devices.
End: TypeAlias = tuple[float, int, Sequence[str]]


class Ends:
    """Running jobs by the end of their time limits, first to last; those without a limit never end."""

    __slots__ = ("_counts", "_entries", "_times")

    def __init__(self) -> None:
        self._entries: list[End] = []
        #: How many devices each of them has.
        self._counts: list[int] = []
        self._times: dict[int, float] = {}

    def __iter__(self) -> Iterator[End]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job: int) -> bool:
        return job in self._times

    def add(self, job: int, at: float | None, devices: Sequence[str]) -> None:
        """A job that has just got devices, until then; None for ever."""
        end = self._times[job] = NEVER if at is None else at
        # No two entries have one id, so a comparison ends before the devices.
        entry = (end, job, devices)
        place = bisect_left(self._entries, entry)
        self._entries.insert(place, entry)
        self._counts.insert(place, len(devices))

    def remove(self, job: int) -> None:
        """A job that gives its devices back."""
        at = self._times.pop(job)
        place = bisect_left(self._entries, (at, job, ()))
        del self._entries[place], self._counts[place]

    def when_free(self, need: int, free: int, now: float) -> tuple[float, int]:
        """When so many devices of all are free at the latest, and how many are free then.

        Args:
            need: how many.
            free: how many are free now; fewer than needed.
            now: seconds of the engine's clock; whoever outlives its limit counts as ending now.

        Returns:
            NEVER and any number if there will not be so many.
        """
        sums = list(accumulate(self._counts, initial=free))
        first = bisect_left(sums, need)
        if first == len(sums):
            return NEVER, free
        entries, count = self._entries, len(self._entries)
        at = max(entries[first - 1][0], now)
        while first < count and entries[first][0] <= at:
            first += 1
        return at, sums[first]
