"""Which free GPUs a request gets: pure functions of the nodes, what is free on them, and the request.

In this order: as few nodes as can be; the best links between the chosen GPUs, counting what those left over can
still offer each other; the least left over; the lowest indices. Where all GPUs of a node are connected alike (one
GPU, an NVSwitch, an unknown topology) links say nothing, and a choice costs no more than the GPUs that it looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpusched.scheduler.core.links import Links
from gpusched.scheduler.core.model import NodeInfo, Placement, Request

#: As in `queue.WAITS`.
_PACK = Placement.PACK


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A node as placement sees it; a position is a place in `uuids`.

    Attributes:
        links: None where all pairs are alike.
        pair: the score of each pair then.
    """

    name: str
    uuids: tuple[str, ...]
    links: Links | None
    pair: int


class Layout:
    """All nodes, in their order.

    Args:
        nodes: what the inventory found.
    """

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self.sites = {info.name: _site(info) for info in nodes}
        #: Whether links cannot make one node better than another.
        self.alike = (
            all(site.links is None for site in self.sites.values())
            and len({site.pair for site in self.sites.values() if len(site.uuids) > 1}) <= 1
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """A node, its free positions, and those of them that would do; both ascending."""

    site: Site
    free: Sequence[int]
    usable: Sequence[int]

    def pick(self, count: int) -> Sequence[int]:
        """The best so many of the usable positions, ascending."""
        if self.site.links is None or count >= len(self.usable):
            return self.usable[:count]
        return self.site.links.choose(self.usable, self.free, count)

    def score(self, count: int) -> int:
        """How well the best so many are connected."""
        if self.site.links is None:
            return self.site.pair * count * (count - 1) // 2
        return self.site.links.weight(self.pick(count))


_Part = tuple[_Choice, int]  # so many GPUs of a node


def place(
    nodes: Layout, free: Mapping[str, Sequence[int]], request: Request, eligible: frozenset[str] | None
) -> tuple[str, ...] | None:
    """Devices for a request, all or none.

    Args:
        nodes: the machines.
        free: node name to the ascending positions of its free devices; a node that is missing has none.
        request: how many, and how to choose; its other conditions are what made `eligible`.
        eligible: uuids that will do, None for any.

    Returns:
        Uuids, node by node, ascending within each; None if the request cannot have all of them now.
    """
    count = request.gpus
    if eligible is None and not request.node and nodes.alike and request.placement is _PACK:
        whole = None if request.per_node else _tightest_alike(nodes, free, count)
        if whole is not None:
            site, positions = whole
            return tuple(map(site.uuids.__getitem__, positions[:count]))
    choices = _choices(nodes, free, request.node, eligible)
    parts: list[_Part] | None
    if request.per_node:
        parts = _regular(choices, request, nodes.alike)
    elif sum(len(choice.usable) for choice in choices) < count:
        return None
    elif request.placement is Placement.SPREAD:
        parts = _spread(choices, count)
    elif request.placement is Placement.CONSOLIDATE:
        parts = _consolidated(choices, count, _sizes(nodes, request.node, eligible), nodes.alike)
    else:
        parts = _packed(choices, count, nodes.alike)
    if parts is None:
        return None
    return tuple([choice.site.uuids[p] for choice, part in parts for p in choice.pick(part)])


def _tightest_alike(nodes: Layout, free: Mapping[str, Sequence[int]], count: int) -> tuple[Site, Sequence[int]] | None:
    """The fullest node that holds so many, the first of equals; without making anything on the way."""
    found, least = None, 0
    for name, site in nodes.sites.items():
        positions = free.get(name)
        if positions is None or len(positions) < count or (found is not None and len(positions) >= least):
            continue
        found, least = (site, positions), len(positions)
        if least == count:
            break
    return found


def _choices(
    nodes: Layout, free: Mapping[str, Sequence[int]], only: str, eligible: frozenset[str] | None
) -> list[_Choice]:
    out = []
    for name, site in nodes.sites.items():
        positions = free.get(name)
        # A node may be gone that a job kept from before a restart asks for.
        if not positions or only not in ("", name):
            continue
        usable = positions if eligible is None else [p for p in positions if site.uuids[p] in eligible]
        if usable:
            out.append(_Choice(site, positions, usable))
    return out


def _sizes(nodes: Layout, only: str, eligible: frozenset[str] | None) -> dict[str, int]:
    """How many devices of each node would do, free or not."""
    return {
        name: len(site.uuids) if eligible is None else sum(uuid in eligible for uuid in site.uuids)
        for name, site in nodes.sites.items()
        if only in ("", name)
    }


def _best(choices: Iterable[_Choice], count: int, alike: bool) -> _Choice | None:
    """The node to take so many from, None if none holds them: best links, then tightest, then first."""
    fitting = [choice for choice in choices if len(choice.usable) >= count]
    if not fitting:
        return None
    if alike or count == 1:
        return min(fitting, key=lambda choice: len(choice.usable))
    return min(fitting, key=lambda choice: (-choice.score(count), len(choice.usable)))


def _packed(choices: Sequence[_Choice], count: int, alike: bool) -> list[_Part]:
    """As few nodes as can be: the emptiest whole, and the rest where it fits best. There are enough."""
    parts: list[_Part] = []
    rest = sorted(choices, key=lambda choice: -len(choice.usable))
    while (last := _best(rest, count, alike)) is None:
        choice = rest.pop(0)
        parts.append((choice, len(choice.usable)))
        count -= len(choice.usable)
    return [*parts, (last, count)]


def _spread(choices: Sequence[_Choice], count: int) -> list[_Part]:
    """Round and round over the nodes, the emptiest first, until all are given. There are enough."""
    order = sorted(choices, key=lambda choice: -len(choice.usable))
    given = [0] * len(order)
    while count:
        for number, choice in enumerate(order):
            if count and given[number] < len(choice.usable):
                given[number] += 1
                count -= 1
    return [(choice, part) for choice, part in zip(order, given, strict=True) if part]


def _consolidated(choices: Sequence[_Choice], count: int, sizes: Mapping[str, int], alike: bool) -> list[_Part] | None:
    """On one node what one node can hold; else wholly free nodes, and the rest on the emptiest other one."""
    if count <= max(sizes.values(), default=0):
        one = _best(choices, count, alike)
        return None if one is None else [(one, count)]
    parts: list[_Part] = []
    rest = sorted(choices, key=lambda choice: -len(choice.usable))
    for choice in list(rest):
        size = len(choice.usable)
        if size == sizes[choice.site.name] and size <= count:
            rest.remove(choice)
            parts.append((choice, size))
            count -= size
    if count == 0:
        return parts
    # What is left over does not fill any wholly free node.
    if not rest or len(rest[0].usable) < count:
        return None
    return [*parts, (rest[0], count)]


def _regular(choices: Sequence[_Choice], request: Request, alike: bool) -> list[_Part] | None:
    """The same number on each of several nodes."""
    number = request.gpus // request.per_node
    rest = list(choices)
    if request.placement is Placement.SPREAD:
        rest = sorted((c for c in rest if len(c.usable) >= request.per_node), key=lambda c: -len(c.usable))
        return None if len(rest) < number else [(choice, request.per_node) for choice in rest[:number]]
    parts: list[_Part] = []
    for _ in range(number):
        choice = _best(rest, request.per_node, alike)
        if choice is None:
            return None
        rest.remove(choice)
        parts.append((choice, request.per_node))
    return parts


def _site(info: NodeInfo) -> Site:
    uuids = tuple(device.uuid for device in info.devices)
    scores = {info.links[one][other] for one in range(len(uuids)) for other in range(one) if info.links}
    if len(scores) > 1:
        return Site(info.name, uuids, Links(info.links), 0)
    return Site(info.name, uuids, None, scores.pop() if scores else 0)
