"""What is free when: the future as far as running and promised work tells, step by step.

Three forms with the same questions: counts, where all devices serve everybody alike; the devices themselves, where it
matters which; and all that is free, where devices are shared or something of hosts is asked for.
Time is in seconds of the engine's clock; the last step lasts for ever.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeAlias

from gpusched.scheduler.core.model import Request
from gpusched.scheduler.core.pool import Pool

NEVER = float("inf")

#: What is held for a while: a count, or bit masks of positions by node.
Hold: TypeAlias = Any


class Profile(Protocol):
    """Free devices over time."""

    def earliest(self, request: Request, limit: float, start: float) -> tuple[float, Hold] | None:
        """When a request can be met for so many seconds on end, not before `start`; None for never."""
        ...

    def take(self, hold: Hold, start: float, end: float) -> None:
        """Devices are not free from then until then."""
        ...

    def give(self, hold: Hold, start: float, end: float) -> None:
        """Undo a `take`, or the rest of one."""
        ...

    def forget(self, before: float) -> None:
        """Drop what is past."""
        ...

    def copy(self) -> Self:
        """The same, to be changed apart."""
        ...

    def hold_of(self, devices: Sequence[str]) -> Hold:
        """Devices as a hold; those that are gone or out of service count for nothing."""
        ...

    def place_now(self, request: Request, hold: Hold) -> tuple[str, ...] | None:
        """Devices for a request whose booking has come, None if they are not free yet."""
        ...


class _Stepped:
    """Steps of time, each with what is free in it; a step lasts until the next."""

    _times: list[float]
    _free: list[Any]

    def copy(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        # What is free in a step is never changed in place.
        twin._times, twin._free = list(self._times), list(self._free)
        return twin

    def forget(self, before: float) -> None:
        past = bisect_right(self._times, before) - 1
        if past > 0:
            del self._times[:past], self._free[:past]

    def _steps(self, start: float, end: float) -> range:
        """Numbers of the steps from then until then, cut so that they are just that."""
        if end <= start:
            return range(0)
        first = self._cut(start)
        return range(first, len(self._times) if end == NEVER else self._cut(end))

    def _cut(self, at: float) -> int:
        """Have a step begin at a time. Returns its number."""
        i = bisect_left(self._times, at)
        if i < len(self._times) and self._times[i] == at:
            return i
        if i == 0:
            self._times[0] = min(at, self._times[0])
            return 0
        self._times.insert(i, at)
        self._free.insert(i, self._free[i - 1])
        return i

    def _join(self, steps: range) -> None:
        """Equal neighbours at either end of what was changed are one step."""
        for i in (steps.stop, steps.start):
            if 0 < i < len(self._free) and self._free[i] == self._free[i - 1]:
                del self._free[i], self._times[i]


class CountProfile(_Stepped):
    """Numbers of free devices.

    Args:
        pool: where requests are placed.
        free: how many are free from `now` on.
    """

    def __init__(self, pool: Pool, free: int, now: float) -> None:
        self._pool = pool
        self._times = [now]
        self._free: list[int] = [free]

    def earliest(self, request: Request, limit: float, start: float) -> tuple[float, Hold] | None:
        times, free, need = self._times, self._free, request.gpus
        steps = len(times)
        i = max(0, bisect_right(times, start) - 1)
        while True:
            while i < steps and free[i] < need:
                i += 1
            if i == steps:
                return None
            begin = times[i] if times[i] > start else start
            end = begin + limit
            j = i + 1
            while j < steps and times[j] < end and free[j] >= need:
                j += 1
            if j == steps or times[j] >= end:
                return begin, need
            i = j

    def take(self, hold: Hold, start: float, end: float) -> None:
        self._add(-hold, start, end)

    def give(self, hold: Hold, start: float, end: float) -> None:
        self._add(hold, start, end)

    def hold_of(self, devices: Sequence[str]) -> Hold:
        return len(devices)

    def place_now(self, request: Request, hold: Hold) -> tuple[str, ...] | None:
        return self._pool.place(request)

    def _add(self, count: int, start: float, end: float) -> None:
        free, steps = self._free, self._steps(start, end)
        for i in steps:
            free[i] += count
        self._join(steps)


class DeviceProfile(_Stepped):
    """Which devices are free, as bit masks of their positions by node.

    Args:
        pool: where requests are placed.
        free: positions that are free from `now` on, by node.
    """

    def __init__(self, pool: Pool, free: Mapping[str, Sequence[int]], now: float) -> None:
        self._pool = pool
        self._times = [now]
        self._free: list[dict[str, int]] = [{name: _mask(positions) for name, positions in free.items()}]

    def earliest(self, request: Request, limit: float, start: float) -> tuple[float, Hold] | None:
        steps = len(self._times)
        i = max(0, bisect_right(self._times, start) - 1)
        while i < steps:
            begin = max(self._times[i], start)
            end = begin + limit
            common = dict(self._free[i])
            for j in range(i + 1, steps):
                if self._times[j] >= end:
                    break
                step = self._free[j]
                common = {name: mask & step[name] for name, mask in common.items()}
            got = self._pool.place(request, {name: _positions(mask) for name, mask in common.items()})
            if got is not None:
                return begin, self.hold_of(got)
            i += 1
        return None

    def take(self, hold: Hold, start: float, end: float) -> None:
        self._change(hold, start, end, free=False)

    def give(self, hold: Hold, start: float, end: float) -> None:
        self._change(hold, start, end, free=True)

    def hold_of(self, devices: Sequence[str]) -> Hold:
        hold: dict[str, int] = {}
        for name, position in self._pool.places_of(devices):
            hold[name] = hold.get(name, 0) | 1 << position
        return hold

    def place_now(self, request: Request, hold: Hold) -> tuple[str, ...] | None:
        # Those that were booked: others may be booked for somebody else from some time on.
        return self._pool.at((name, position) for name, mask in hold.items() for position in _positions(mask))

    def _change(self, hold: dict[str, int], start: float, end: float, *, free: bool) -> None:
        steps = self._steps(start, end)
        for i in steps:
            # A step of its own: one that was cut shares its masks with its neighbour.
            step = self._free[i] = dict(self._free[i])
            for name, mask in hold.items():
                step[name] = step[name] | mask if free else step[name] & ~mask
        self._join(steps)


class RoomProfile(_Stepped):
    """All that is free: shares of devices and what hosts have, too. Holds are grants.

    Args:
        pool: where requests are placed.
        free: what is free from `now` on.
    """

    def __init__(self, pool: Pool, free: dict[str, list[int]], now: float) -> None:
        self._pool = pool
        self._times = [now]
        self._free = [free]

    def earliest(self, request: Request, limit: float, start: float) -> tuple[float, Hold] | None:
        steps = len(self._times)
        for i in range(max(0, bisect_right(self._times, start) - 1), steps):
            begin = max(self._times[i], start)
            common = self._free[i]
            got = self._pool.place(request, common)
            for j in range(i + 1, steps):
                if got is None or self._times[j] >= begin + limit:
                    break
                common = self._pool.meet(common, self._free[j])
                if not self._pool.fits(got, common):
                    got = self._pool.place(request, common)
            if got is not None:
                return begin, got
        return None

    def take(self, hold: Hold, start: float, end: float) -> None:
        for i in self._steps(start, end):
            self._free[i] = self._pool.without(self._free[i], hold)

    def give(self, hold: Hold, start: float, end: float) -> None:
        for i in self._steps(start, end):
            self._free[i] = self._pool.with_(self._free[i], hold)

    def hold_of(self, devices: Sequence[str]) -> Hold:
        return devices

    def place_now(self, request: Request, hold: Hold) -> tuple[str, ...] | None:
        got: tuple[str, ...] = hold
        return got if self._pool.fits(got) else None


#: From the cheapest to the one that tells most.
FORMS: tuple[type[Profile], ...] = (CountProfile, DeviceProfile, RoomProfile)


def form_for(pool: Pool, requests: Iterable[Request]) -> type[Profile]:
    """The cheapest form that tells enough for some requests, beside what others have now."""
    plain, counted = not pool.divided, bool(pool.divided)
    for request in requests:
        counted = counted or request.counted
        plain = plain and not request.shaped and pool.everything(pool.eligible(request))
    if counted:
        return RoomProfile
    return CountProfile if plain else DeviceProfile


def profile_of(form: type[Profile], pool: Pool, now: float) -> Profile:
    """What is free from now on if nobody who has something gives it back."""
    free = pool.free_soon()
    if form is CountProfile:
        return CountProfile(pool, sum(map(len, free.values())), now)
    return DeviceProfile(pool, free, now) if form is DeviceProfile else RoomProfile(pool, free, now)


def _mask(positions: Sequence[int]) -> int:
    mask = 0
    for position in positions:
        mask |= 1 << position
    return mask


def _positions(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
