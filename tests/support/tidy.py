"""Making a server that several tests share as good as new between them; but for its job numbers."""

from __future__ import annotations

import time

import pytest

from gpusched.client import Client, GpuState
from support.server import Server
from support.simulation import set_gpu
from support.waiting import wait_until

BY_THEMSELVES_SECONDS = 5.0
"""How long the jobs of a test may take to end after it, before they are cancelled."""


def tidy(server: Server) -> None:
    """End what a test has left running, and put back what it has changed. Fails the test if that cannot be done."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("GPUSCHED_SERVER_USER", raising=False)
        with Client(server.address) as client:
            _end_jobs(client)
            _put_back(client)


def _end_jobs(client: Client) -> None:
    deadline = time.monotonic() + BY_THEMSELVES_SECONDS
    while left := client.jobs():
        if time.monotonic() > deadline:
            for job in left:
                client.cancel(job.id, "left behind by a test")
            wait_until(lambda: not client.jobs(), what="the end of cancelled jobs")
        time.sleep(0.01)


def _put_back(client: Client) -> None:
    if client.status().paused:
        client.resume()
    for gpu in client.gpus():
        if gpu.drained:
            client.undrain(gpu.uuid)
        if gpu.state is not GpuState.FREE:
            set_gpu(client.address, gpu.uuid, processes=[], fault="", linger=0)
        if gpu.utilization_percent:
            set_gpu(client.address, gpu.uuid, utilization=0)
    for node in client.nodes():
        if node.drained:
            client.undrain(node=node.name)
    wait_until(lambda: all(gpu.state is GpuState.FREE for gpu in client.gpus()), what="free GPUs")
