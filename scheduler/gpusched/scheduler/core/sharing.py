"""Shares of GPUs, and cores and memory of hosts: what a grant takes of them, what is left, and which ones fit best.

All of it is bookkeeping: what a job takes beyond its share is seen (see the observer), and not prevented.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gpusched.scheduler.core import placement
from gpusched.scheduler.core.model import DeviceInfo, Placement, Request

#: How much memory of each GPU is not given to shares, as a part of all: drivers and contexts take some.
RESERVE = 0.03
#: Stands before a node's name where its cores and memory are named among devices.
HOST = "host:"


class Grant(tuple[str, ...]):
    """Uuids of devices, as a plain tuple of them is, with how much of them and of their hosts is meant.

    Attributes:
        memory: bytes of each device that are shared, 0 where the devices are had whole.
        sharer: uid of who shares them, -1 where they are had whole.
        nodes: names of the nodes of whose hosts something is had.
        cpus: cores of each of those.
        host_bytes: memory of each of those.
    """

    memory: int
    sharer: int
    nodes: tuple[str, ...]
    cpus: int
    host_bytes: int

    def __bool__(self) -> bool:
        """Whether there is anything in it: something of a host alone is something, too."""
        return len(self) > 0 or len(self.nodes) > 0

    @staticmethod
    def of(request: Request, devices: Iterable[str], nodes: Iterable[str]) -> Grant:
        """What a request gets on these devices and nodes."""
        grant = Grant(devices)
        grant.memory = request.memory_bytes if request.shared else 0
        grant.sharer = request.sharer if request.shared else -1
        grant.cpus, grant.host_bytes = request.cpus, request.host_bytes
        grant.nodes = tuple(nodes) if request.cpus or request.host_bytes else ()
        return grant


class Share(NamedTuple):
    """A part of one device: whose it is (uid), and how much memory (bytes)."""

    sharer: int
    memory: int


class Host(NamedTuple):
    """Cores, and bytes of memory, of one node."""

    cpus: int
    memory: int

    def holds(self, cpus: int, memory: int) -> bool:
        """Whether there is so much of both; who asks for nothing of one has it even where too much was given."""
        return (not cpus or self.cpus >= cpus) and (not memory or self.memory >= memory)

    def less(self, cpus: int, memory: int) -> Host:
        return Host(self.cpus - cpus, self.memory - memory)


class Room(dict[str, list[int]]):
    """What is free, now or in some future: wholly free devices as a plain dict of positions has them, and besides:

    Attributes:
        shares: by uuid, the shares of each device that has some and may get more.
        hosts: by node, what is left of its host; a node that is missing has nothing.
    """

    shares: dict[str, tuple[Share, ...]]
    hosts: dict[str, Host]

    @staticmethod
    def of(free: Mapping[str, list[int]], shares: Mapping[str, tuple[Share, ...]], hosts: Mapping[str, Host]) -> Room:
        room = Room(free)
        room.shares, room.hosts = dict(shares), dict(hosts)
        return room

    def copy(self) -> Room:
        return Room.of(self, self.shares, self.hosts)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for shares.

    Attributes:
        reserve: part of each GPU's memory that is not given to shares, from 0 to below 1.
        mixed: several users may share a device.
    """

    reserve: float = RESERVE
    mixed: bool = False

    def capacity(self, info: DeviceInfo) -> int:
        """Bytes of a device that shares may come to together."""
        return int(info.memory_bytes * (1 - self.reserve))

    def left(self, info: DeviceInfo, shares: Iterable[Share]) -> int:
        """Bytes that further shares may take."""
        return self.capacity(info) - sum(share.memory for share in shares)

    def admits(self, info: DeviceInfo, shares: Sequence[Share], memory: int, sharer: int) -> bool:
        """Whether a device with these shares takes one more."""
        if not self.mixed and any(share.sharer != sharer for share in shares):
            return False
        return self.left(info, shares) >= memory


class _Part(NamedTuple):
    """A device that would do; the least is taken first."""

    whole: bool
    left: int
    position: int


def place(
    layout: placement.Layout,
    infos: Mapping[str, DeviceInfo],
    room: Room,
    request: Request,
    eligible: frozenset[str],
    rules: Rules,
) -> Grant | None:
    """Devices, shares and hosts for a request, all or none.

    Shares go to devices that are shared already, the tightest that holds them first, so that whole ones stay whole;
    of nodes, to as few as can be, and then where the least is left.

    Args:
        layout: all nodes.
        infos: all devices by uuid.
        room: what is free.
        request: how much, and how to choose.
        eligible: uuids that will do, and names of hosts (HOST before the node's).
        rules: of shares.
    """
    if request.cpus or request.host_bytes:
        holds = [name for name, host in room.hosts.items() if host.holds(request.cpus, request.host_bytes)]
        names = [name for name in layout.sites if HOST + name in eligible and name in holds]
    else:
        names = list(layout.sites)
    if not request.gpus:
        node = _host(names, room, request)
        return None if node is None else Grant.of(request, (), (node,))
    if request.shared:
        uuids = _shared(layout, infos, room, request, eligible, rules, names)
    else:
        uuids = placement.place(layout, {name: room.get(name, []) for name in names}, request, eligible)
    if uuids is None:
        return None
    return Grant.of(request, uuids, dict.fromkeys(infos[uuid].node for uuid in uuids))


def _host(names: Iterable[str], room: Room, request: Request) -> str | None:
    """The node for something of a host alone: where the least is left, or (spread) the most."""
    spread = request.placement is Placement.SPREAD
    return (max if spread else min)(names, key=lambda name: room.hosts[name], default=None)


def _shared(
    layout: placement.Layout,
    infos: Mapping[str, DeviceInfo],
    room: Room,
    request: Request,
    eligible: frozenset[str],
    rules: Rules,
    names: Iterable[str],
) -> tuple[str, ...] | None:
    parts: dict[str, list[_Part]] = {}
    for name in names:
        found = []
        free = room.get(name, ())
        for position, uuid in enumerate(layout.sites[name].uuids):
            shares = room.shares.get(uuid, ())
            if uuid not in eligible or not (shares or position in free):
                continue
            if rules.admits(infos[uuid], shares, request.memory_bytes, request.sharer):
                found.append(_Part(not shares, rules.left(infos[uuid], shares), position))
        if found:
            parts[name] = sorted(found)
    chosen = _counts(parts, request)
    if chosen is None:
        return None
    order = [name for name in layout.sites if name in chosen]
    return tuple(
        layout.sites[name].uuids[part.position]
        for name in order
        for part in sorted(parts[name][: chosen[name]], key=lambda part: part.position)
    )


def _counts(parts: Mapping[str, Sequence[_Part]], request: Request) -> dict[str, int] | None:
    """How many devices of each node, whose tightest are taken; None if there are not enough."""
    count = request.gpus
    spread = request.placement is Placement.SPREAD

    def tightest(names: Iterable[str], number: int) -> str | None:
        fitting = [name for name in names if len(parts[name]) >= number]
        if spread:
            return max(fitting, key=lambda name: sum(part.left for part in parts[name]), default=None)
        return min(fitting, key=lambda name: [part[:2] for part in reversed(parts[name][:number])], default=None)

    if request.per_node:
        rest, chosen = list(parts), {}
        for _ in range(count // request.per_node):
            name = tightest(rest, request.per_node)
            if name is None:
                return None
            rest.remove(name)
            chosen[name] = request.per_node
        return chosen
    if sum(map(len, parts.values())) < count:
        return None
    if spread:
        order = sorted(parts, key=lambda name: -sum(part.left for part in parts[name]))
        chosen = dict.fromkeys(order, 0)
        while count:
            for name in order:
                if count and chosen[name] < len(parts[name]):
                    chosen[name] += 1
                    count -= 1
        return {name: number for name, number in chosen.items() if number}
    rest, chosen = sorted(parts, key=lambda name: -len(parts[name])), {}
    while (last := tightest(rest, count)) is None:
        if request.placement is Placement.CONSOLIDATE:
            return None
        name = rest.pop(0)
        chosen[name] = len(parts[name])
        count -= len(parts[name])
    return chosen | {last: count}


def without(room: Room, devices: Sequence[str], places: Mapping[str, tuple[str, int]]) -> Room:
    """What is left when somebody has got a grant (or, a plain tuple, whole devices).

    Args:
        room: what is free; not changed.
        devices: the grant.
        places: node and position of each device that exists.
    """
    out = room.copy()
    shared = isinstance(devices, Grant) and devices.memory
    for uuid in devices:
        place = places.get(uuid)
        if place is None:
            continue
        name, position = place
        out[name] = [each for each in out.get(name, ()) if each != position]
        if isinstance(devices, Grant) and shared:
            out.shares[uuid] = (*out.shares.get(uuid, ()), Share(devices.sharer, devices.memory))
        else:
            out.shares.pop(uuid, None)
    for name, host in _hosts_of(devices, out):
        out.hosts[name] = host.less(devices.cpus, devices.host_bytes)  # type: ignore[attr-defined]  # a grant has them
    return out


def with_(
    room: Room,
    devices: Sequence[str],
    places: Mapping[str, tuple[str, int]],
    held: Mapping[str, Sequence[Share]],
    out_of_service: frozenset[str] | set[str],
) -> Room:
    """What is free when a grant has come back.

    Args:
        room: what is free; not changed.
        devices: the grant.
        places: node and position of each device that exists.
        held: by uuid, the shares of devices that have some now, also of those that may get no more.
        out_of_service: uuids that somebody must mend; they do not count.
    """
    out = room.copy()
    shared = isinstance(devices, Grant) and devices.memory
    for uuid in devices:
        place = places.get(uuid)
        if place is None or uuid in out_of_service:
            continue
        name, position = place
        if isinstance(devices, Grant) and shared:
            left = list(out.shares.get(uuid, held.get(uuid, ())))
            share = Share(devices.sharer, devices.memory)
            if share in left:
                left.remove(share)
            if left:
                out.shares[uuid] = tuple(left)
                continue
            out.shares.pop(uuid, None)
        out[name] = sorted({*out.get(name, ()), position})
    for name, host in _hosts_of(devices, out):
        out.hosts[name] = host.less(-devices.cpus, -devices.host_bytes)  # type: ignore[attr-defined]
    return out


def _hosts_of(devices: Sequence[str], room: Room) -> Iterator[tuple[str, Host]]:
    if isinstance(devices, Grant):
        for name in devices.nodes:
            if name in room.hosts:
                yield name, room.hosts[name]


def meet(one: Room, other: Room, places: Mapping[str, tuple[str, int]]) -> Room:
    """What is free in both; of shares that only one has, both count."""
    free: dict[str, list[int]] = {}
    shares: dict[str, tuple[Share, ...]] = {}
    for name in one:
        free[name] = [position for position in one[name] if position in other.get(name, ())]
    for uuid in one.shares.keys() | other.shares.keys():
        name, position = places[uuid]
        if any(uuid not in room.shares and position not in room.get(name, ()) for room in (one, other)):
            continue
        mine, theirs = one.shares.get(uuid, ()), list(other.shares.get(uuid, ()))
        for share in mine:
            if share in theirs:
                theirs.remove(share)
        shares[uuid] = (*mine, *theirs)
    hosts = {
        name: Host(min(host.cpus, other.hosts[name].cpus), min(host.memory, other.hosts[name].memory))
        for name, host in one.hosts.items()
        if name in other.hosts
    }
    return Room.of(free, shares, hosts)


def fits(
    room: Mapping[str, list[int]],
    devices: Sequence[str],
    places: Mapping[str, tuple[str, int]],
    infos: Mapping[str, DeviceInfo],
    rules: Rules,
) -> bool:
    """Whether exactly this grant could be had of what is free."""
    shares = room.shares if isinstance(room, Room) else {}
    for uuid in devices:
        name, position = places[uuid]
        if isinstance(devices, Grant) and devices.memory and uuid in shares:
            if not rules.admits(infos[uuid], shares[uuid], devices.memory, devices.sharer):
                return False
        elif position not in room.get(name, ()):
            return False
    if isinstance(devices, Grant) and devices.nodes and isinstance(room, Room):
        return all(
            name in room.hosts and room.hosts[name].holds(devices.cpus, devices.host_bytes) for name in devices.nodes
        )
    return True


def part(devices: Sequence[str], keep: Collection[str]) -> tuple[str, ...]:
    """Of a grant those devices that are among others, with as much of them as before."""
    some = tuple(uuid for uuid in devices if uuid in keep)
    if not isinstance(devices, Grant):
        return some
    out = Grant(some)
    out.memory, out.sharer, out.nodes = devices.memory, devices.sharer, devices.nodes
    out.cpus, out.host_bytes = devices.cpus, devices.host_bytes
    return out


def stamped(request: Request, uid: int) -> Request:
    """The request of a user: who shares a device is told apart from others by it."""
    return replace(request, sharer=uid) if request.shared else request
