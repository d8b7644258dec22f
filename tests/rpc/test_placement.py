"""Placement and conditions through the service: what is asked comes back, and decides what is had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from gpusched.v1 import resources_pb2, scheduler_pb2
from rpc.calls import Client
from rpc.servers import running
from support.server import Server

INVALID, NEVER = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running(
        "8xV100@dgx1,1xA100:40GB@mig-3g.20gb+mig-2g.10gb", "--label", "disk=nvme", "--label", "rack=4"
    ) as server:
        yield server


async def had(client: Client, gpus: int = 1, **resources: Any) -> scheduler_pb2.Granted:
    request = resources_pb2.ResourceRequest(gpus=gpus, **resources)
    stream = client.open(scheduler_pb2.AcquireRequest(resources=request))
    granted = await stream.granted()
    stream.cancel()
    await client.eventually(client.status, lambda status: status.gpus_allocated == 0)
    return granted


async def test_links_are_shown_and_heeded(client: Client) -> None:
    (node,) = (await client.scheduler.ListNodes(scheduler_pb2.ListNodesRequest())).nodes
    assert dict(node.labels) == {"disk": "nvme", "rack": "4"}
    assert [len(row.scores) for row in node.links] == [10] * 10
    assert node.links[2].scores[3] == 250 and node.links[8].scores[9] == 0
    gpus = await client.gpus()
    assert [gpu.numa_node for gpu in gpus[:8]] == [0] * 4 + [1] * 4 and not gpus[8].HasField("numa_node")
    assert gpus[8].parent_index == 8 and not gpus[0].HasField("parent_index")
    assert dict(gpus[8].labels) == {"mig": "3g.20gb"}
    assert [gpu.index for gpu in (await had(client, 2, gpu_model="v100")).gpus] == [2, 3]
    assert [gpu.index for gpu in (await had(client, 4, exclude=["1"], gpu_model="v100")).gpus] == [4, 5, 6, 7]


async def test_a_mig_instance_is_named_by_its_uuid(client: Client) -> None:
    granted = await had(client, labels={"mig": "3g.20gb", "disk": "nvme"})
    (gpu,) = granted.gpus
    assert gpu.uuid.startswith("MIG-") and gpu.memory_bytes == 20 << 30
    assert granted.environment["CUDA_VISIBLE_DEVICES"] == granted.environment["NVIDIA_VISIBLE_DEVICES"] == gpu.uuid
    # Nor are the other GPUs of that machine numbered as CUDA does.
    granted = await had(client, gpu_ids=["0"])
    assert granted.environment["CUDA_VISIBLE_DEVICES"] == granted.gpus[0].uuid


async def test_what_is_asked_comes_back(client: Client) -> None:
    about = (await client.status()).node
    asked = resources_pb2.ResourceRequest(
        gpus=2,
        nodes=[about],
        gpu_ids=["1", f"{about}:0"],
        exclude=["5"],
        labels={"rack": "4"},
        gpus_per_node=2,
        placement=resources_pb2.PLACEMENT_SPREAD,
    )
    stream = client.open(scheduler_pb2.AcquireRequest(resources=asked))
    granted = await stream.granted()
    assert [gpu.index for gpu in granted.gpus] == [0, 1]
    job = (await client.scheduler.GetJob(scheduler_pb2.GetJobRequest(job_id=granted.job_id))).job
    assert job.resources == asked
    stream.cancel()


async def test_busy_ones_are_waited_for(client: Client) -> None:
    first = client.open(scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1, gpu_ids=["3"])))
    await first.granted()
    second = client.open(scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1, gpu_ids=["3"])))
    queued = await second.queued_as(lambda seen: "free" in seen.reason.message)
    assert "needs 1 GPU, 0 free; GPU 3 held by" in queued.reason.message
    first.cancel()
    assert [gpu.index for gpu in (await second.granted()).gpus] == [3]
    second.cancel()


@pytest.mark.parametrize(
    ("resources", "code", "reason", "field"),
    [
        ({"placement": 9}, INVALID, "INVALID_REQUEST", "resources.placement"),
        ({"gpus_per_node": 2}, INVALID, "INVALID_REQUEST", "resources.gpus_per_node"),
        ({"nodes": ["mars"]}, NEVER, "UNKNOWN_NODE", "resources.nodes"),
        ({"gpu_ids": ["77"]}, NEVER, "UNKNOWN_GPU", "resources.gpu_ids"),
        ({"exclude": ["77"]}, NEVER, "UNKNOWN_GPU", "resources.exclude"),
        ({"labels": {"disk": "hdd"}}, NEVER, "UNKNOWN_LABEL", "resources.labels"),
    ],
)
async def test_refusals(
    client: Client, resources: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    request = resources_pb2.ResourceRequest(gpus=1, **resources)
    got = await client.open(scheduler_pb2.AcquireRequest(resources=request)).end()
    assert (got.code, got.reason, got.fields) == (code, reason, (field,))
    assert got.message.startswith(f"{field}: ")
