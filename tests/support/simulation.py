"""Handles of a test server's simulated GPUs."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from gpusched.client.transport import open_channel
from gpusched.v1 import resources_pb2, simulation_pb2, simulation_pb2_grpc


def set_gpu(
    address: str,
    gpu: int | str,
    *,
    processes: list[tuple[int, int]] | None = None,
    fault: str | None = None,
    linger: float | None = None,
    utilization: int | None = None,
) -> Any:
    """Change a simulated GPU, as the server's own user.

    Args:
        processes: (pid, bytes) of all that sit on it; None leaves them.
        fault: in words, empty to clear; None leaves it.
        linger: seconds that a holder's process stays after each release.
        utilization: percent.
    """
    request = simulation_pb2.SetSimulatedGpuRequest(gpu=str(gpu), fault=fault, utilization_percent=utilization)
    if processes is not None:
        request.set_processes = True
        request.processes.extend(
            resources_pb2.GpuProcess(pid=pid, user="test", command="python", memory_bytes=size)
            for pid, size in processes
        )
    if linger is not None:
        request.linger.CopyFrom(Duration(seconds=int(linger), nanos=int(linger % 1 * 1e9)))
    with open_channel(address) as channel:
        stub = simulation_pb2_grpc.SimulationStub(channel)
        try:
            return stub.SetSimulatedGpu(request, timeout=10).gpu
        except grpc.RpcError as error:
            raise AssertionError(f"SetSimulatedGpu: {error}") from None
