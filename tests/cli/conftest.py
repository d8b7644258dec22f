"""One scheduler that most tests here share, and which each finds as if it were new; but for its job numbers.

A test that kills its server, or counts its ended jobs, asks for one of its `own`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.server import Server
from support.tidy import tidy


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server("8") as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """Eight simulated GPUs."""
    yield shared
    tidy(shared)


@pytest.fixture
def own(server_factory: Callable[..., Server]) -> Server:
    """Eight simulated GPUs of a server that is this test's alone."""
    return server_factory("8")
