"""Servers with batch jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batch.box import Box, Gate
from support.server import Server


@pytest.fixture(scope="session")
def shared() -> Iterator[Box]:
    """One with eight GPUs that many tests use: leave nothing running on it, and change nothing of it."""
    with Server("8") as server:
        box = Box(server)
        yield box
        box.close()


@pytest.fixture
def new_box(server_factory: Callable[..., Server]) -> Iterator[Callable[..., Box]]:
    """Boxes of one's own, as `Server` makes them: `new_box("1", args=("--max-queue", "3"))`."""
    boxes: list[Box] = []

    def make(simulate: str = "8", **options: object) -> Box:
        boxes.append(Box(server_factory(simulate, **options)))
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.close()
