"""What was acknowledged is there: after `kill -9` in the middle of commits, and after the power went."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpusched.scheduler.core.records import Batch
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.sqlite import sqlite_url
from store.records import event, job, lease, submitted

ROUNDS = 4
GROUP = 8

WRITER = """
import sys
from pathlib import Path
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.sqlite import sqlite_url
from store.test_crash import turn

store = DatabaseStore(sqlite_url(Path(sys.argv[1])))
store.open()
for number in range(int(sys.argv[2]), sys.maxsize):
    store.commit(turn(number))
    print(number, flush=True)
"""


def turn(number: int) -> Batch:
    """Group `number`: eight jobs with history; the last of them takes all GPUs from the last of the group before."""
    ids = range(number * GROUP + 1, (number + 1) * GROUP + 1)
    before = (job(ids[0] - 1, "completed", ended_at=float(number)),) if number else ()
    return Batch(
        jobs=(*before, *(job(id) for id in ids[:-1]), job(ids[-1], "running")),
        events=tuple(event(id, f"line {line}") for id in ids for line in range(3)),
        ended=((number, float(number)),) if number else (),
        leases=(lease(number + 1, ids[-1], "GPU-a", "GPU-b"),),
        settings={"last": str(number)},
        # Every other one is only to outlive the process.
        sync=number % 2 == 0,
    )


def whole_groups(store: DatabaseStore) -> int:
    """How many groups there are from the first; fails if one is there in part, or anything else is."""
    boot = store.open()
    last = int(boot.settings.get("last", -1))
    there = range(1, (last + 1) * GROUP + 1)
    ended = store.ended_jobs(limit=sys.maxsize)
    assert sorted(kept.id for kept in (*boot.jobs, *ended)) == list(there)
    assert [kept.id for kept in ended] == [(number + 1) * GROUP for number in range(last - 1, -1, -1)]
    assert [kept.id for kept in boot.jobs if kept.state == "running"] == ([there[-1]] if there else [])
    assert all(len(store.events(id)) == 3 for id in there)
    assert store.check() == []
    return last + 1


@pytest.mark.slow
def test_kill_in_the_middle_of_commits(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    dice = random.Random(os.urandom(8))
    groups = 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(groups)], stdout=subprocess.PIPE, text=True, env=environment
        ) as writer:
            assert writer.stdout is not None
            told = [writer.stdout.readline() for _ in range(dice.randint(1, 60))]
            writer.send_signal(signal.SIGKILL)
            told += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        assert all(line.endswith("\n") for line in told)
        acknowledged = int(told[-1]) + 1
        store = DatabaseStore(sqlite_url(path))
        groups = whole_groups(store)
        store.close()
        # The last may have been kept when there was no time left to tell.
        assert groups in (acknowledged, acknowledged + 1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Mounts images of disks, the first time with a new file system on them; `disk(image)` says where."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not there")
    mounted: list[Path] = []

    def mount(image: Path) -> Path:
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(16 << 20)
            subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        place = tmp_path / f"on-{image.name}"
        place.mkdir()
        done = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount an image of a disk: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_power_loss(disk: Callable[[Path], Path], tmp_path: Path) -> None:
    """A copy of the disk as it is at a moment has what was written to it, and not what only the kernel knows of."""
    image = tmp_path / "image"
    store = DatabaseStore(sqlite_url(disk(image) / "state.db"))
    boot = store.open()
    copies = []
    for number in range(5):
        shutil.copy(image, tmp_path / f"copy-{number}")
        copies.append(tmp_path / f"copy-{number}")
        store.commit(turn(2 * number))
        if number < 4:
            store.commit(turn(2 * number + 1))
    store.close()
    for number, copy in enumerate(copies):
        after = DatabaseStore(sqlite_url(disk(copy) / "state.db"))
        # Synced with the last even one: all before it. What came after it, unsynced, is there as a whole or not at all.
        assert whole_groups(after) in ((2 * number - 1, 2 * number) if number else (0,))
        again = after.open()
        assert (again.state_id, again.starts) == (boot.state_id, 3)
        after.commit(submitted(10_000))
        after.close()
