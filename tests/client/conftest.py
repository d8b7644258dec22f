import logging

import pytest

from gpusched.client import Client
from gpusched.client.session import live_sessions


@pytest.fixture
def here(server, monkeypatch):
    """This very process is a user of the test server."""
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
def no_lease_left_behind():
    """A test that forgets a lease would spoil the next one."""
    logging.getLogger("gpusched.client").setLevel(logging.WARNING)
    yield
    left = live_sessions()
    for session in left:
        session.abandon()
    assert not left, "the test left a lease behind"
