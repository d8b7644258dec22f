"""The engine's clock: it goes on, whatever the wall clock is set to."""

from __future__ import annotations

import pytest

from gpusched.scheduler.clock import Clock

HOURS = 3600.0


class Times:
    def __init__(self) -> None:
        self.wall, self.up = 1_000_000.0, 500.0

    def clock(self, boot: str = "boot") -> Clock:
        return Clock(lambda: self.wall, lambda: self.up, boot)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds


@pytest.mark.parametrize("jump", [3 * HOURS, -3 * HOURS])
def test_a_jump_of_the_wall_clock_means_nothing(jump: float) -> None:
    times = Times()
    clock = times.clock()
    assert clock.now() == 1_000_000.0
    times.wait(10)
    times.wall += jump
    assert clock.now() == 1_000_010.0
    times.wait(10)
    assert clock.now() == 1_000_020.0


@pytest.mark.parametrize("jump", [3 * HOURS, -3 * HOURS, 0.0])
def test_a_later_clock_knows_how_far_the_wall_clock_was_set(jump: float) -> None:
    times = Times()
    mark = times.clock().mark()
    times.wait(10)
    times.wall += jump
    assert times.clock().ahead_of(mark) == jump
    assert times.clock("another boot").ahead_of(mark) == 0.0
    assert times.clock("").ahead_of(times.clock("").mark()) == 0.0, "where nothing is known of boots"
    assert times.clock().ahead_of(None) == 0.0


def test_drift_is_no_shift() -> None:
    times = Times()
    mark = times.clock().mark()
    times.wall += 1.9
    assert times.clock().ahead_of(mark) == 0.0
