"""One server and one agent for all tests that do not hurt them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.running import Job, Runner
from support.server import Server

GPUS = 4


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    """Four simulated GPUs, for the whole run."""
    with Server(str(GPUS)) as server:
        yield server


@pytest.fixture(scope="session")
def shared_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """For tests that do not hurt it."""
    with Runner(tmp_path_factory.mktemp("runner")) as runner:
        yield runner


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    """One to be hurt."""
    with Runner(tmp_path / "runner") as runner:
        yield runner


@pytest.fixture
def lease() -> Iterator[Callable[..., Job]]:
    """`lease(server, gpus)` gets one, cleaned up after the test."""
    jobs: list[Job] = []

    def make(server: Server, gpus: int = 1) -> Job:
        jobs.append(Job(server, gpus))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()
