"""When running jobs give their devices back at the latest, as far as their time limits tell."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import TypeAlias

NEVER = float("inf")

#: The end in seconds of the engine's clock, the job's id, and the uuids of its devices.
End: TypeAlias = tuple[float, int, Sequence[str]]


class Ends:
    """Running jobs by the end of their time limits, first to last; those without a limit never end."""

    __slots__ = ("_entries", "_times")

    def __init__(self) -> None:
        self._entries: list[End] = []
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
        insort(self._entries, (end, job, devices))

    def remove(self, job: int) -> None:
        """A job that gives its devices back."""
        at = self._times.pop(job)
        del self._entries[bisect_left(self._entries, (at, job, ()))]
