"""The store in memory, which other tests build upon, against SQLite: whatever happens, both say the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpusched.scheduler.core.records import Batch, EventRecord, JobRecord, LeaseRecord
from gpusched.scheduler.core.states import State
from gpusched.scheduler.ports import Store, StoreError
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.memory import MemoryStore
from gpusched.scheduler.store.sqlite import sqlite_url

# Where nothing waits for a disk, if there is such a place.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# Few of each, so that they meet often.
IDS = st.integers(1, 4)
EPOCHS = st.integers(1, 6)
TIMES = st.sampled_from([1.0, 2.0, 2.5, 3.0])
DEVICES = st.sampled_from(["GPU-a", "GPU-b", "GPU-c"])
TEXT = st.sampled_from(["", "a", "Ab", "İ", "ß", "%", "k\u212a"])

JOBS = st.builds(
    JobRecord,
    id=IDS,
    state=st.sampled_from([state.value for state in State]),
    kind=st.just("batch"),
    uid=st.sampled_from([0, 1000]),
    user=st.sampled_from(["root", "alice", "1000"]),
    name=TEXT,
    submitted_at=TIMES,
    ended_at=st.none() | TIMES,
    data=st.just("{}"),
)
EVENTS = st.builds(EventRecord, job=IDS, at=TIMES, state=st.just("queued"), message=TEXT, attempt=st.integers(0, 2))
LEASES = st.builds(
    LeaseRecord, epoch=EPOCHS, job=IDS, devices=st.lists(DEVICES, min_size=1, max_size=2).map(tuple), granted_at=TIMES
)
BATCHES = st.builds(
    Batch,
    jobs=st.lists(JOBS, max_size=3).map(tuple),
    events=st.lists(EVENTS, max_size=2).map(tuple),
    ended=st.lists(st.tuples(EPOCHS, TIMES), max_size=2).map(tuple),
    leases=st.lists(LEASES, max_size=2).map(tuple),
    settings=st.dictionaries(st.sampled_from("xyz"), st.none() | TEXT, max_size=2),
    sync=st.just(False),
)
STEPS = st.one_of(
    BATCHES.map(lambda batch: ("commit", batch)),
    st.tuples(st.just("prune"), TIMES, st.integers(0, 3)),
    st.just(("restart",)),
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state file to copy: making one takes longer than a whole example."""
    path = tmp_path_factory.mktemp("empty") / "state.db"
    store = DatabaseStore(sqlite_url(path))
    store.open()
    store.close()
    yield path


def step(store: Store, action: tuple[object, ...]) -> object:
    """Do it, and say how it went."""
    try:
        match action:
            case ("commit", Batch() as batch):
                return store.commit(batch)
            case ("prune", float(before), int(limit)):
                return store.prune(before, limit)
            case _:
                return asdict(store.open()) | {"state_id": ""}
    except StoreError as error:
        return f"refused, passing: {error.passing}"


def view(store: Store) -> dict[str, object]:
    """All that can be seen of a store."""
    return {
        "jobs": [store.job(id) for id in range(6)],
        "events": [store.events(id) for id in range(6)],
        "ended": store.ended_jobs(),
        "page": store.ended_jobs(after=(2.5, 2), limit=2),
        "by name": [store.ended_jobs(name=name) for name in ("a", "B", "i̇", "SS", "K", "%")],
        "by user": [(store.ended_jobs(user=user), store.count_ended(user=user)) for user in ("root", "1000", "0")],
        "check": sorted(store.check()),
    }


A_FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(A_FEW, max_examples=40)


@A_FEW
@given(steps=st.lists(STEPS, max_size=12))
def test_memory_and_sqlite_agree(empty: Path, steps: list[tuple[object, ...]]) -> None:
    agree(empty, steps)


@pytest.mark.slow
@MANY
@given(steps=st.lists(STEPS, max_size=12))
def test_memory_and_sqlite_agree_on_more(empty: Path, steps: list[tuple[object, ...]]) -> None:
    agree(empty, steps)


def agree(empty: Path, steps: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        path = Path(directory, "state.db")
        shutil.copy(empty, path)
        memory, sqlite = MemoryStore(), DatabaseStore(sqlite_url(path))
        memory.open()
        memory.open()  # the copied file was opened once before
        sqlite.open()
        try:
            for action in steps:
                assert step(sqlite, action) == step(memory, action), action
            assert view(sqlite) == view(memory)
        finally:
            sqlite.close()
