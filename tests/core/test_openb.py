"""Placement on a real cluster's nodes and pods, against the published figures of the fragmentation study (ATC'23).

6,212 GPUs; pods drawn anew up to 130 % of them, in random order, none of which ever ends. What counts is how much of
the GPUs is given out at the end. The study's two simple policies choose a node; which GPUs of the node, and whether
it has the cores, the memory and the parts of GPUs that a pod wants, is the placement's own doing (`core.sharing`).

The trace is not part of the project: it is looked for in `../shared/traces`, or where GPUSCHED_TRACES says.
"""

from __future__ import annotations

import csv
import gzip
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gpusched.scheduler.core import sharing
from gpusched.scheduler.core.model import DeviceInfo, NodeInfo, Request
from gpusched.scheduler.core.placement import Layout
from gpusched.scheduler.core.sharing import HOST, Host, Room, Rules

TRACES = Path(os.environ.get("GPUSCHED_TRACES") or Path(__file__).resolve().parents[3] / "shared" / "traces") / "openb"
SEEDS = 2
RULES = Rules(reserve=0.0, mixed=True)
WHOLE = 1000  # thousandths of a GPU

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Site:
    """A node of the trace, one GPU's memory being its thousandths; the sums are kept for the policies' sake."""

    def __init__(self, row: dict[str, str]) -> None:
        name, count = row["sn"], int(row["gpu"])
        devices = tuple(DeviceInfo(f"{name}/{i}", i, name, row["model"], WHOLE) for i in range(count))
        self.layout = Layout([NodeInfo(name, devices)])
        self.infos = {info.uuid: info for info in devices}
        self.places = {info.uuid: (name, info.index) for info in devices}
        self.eligible = frozenset([*self.infos, HOST + name])
        self.name, self.milli = name, WHOLE * count
        self.room = Room.of({name: list(range(count))}, {}, {name: Host(int(row["cpu_milli"]), int(row["memory_mib"]))})
        self.widest = WHOLE  # of all GPUs that are shared or free, the most that is left

    def may_hold(self, request: Request) -> bool:
        """Quickly, whether there is any use in asking the placement; never wrongly False."""
        if request.shared and self.widest < request.memory_bytes:
            return False
        return self.milli >= request.gpus * request.memory_bytes and self.room.hosts[self.name].holds(
            request.cpus, request.host_bytes
        )

    def place(self, request: Request) -> sharing.Grant | None:
        return sharing.place(self.layout, self.infos, self.room, request, self.eligible, RULES)

    def take(self, request: Request, grant: sharing.Grant) -> None:
        self.room = sharing.without(self.room, grant, self.places)
        self.milli -= request.gpus * (request.memory_bytes or WHOLE)
        left = [RULES.left(self.infos[uuid], shares) for uuid, shares in self.room.shares.items()]
        self.widest = WHOLE if self.room[self.name] else max(left, default=0)


Choose = Callable[[list[Site], Request, random.Random], list[Site]]


def at_random(sites: list[Site], request: Request, dice: random.Random) -> list[Site]:
    order = sites[:]
    dice.shuffle(order)
    return order


def best_fit(sites: list[Site], request: Request, dice: random.Random) -> list[Site]:
    """Where the least is left of cores and GPUs together, by the study's measure: a whole number from 0 to 100."""
    need = request.gpus * (request.memory_bytes or WHOLE)

    def left(site: Site) -> int:
        cpus = site.room.hosts[site.name].cpus - request.cpus
        return int(100 * (0.5 * cpus / 128_000 + 0.5 * (site.milli - need) / 8_000))

    return sorted(sites, key=left)


def read(name: str) -> list[dict[str, str]]:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"there is no {path}; GPUSCHED_TRACES can name another place")
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


def request_of(pod: dict[str, str]) -> Request:
    gpus, milli = int(pod["num_gpu"]), int(pod["gpu_milli"])
    shared = gpus == 1 and milli < WHOLE
    return Request(
        gpus,
        memory_bytes=milli if shared else 0,
        shared=shared,
        per_node=gpus,
        cpus=int(pod["cpu_milli"]),
        host_bytes=int(pod["memory_mib"]),
    )


def allocated(choose: Choose, seed: int) -> float:
    """The part of all GPUs that is given out when nothing more comes, in percent."""
    dice = random.Random(seed)
    sites = [Site(row) for row in read("openb_node_list_gpu_node.csv.gz")]
    pods = [request_of(row) for row in read("openb_pod_list_default.csv.gz")]
    capacity = sum(site.milli for site in sites)
    size = {pod: pod.gpus * (pod.memory_bytes or WHOLE) for pod in pods}
    total = sum(size[pod] for pod in pods)
    while total < 1.3 * capacity:
        pods.append(dice.choice(pods))
        total += size[pods[-1]]
    dice.shuffle(pods)
    for pod in pods:
        for site in choose([site for site in sites if site.may_hold(pod)], pod, dice):
            grant = site.place(pod)
            if grant is not None:
                site.take(pod, grant)
                break
    return 100 * (capacity - sum(site.milli for site in sites)) / capacity


@pytest.mark.parametrize(("choose", "published"), [(at_random, 87.46), (best_fit, 93.07)])
def test_as_much_is_given_out_as_was_published(choose: Choose, published: float) -> None:
    found = [allocated(choose, seed) for seed in range(SEEDS)]
    assert sum(found) / SEEDS == pytest.approx(published, abs=0.3), found
