"""Two servers that all tests here share, and which each test finds as if they were new; but for their job numbers.

A test that kills, stops or configures its server asks for one of its own: `own`, or `server_factory`.
"""

import logging

import pytest

from gpusched.client import Client
from gpusched.client.session import live_sessions
from support.server import Server
from support.tidy import tidy


@pytest.fixture(scope="session")
def shared():
    """Gives the started server for a number of simulated GPUs."""
    servers = {}

    def get(simulate, *args):
        if simulate not in servers:
            servers[simulate] = Server(simulate, args=args).start()
        return servers[simulate]

    get.servers = servers
    yield get
    for server in servers.values():
        server.close()


@pytest.fixture
def server(shared):
    """Eight simulated GPUs."""
    server = shared("8")
    yield server
    clean_up(server, shared.servers)


@pytest.fixture
def server_of_one(shared):
    """One simulated GPU, and little patience."""
    server = shared("1", "--grace", "1s", "--confirm-within", "1s")
    yield server
    clean_up(server, shared.servers)


@pytest.fixture
def here(server, monkeypatch):
    """This very process is a user of the shared server of eight GPUs."""
    use(server, monkeypatch)
    return server


@pytest.fixture
def here_with_one(server_of_one, monkeypatch):
    """This very process is a user of the shared server of one GPU."""
    use(server_of_one, monkeypatch)
    return server_of_one


@pytest.fixture
def own(server_factory, monkeypatch):
    """This very process is a user of a server of eight GPUs that is this test's alone."""
    server = server_factory("8")
    use(server, monkeypatch)
    return server


def use(server, monkeypatch):
    for name in ("GPUSCHED_URL", "GPUSCHED_STATE_DIR", "GPUSCHED_AUTOSTART"):
        monkeypatch.setenv(name, server.env[name])
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def use_server(monkeypatch):
    return lambda server: use(server, monkeypatch)


@pytest.fixture
def client(here):
    with Client() as client:
        yield client


@pytest.fixture(autouse=True)
def no_lease_left_behind(request):
    """A test that forgets a lease would spoil the next one. Looked at before the servers are cleaned up."""
    for name in ("server", "server_of_one"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    logging.getLogger("gpusched.client").setLevel(logging.WARNING)
    yield
    left = live_sessions()
    for session in left:
        session.abandon()
    assert not left, "the test left a lease behind"


def clean_up(server, servers):
    """Make the server as good as new, or forget it if that fails."""
    try:
        tidy(server)
    except BaseException:
        servers.pop(next(key for key, value in servers.items() if value is server))
        server.close()
        raise
