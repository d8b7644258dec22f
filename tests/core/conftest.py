"""Fixtures of the core's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from core.support import Box


@pytest.fixture
def box() -> Iterator[Callable[..., Box]]:
    """Boxes to order: `box("4xH100", "2xA100", confirm_within=3)`. Notices that nobody expected fail the test."""
    boxes: list[Box] = []

    def make(*shapes: str, **options: float) -> Box:
        boxes.append(Box(*shapes, **options))
        return boxes[-1]

    yield make
    for one in boxes:
        one.assert_all_told()
