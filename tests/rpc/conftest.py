"""Real servers, one for many tests, and a look after each test that nothing was left behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from rpc.calls import Client, admin_token
from rpc.servers import another_user, assert_idle, assert_quiet, running
from support.server import Server


@pytest.fixture(scope="session")
def box() -> Iterator[Server]:
    """A server with eight simulated GPUs; modules that want another one have a fixture of this name."""
    with running("8") as server:
        yield server


@pytest.fixture
async def connect(box: Server) -> AsyncIterator[Callable[..., Client]]:
    """Makes clients of the module's server, or of an address; closed at the end, when the server must be idle."""
    clients: list[Client] = []
    before = len(box.log)

    def make(address: str = "", token: str = "") -> Client:
        client = Client(address or box.address, token)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()
    assert box.process is not None
    if box.process.poll() is None:
        await assert_idle(box.address)
    assert_quiet(box.log[before:])


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    """A client of the module's server."""
    return connect()


@pytest.fixture
async def operator(box: Server, connect: Callable[..., Client]) -> Client:
    """A client that sends the administrator's token."""
    return connect(token=await admin_token(box.address))


@pytest.fixture
def stranger(box: Server, connect: Callable[..., Client]) -> Iterator[Client]:
    """A client that the server sees as another user's."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with another_user(box.address) as address:
        yield connect(address)
