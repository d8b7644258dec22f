"""Old jobs are forgotten with their logs; nothing else is."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batch.box import SOON, Box, Gate, retry, state_of
from support.waiting import wait_until

NewBox = Callable[..., Box]


@pytest.mark.slow
def test_old_jobs_and_their_logs_are_forgotten(new_box: NewBox, gate: Gate) -> None:
    box = new_box("2", args=("--keep", "1h"))
    old, young = box.submit("echo old; exit 1", retry=retry(1)), box.submit("echo young")
    silent = box.submit(f"echo on; {gate.words}")
    for each in (old, young):
        box.ended(each)
    box.said(silent, "on")
    box.server.stop()
    logs = box.server.state_dir / "logs"
    strangers = [logs / "notes.log", logs / "7.txt"]
    for stranger in strangers:
        stranger.write_text("not ours")
    # All logs are old; so is one job. A quiet job has written its last line long before it ends.
    ago = time.time() - 7200
    for path in logs.iterdir():
        os.utime(path, (ago, ago))
    with sqlite3.connect(box.server.state_dir / "state.db") as state:
        assert state.execute("UPDATE jobs SET ended_at = ? WHERE id = ?", (ago, int(old))).rowcount == 1
    state.close()
    box.server.start()
    wait_until(lambda: not log_names(logs, old), SOON, "the old job's logs are removed")
    assert log_names(logs, young) == [f"{young}.1.log"], "its job is still kept"
    assert log_names(logs, silent) == [f"{silent}.1.log"], "its job still runs"
    assert all(stranger.exists() for stranger in strangers)
    for command in ("job", "logs", "wait", "requeue", "explain"):
        done = box.quick(command, old)
        assert done.returncode == 1
        assert f"there is no job {old} (ended jobs are kept for a while only)".encode() in done.stderr
    assert f"\n{old} " not in box.good("jobs", "--all")
    assert box.log(young) == b"young\n"
    gate.open()
    assert state_of(box.ended(silent)) == "COMPLETED"
    assert box.log(silent) == b"on\n"
    assert int(box.submit("true")) > int(silent), "numbers are not given out again"


def log_names(logs: Path, job_id: str) -> list[str]:
    return sorted(path.name for path in logs.glob(f"{job_id}.*.log"))
