"""The wall clock is set, by hours, under a real server: what is due after a time is due after it all the same."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from batch.box import SOON, Box, Gate, retry, state_of
from support.waiting import wait_until

NewBox = Callable[..., Box]
HOUR = 3600
SOURCE = Path(__file__).with_name("wall_clock.c")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]


class WallClock:
    """Of one server and all that it starts, but the jobs; the monotonic clock goes on as it is."""

    def __init__(self, directory: Path) -> None:
        library = directory / "wall_clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True)
        self._path = directory / "ahead"
        self._path.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(self._path)}

    def set(self, ahead: int) -> None:
        """So many seconds ahead of the real one."""
        with self._path.open("r+b") as file:
            file.write(struct.pack("q", ahead))


@pytest.mark.parametrize("jump", [3 * HOUR, -3 * HOUR])
def test_the_wall_clock_is_set(new_box: NewBox, tmp_path: Path, gate: Gate, jump: int) -> None:
    wall = WallClock(tmp_path)
    box = new_box("2", args=("--window", "3s", "--grace", "1s"), env=wall.environment)
    runs = box.submit(f"echo pid $$; {gate.words}; exit 5", time_limit=600)
    pauses = box.submit("exit 1", retry=retry(1, 600.0))
    begins = box.submit("true", begin_at=Timestamp(seconds=int(time.time()) + 600))
    box.said(runs, "pid")
    wait_until(lambda: box.attached(runs), SOON)
    wait_until(lambda: box.reason(pauses) == "BACKOFF", SOON)

    def nothing_is_due() -> None:
        settled = time.monotonic() + 1.5
        while time.monotonic() < settled:
            assert [box.state(each) for each in (runs, pauses, begins)] == ["RUNNING", "QUEUED", "QUEUED"]
            time.sleep(0.05)

    wall.set(jump)
    nothing_is_due()
    after = box.submit("true")
    assert state_of(box.ended(after)) == "COMPLETED"
    # The next server reads the wall clock anew. What was promised of it has come, or has not, by what it says.
    box.server.kill()
    box.server.start()
    if jump > 0:
        assert state_of(box.ended(begins)) == "COMPLETED"
        begins = box.submit("true", begin_at=Timestamp(seconds=int(time.time()) + jump + 600))
    nothing_is_due()
    settled = time.monotonic() + 4.5  # beyond the window and the grace
    while time.monotonic() < settled:
        assert box.state(runs) == "RUNNING"
        time.sleep(0.05)
    assert abs(box.job(runs).started_at.seconds - time.time() - jump) < 60, "shown by the clock as it is now"
    gate.open()
    job = box.ended(runs)
    assert (state_of(job), job.outcome.exit_status) == ("FAILED", 5)
