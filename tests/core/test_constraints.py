"""What may be asked of GPUs and nodes: refused with what there is, or waited for and explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.support import GIB, Box, make_nodes
from gpusched.scheduler.core.constraints import check_request, describe
from gpusched.scheduler.core.errors import DomainError, Invalid, NotSatisfiable
from gpusched.scheduler.core.explain import Code, lines
from gpusched.scheduler.core.model import DeviceInfo, NodeInfo, Placement, Request
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.states import State

NewBox = Callable[..., Box]

MIG = DeviceInfo("MIG-1", 0, "c", "A100 MIG 3g.20gb", 20 * GIB, parent=0, labels=(("mig", "3g.20gb"),))
POOL = Pool((*make_nodes("4xH100:80", "2xA100:40"), NodeInfo("c", (MIG,), local=False, labels={"disk": "nvme"})))


def refusal(gpus: int = 1, **asked: Any) -> DomainError:
    with pytest.raises(DomainError) as caught:
        check_request(Request(gpus, **asked), POOL)
    error = caught.value
    assert error.message.startswith(f"{error.field}: ")
    assert len(error.message) < 400 and error.message.isprintable()
    return error


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"nodes": ("a\n",)}, "resources.nodes", "128 printable"),
        ({"gpu_ids": ("x" * 2000,)}, "resources.gpu_ids", "128 printable"),
        ({"exclude": ("\x1b[2J",)}, "resources.exclude", "128 printable"),
        ({"labels": (("k", "v\n"),)}, "resources.labels", "128 printable"),
        ({"labels": (("", "v"),)}, "resources.labels", "give KEY=VALUE"),
        ({"exclude": tuple(map(str, range(257)))}, "resources.exclude", "at most 256 are allowed, not 257"),
        ({"per_node": -1}, "resources.gpus_per_node", "must not be negative"),
        ({"gpus": 5, "per_node": 2}, "resources.gpus_per_node", "5 GPUs in all cannot be 2 on each node"),
        ({"gpus": 1, "per_node": 2}, "resources.gpus_per_node", "ask for 2 GPUs, or a multiple of that"),
    ],
)
def test_malformed(asked: dict[str, Any], field: str, said: str) -> None:
    error = refusal(**asked)
    assert isinstance(error, Invalid) and error.field == field and said in error.message


@pytest.mark.parametrize(
    ("asked", "field", "reason", "said"),
    [
        ({"nodes": ("a", "z")}, "resources.nodes", "UNKNOWN_NODE", "there is no node 'z'; there is a, b, c"),
        ({"gpu_ids": ("7",)}, "resources.gpu_ids", "UNKNOWN_GPU", "no GPU '7'; there is a:0 to a:3, b:0"),
        ({"gpu_ids": ("z:0",)}, "resources.gpu_ids", "UNKNOWN_GPU", "no GPU 'z:0'"),
        ({"gpu_ids": ("GPU-1",), "node": "b"}, "resources.gpu_ids", "UNKNOWN_GPU", "there is b:0 to b:1 (an"),
        ({"exclude": ("z",)}, "resources.exclude", "UNKNOWN_GPU", "no GPU or node 'z'; there is a, b, c"),
        ({"labels": (("disk", "hdd"),)}, "resources.labels", "UNKNOWN_LABEL", "disk=hdd; there is disk=nvme"),
        ({"labels": (("mig", "7g"),)}, "resources.labels", "UNKNOWN_LABEL", "mig=7g; there is mig=3g.20gb"),
        ({"labels": (("x", "y"),)}, "resources.labels", "UNKNOWN_LABEL", "none has a label of that name"),
        ({"labels": (("disk", "nvme"),), "node": "a"}, "resources.labels", "UNKNOWN_LABEL", "on node a"),
        ({"node": "a", "nodes": ("b",)}, "resources.nodes", "NOT_SATISFIABLE", "runs on node a, and can only use"),
        ({"gpus": 3, "gpu_ids": ("0", "1")}, "resources.gpus", "NOT_SATISFIABLE", "only 2 that will do (of GPUs 0, 1)"),
        ({"node": "a", "gpu_ids": ("b:0",)}, "resources.gpus", "NOT_SATISFIABLE", "0 that will do on node a (of GPU"),
        ({"gpus": 5, "exclude": ("a", "b")}, "resources.gpus", "NOT_SATISFIABLE", "only 1 that will do (without a, b)"),
        ({"gpus": 2, "labels": (("disk", "nvme"),)}, "resources.gpus", "NOT_SATISFIABLE", "(labelled disk=nvme)"),
        ({"memory_bytes": 60 * GIB, "exclude": ("a",)}, "resources.gpus", "NOT_SATISFIABLE", "60 GiB each without a"),
        ({"gpus": 6, "per_node": 3}, "resources.gpus_per_node", "NOT_SATISFIABLE", "2 nodes; only 1 has that many"),
        ({"gpus": 6, "per_node": 2}, "resources.gpus_per_node", "NOT_SATISFIABLE", "only 2 have that many"),
        ({"gpus": 5, "per_node": 5}, "resources.gpus_per_node", "NOT_SATISFIABLE", "the largest has 4"),
    ],
)  # fmt: skip
def test_what_can_never_be_had(asked: dict[str, Any], field: str, reason: str, said: str) -> None:
    error = refusal(**asked)
    assert isinstance(error, NotSatisfiable) and (error.field, error.reason) == (field, reason)
    assert said in error.message


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 30))
def test_whole_nodes_and_a_rest_can_be_had_of_idle_nodes(sizes: list[int], gpus: int) -> None:
    """So that nothing else needs to be refused."""
    pool = Pool(make_nodes(*map(str, sizes)))
    found = pool.place(Request(gpus, placement=Placement.CONSOLIDATE))
    assert (found is not None) == (gpus <= sum(sizes))


@pytest.mark.parametrize(
    "asked",
    [
        {"gpus": 2, "nodes": ("b",), "gpu_ids": ("b:0", "b1")},
        {"gpus": 4, "per_node": 2, "placement": Placement.SPREAD},
        {"labels": (("disk", "nvme"), ("mig", "3g.20gb"))},
        {"gpus": 6, "placement": Placement.CONSOLIDATE},
        {"exclude": ("0", "c", "b1"), "gpus": 4},
    ],
)
def test_what_can_be_had(asked: dict[str, Any]) -> None:
    request = Request(**{"gpus": 1, **asked})
    check_request(request, POOL)
    assert POOL.place(request) is not None


def test_in_words() -> None:
    request = Request(
        4,
        gpu_ids=("0", "1"),
        exclude=tuple("123456789"),
        labels=(("disk", "nvme"),),
        nodes=("a", "b"),
        per_node=2,
        placement=Placement.SPREAD,
    )
    assert describe(request) == (
        "on nodes a, b of GPUs 0, 1 without 1, 2, 3, 4, 5, 6, 7, 8, … labelled disk=nvme 2 on each node "
        "spread over nodes"
    )
    assert describe(Request(3)) == ""


def test_busy_is_waited_for_and_explained(box: NewBox) -> None:
    b = box("4", "4")
    holder = b.submit(1, user="bob", node="a")
    b.submit(1, user="carl", node="b")
    job = b.submit(8, per_node=4)
    reason = b.why(job)
    assert reason.code is Code.RESOURCES
    assert reason.message == "needs 8 GPUs (4 on each node), 6 free; GPU a:0 held by bob; GPU b:0 held by carl"
    account = lines(b.engine, b.job(job), reason, b.now)
    assert "It asks for 8 GPUs 4 on each node; 8 GPUs could serve, 6 free now." in account
    b.cancel(job)
    job = b.submit(4, placement=Placement.CONSOLIDATE)
    reason = b.why(job)
    assert reason.code is Code.RESOURCES, "6 are free, and yet it is not about to start"
    assert reason.message.startswith("needs 4 GPUs on one node or whole ones, 6 free; GPU")
    b.release(holder)
    assert b.state(job) is State.RUNNING and b.gpus(job) == ("a0", "a1", "a2", "a3")
