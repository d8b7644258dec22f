"""How simulated GPUs are connected: some machines that there are, as scores between their GPUs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

ALLOWED = "nvswitch, dgx1 (8 GPUs), pairs (bridges of NVLinks), 2numa (so many NUMA nodes), mig-3g.20gb+mig-2g.10gb"
#: A topology is a table of each GPU by each.
MAX_GPUS = 64

_NVLINK = 100
_SAME_SWITCH, _SAME_CPU, _OTHER_CPU = 50, 20, 10
_SWITCHED_LINKS, _BRIDGE_LINKS = 18, 4
_NUMA = re.compile(r"([2-9])numa")
# NVLinks of the hybrid cube mesh; each GPU has six.
_CUBE = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """What one simulated device is a part of.

    Attributes:
        topology: name, empty for GPUs that are connected alike.
        group: number of its group in the spec, within which that holds.
        place: its number in the group.
        of: how many the group has.
    """

    topology: str = ""
    group: int = 0
    place: int = 0
    of: int = 1


def check(topology: str, count: int) -> str:
    """Why so many GPUs cannot be connected like that; empty if they can."""
    numa = _NUMA.fullmatch(topology)
    if not numa and topology not in ("nvswitch", "dgx1", "pairs"):
        return f"there is no topology {topology[:40]!r}, only {ALLOWED}"
    if topology == "dgx1" and count != 8:
        return f"a dgx1 has 8 GPUs, not {count}"
    if numa and count < int(numa[1]):
        return f"{count} GPUs cannot be on {numa[1]} NUMA nodes"
    if count > MAX_GPUS:
        return f"at most {MAX_GPUS} GPUs can be given a topology, not {count}"
    return ""


def numa_node(part: Part) -> int:
    """The NUMA node of a device, -1 where that is not simulated."""
    if part.topology == "dgx1":
        return part.place // 4
    numa = _NUMA.fullmatch(part.topology)
    return part.place * int(numa[1]) // part.of if numa else -1


def links(parts: Sequence[Part], instances: Sequence[bool]) -> tuple[tuple[int, ...], ...]:
    """`NodeInfo.links` of a node; empty where nothing is said about any of its GPUs.

    Args:
        parts: its devices, by index.
        instances: which of them are MIG instances; nothing connects those.
    """
    if not any(part.topology for part in parts):
        return ()
    numbers = range(len(parts))
    return tuple(
        tuple(0 if one == other or instances[one] or instances[other] else _score(parts[one], parts[other])
              for other in numbers)
        for one in numbers
    )  # fmt: skip


def _score(one: Part, other: Part) -> int:
    if one.group != other.group:
        return _OTHER_CPU
    low, high = sorted((one.place, other.place))
    match one.topology:
        case "nvswitch":
            return _NVLINK * _SWITCHED_LINKS
        case "dgx1":
            pcie = _SAME_SWITCH if low // 2 == high // 2 else _SAME_CPU if low // 4 == high // 4 else _OTHER_CPU
            return _NVLINK * _CUBE.get((low, high), 0) + pcie
        case "pairs":
            return _NVLINK * _BRIDGE_LINKS + _SAME_CPU if low // 2 == high // 2 else _SAME_CPU
        case _:
            return _SAME_CPU if numa_node(one) == numa_node(other) else _OTHER_CPU
