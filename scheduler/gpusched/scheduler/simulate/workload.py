"""What is replayed: jobs as a log tells them, and the machines they are to run on."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from gpusched.scheduler.core.model import DeviceInfo, NodeInfo

#: Seconds: whole where the log has whole ones, so that what is written is what was read.
Seconds: TypeAlias = int | float

#: Most GPUs that are simulated.
MAX_GPUS = 100_000

_NODES = re.compile(r"([0-9]+)\s*[xX]\s*([0-9]+)")


class SimulationError(Exception):
    """What is wrong with a log or with what is to become of it, in words for the user."""


class LoggedJob(NamedTuple):
    """One job of a log.

    Attributes:
        line: where it stands, from 1; 0 if nowhere.
        id: the log's own name for it.
        submit: when it was asked for, in seconds since whatever the log counts from.
        run: seconds that its work took, from 0.
        gpus: how many it needs (processors in logs of CPU clusters), at least 1.
        requested: seconds that its user asked for, None if not told.
        user: whose it is; empty if not told.
        priority: its tier.
        name: what its user called it; empty if not told. Similar runs have the same name (see `core.estimates`).
        estimate: seconds that its user expected it to take, None if not told.
    """

    line: int
    id: int | str
    submit: Seconds
    run: Seconds
    gpus: int
    requested: Seconds | None = None
    user: str = ""
    priority: int = 0
    name: str = ""
    estimate: Seconds | None = None


def flat_pool(gpus: int) -> tuple[NodeInfo, ...]:
    """One node with all GPUs. Raises SimulationError."""
    return _nodes([gpus], "--gpus")


def node_pool(text: str) -> tuple[NodeInfo, ...]:
    """Nodes out of `20x8` or `2x8,4x4`: so many nodes with so many GPUs each. Raises SimulationError."""
    sizes: list[int] = []
    for part in text.split(","):
        found = _NODES.fullmatch(part.strip())
        if found is None or len(part) > 20:
            raise SimulationError(f"--nodes: {text[:60]!r} is not understood; give NODESxGPUS such as 20x8 or 2x8,4x4")
        nodes, gpus = int(found[1]), int(found[2])
        if nodes < 1 or nodes > MAX_GPUS:
            raise SimulationError(f"--nodes: {nodes} nodes; allowed are 1 to {MAX_GPUS:,}")
        sizes += [gpus] * nodes
    return _nodes(sizes, "--nodes")


def _nodes(sizes: list[int], field: str) -> tuple[NodeInfo, ...]:
    if min(sizes) < 1 or sum(sizes) > MAX_GPUS:
        raise SimulationError(f"{field}: {sum(sizes):,} GPUs; allowed are 1 to {MAX_GPUS:,}, and 1 or more a node")
    return tuple(
        NodeInfo(
            name := f"node{number}",
            tuple(DeviceInfo(f"{name}:{index}", index, name, "simulated", 0, simulated=True) for index in range(gpus)),
        )
        for number, gpus in enumerate(sizes)
    )
