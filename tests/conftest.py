"""Fixtures that all rooms share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from support.server import Server

# In CI the same examples each time: a change is judged by what it changes. At a desk Hypothesis goes on looking.
# No deadlines: how long an example takes is the machine's affair.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


# Started in the background of a script, or under nohup, we ignore these; and so would all that the tests start.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.fixture(autouse=True)
def no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `GPUSCHED_*` variable of the person who runs the tests must not reach them."""
    for name in list(os.environ):
        if name.startswith("GPUSCHED_"):
            monkeypatch.delenv(name)


@pytest.fixture
def server_factory() -> Iterator[Callable[..., Server]]:
    """Servers to order, closed at the end: `server_factory("2x8", args=(...))` gives a started one."""
    servers: list[Server] = []

    def make(simulate: str = "8", **options: object) -> Server:
        server = Server(simulate, **options)  # type: ignore[arg-type]
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def server(server_factory: Callable[..., Server]) -> Server:
    """One server with eight simulated GPUs."""
    return server_factory("8")
