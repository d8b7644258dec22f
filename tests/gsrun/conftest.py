"""One scheduler for all tests of gsrun that do not hurt it, and gsruns that are cleaned up after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest

from gpusched.client.transport import open_channel
from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc
from gsrun.running import QUICK, Gsrun, Terminal
from support.server import Server
from support.waiting import wait_until

GPUS = 4


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables by which what starts here hundreds of times has not to compile itself each time."""
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("bytecode"))}


@pytest.fixture(scope="session")
def shared_server(compiled: dict[str, str]) -> Iterator[Server]:
    """Four simulated GPUs, for the whole run."""
    with Server(str(GPUS), env=compiled) as server:
        server.env |= compiled
        yield server


@pytest.fixture(scope="session")
def channel(shared_server: Server) -> Iterator[grpc.Channel]:
    with open_channel(shared_server.address) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> scheduler_pb2_grpc.SchedulerStub:
    return scheduler_pb2_grpc.SchedulerStub(channel)


@pytest.fixture
def idle(shared_server: Server, stub: scheduler_pb2_grpc.SchedulerStub) -> Iterator[Server]:
    """The shared server, with nothing running and nothing queued, before and after."""

    def is_idle() -> bool:
        status = stub.GetStatus(scheduler_pb2.GetStatusRequest(), timeout=QUICK)
        return bool(status.gpus_free == GPUS and status.jobs_running == status.jobs_queued == 0)

    wait_until(is_idle, QUICK, "an idle server before the test")
    yield shared_server
    wait_until(is_idle, QUICK, "an idle server after the test")


@pytest.fixture
def gsrun(idle: Server) -> Iterator[Callable[..., Gsrun]]:
    """`gsrun("-n", "2", "true")` starts one."""
    started: list[Gsrun] = []

    def start(*words: str, **more: object) -> Gsrun:
        started.append(Gsrun(idle, *words, **more))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for run in started:
        run.close()


@pytest.fixture
def own(request: pytest.FixtureRequest, compiled: dict[str, str]) -> Iterator[Server]:
    """A server with two GPUs that the test may kill; its parameter is a tuple of more arguments for it."""
    with Server("2", args=getattr(request, "param", ()), env=compiled) as server:
        server.env |= compiled
        yield server


@pytest.fixture
def at(own: Server) -> Iterator[Callable[..., Gsrun]]:
    """gsruns of that server."""
    started: list[Gsrun] = []

    def start(*words: str, **more: object) -> Gsrun:
        started.append(Gsrun(own, *words, **more))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for run in started:
        run.close()


@pytest.fixture
def terminal(idle: Server) -> Iterator[Terminal]:
    """An interactive shell on a terminal, `$GSRUN` set."""
    opened = Terminal(idle.env)
    yield opened
    opened.close()
