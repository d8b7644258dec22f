"""What every store does: run on memory, on SQLite, and on PostgreSQL where there is one to test with."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from gpusched.scheduler.core.records import Batch, JobRecord
from gpusched.scheduler.ports import Store, StoreError
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.memory import MemoryStore
from gpusched.scheduler.store.sqlite import sqlite_url
from store.records import event, finished, granted, job, lease, submitted

# Read here, since fixtures keep the caller's settings from the tests.
POSTGRES = os.environ.get("GPUSCHED_TEST_POSTGRES", "")

MakeStore = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite", *(["postgres"] if POSTGRES else [])])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    """Stores to order, all on one state: the second is what the server has after a restart."""
    made: list[Store] = []

    def make(new: MakeStore) -> MakeStore:
        def made_store() -> Store:
            for store in made:
                store.close()
            made.append(new())
            return made[-1]

        return made_store

    match request.param:
        case "memory":
            kept = MemoryStore()
            yield make(lambda: kept)
        case "sqlite":
            yield make(lambda: DatabaseStore(sqlite_url(tmp_path / "state.db")))
        case _:
            url = sqlalchemy.make_url(POSTGRES)
            schema = f"gpusched_test_{secrets.token_hex(6)}"
            admin = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
            try:
                inside = url.update_query_dict({"options": f"-csearch_path={schema}"})
                yield make(lambda: DatabaseStore(inside))
            finally:
                for store in made:
                    store.close()
                with admin.connect() as connection:
                    connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
                admin.dispose()
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """A new one, open."""
    made = make_store()
    made.open()
    return made


@pytest.mark.skipif(not POSTGRES, reason="GPUSCHED_TEST_POSTGRES is not set (postgresql+psycopg://user@host/database)")
def test_postgres_is_among_those_tested() -> None:
    """Stands for all of this file in the report of a run without PostgreSQL."""


def refusal(store: Store, batch: Batch) -> str:
    with pytest.raises(StoreError) as caught:
        store.commit(batch)
    assert not caught.value.passing
    return str(caught.value)


def test_a_new_store_is_empty_and_has_a_name(make_store: MakeStore) -> None:
    boot = make_store().open()
    assert len(boot.state_id) >= 16
    assert (boot.starts, boot.next_job, boot.jobs, boot.settings) == (1, 1, (), {})


def test_a_restart_keeps_the_name_and_counts(make_store: MakeStore) -> None:
    first, second, third = (make_store().open() for _ in range(3))
    assert first.state_id == second.state_id == third.state_id
    assert [first.starts, second.starts, third.starts] == [1, 2, 3]


def test_every_field_comes_back(store: Store) -> None:
    kept = JobRecord(
        id=2**40,
        state="failed",
        kind="interactive",
        uid=2**32 - 2,
        user="o'brien",
        name='Größe "x"; DROP TABLE jobs -- 50% \\ 作业 🚀\n',
        submitted_at=1_722_222_222.123457,
        ended_at=1_722_222_223.9999998,
        data='{"command": ["echo", "ü\\u0000"]}',
    )
    line = event(kept.id, "line 'one'\nline \"two\" 🚀", "failed", 1_722_222_222.123457, 3)
    store.commit(Batch(jobs=(kept,), events=(line,)))
    assert store.job(kept.id) == kept
    assert store.events(kept.id) == (line,)


def test_what_is_not_there_is_none(store: Store) -> None:
    for unknown in (7, 0, -1, 2**63, -(2**70)):
        assert store.job(unknown) is None
        assert store.events(unknown) == ()


def test_a_job_is_replaced_by_its_number(store: Store) -> None:
    store.commit(submitted(1, 2))
    changed = job(1, "failed", ended_at=5.0, name="other", user="bob", uid=7, kind="interactive", data='{"a": 1}')
    store.commit(Batch(jobs=(changed,)))
    assert store.job(1) == changed
    assert store.job(2) == job(2)
    twice = (replace(changed, name="first"), replace(changed, name="last"))
    store.commit(Batch(jobs=twice))
    assert store.job(1) == twice[1]


def test_a_restart_finds_what_has_not_ended_by_number(make_store: MakeStore) -> None:
    store = make_store()
    store.open()
    store.commit(submitted(3, 1, 2, 12))
    store.commit(granted(2, 10, "GPU-a"))
    store.commit(Batch(jobs=(job(1, "cancelled", ended_at=4.0),)))
    boot = make_store().open()
    assert boot.jobs == (job(2, "running"), job(3), job(12))
    assert boot.next_job == 13


def test_settings(make_store: MakeStore) -> None:
    store = make_store()
    store.open()
    store.commit(Batch(settings={"policy": "fifo", "paused": "1", "drained": ""}))
    store.commit(Batch(settings={"policy": "fair 'ü'", "paused": None, "never": None}))
    assert make_store().open().settings == {"policy": "fair 'ü'", "drained": ""}


def test_history_is_of_one_job_and_in_order(store: Store) -> None:
    store.commit(submitted(1, 2))
    # Clocks jump back; the order is that of the commits.
    lines = tuple(event(1, f"line {number}", "running", at=100.0 - number, attempt=number) for number in range(5))
    store.commit(Batch(events=(*lines[:3], event(2, "elsewhere"))))
    store.commit(Batch(events=lines[3:]))
    assert store.events(1) == (event(1), *lines)


def test_an_empty_batch_is_no_trouble(store: Store) -> None:
    store.commit(Batch())
    store.commit(Batch(sync=True))


def test_no_device_gets_two_active_leases(store: Store) -> None:
    store.commit(submitted(1, 2))
    store.commit(granted(1, 10, "GPU-a", "GPU-b"))
    said = refusal(store, granted(2, 11, "GPU-c", "GPU-b"))
    assert "GPU GPU-b already has an active lease, L10 of job 1" in said
    assert refusal(store, granted(1, 12, "GPU-a"))
    assert refusal(store, Batch(leases=(lease(13, 1, "GPU-x"), lease(14, 2, "GPU-x"))))
    assert "L15 names a GPU more than once" in refusal(store, Batch(leases=(lease(15, 1, "GPU-y", "GPU-y"),)))
    # None of these took anything with it: what they had beside the taken device is free.
    store.commit(Batch(leases=(lease(16, 2, "GPU-c", "GPU-x", "GPU-y"),)))


def test_leases_that_share_a_device_are_beside_each_other(store: Store) -> None:
    store.commit(submitted(1, 2, 3))
    running = tuple(job(number, "running") for number in (1, 2))
    store.commit(Batch(jobs=running, leases=(lease(10, 1, "GPU-a", shared=True), lease(11, 2, "GPU-a", shared=True))))
    assert store.check() == []
    store.commit(Batch(jobs=(job(1, "completed", ended_at=3.0),), ended=((10, 3.0),)))
    assert store.check() == []
    store.commit(Batch(jobs=(job(2, "completed", ended_at=3.0),), ended=((11, 3.0),)))
    store.commit(granted(3, 12, "GPU-a"))
    assert store.check() == []


def test_no_lease_comes_twice(store: Store) -> None:
    store.commit(submitted(1, 2))
    store.commit(granted(1, 10, "GPU-a"))
    assert "there already is a lease L10" in refusal(store, granted(2, 10, "GPU-b"))
    store.commit(finished(1, 10))
    assert "there already is a lease L10" in refusal(store, granted(2, 10, "GPU-b"))


def test_a_refused_batch_changes_nothing(make_store: MakeStore) -> None:
    store = make_store()
    store.open()
    store.commit(submitted(1, 2))
    store.commit(granted(1, 10, "GPU-a"))
    bad = Batch(
        jobs=(job(2, "running"), job(3)),
        events=(event(2, "granted"),),
        ended=((10, 4.0),),
        leases=(lease(11, 2, "GPU-b"), lease(12, 3, "GPU-b")),
        settings={"a": "b"},
        sync=True,
    )
    refusal(store, bad)
    assert (store.job(2), store.job(3), store.events(2)) == (job(2), None, (event(2),))
    assert "GPU-a" in refusal(store, granted(2, 13, "GPU-a"))
    assert store.check() == []
    good = replace(bad, leases=bad.leases[:1])
    store.commit(good)
    assert store.job(3) == job(3)
    assert make_store().open().settings == {"a": "b"}


def test_the_unknown_is_refused(store: Store) -> None:
    refusal(store, Batch(events=(event(1),)))
    refusal(store, Batch(leases=(lease(10, 1, "GPU-a"),)))
    refusal(store, Batch(jobs=(job(1),), events=(event(2),)))
    assert store.job(1) is None


def test_a_device_changes_hands_in_one_batch(store: Store) -> None:
    store.commit(submitted(1, 2, 3))
    store.commit(granted(1, 10, "GPU-a", "GPU-b"))
    end, begin = finished(1, 10), granted(2, 11, "GPU-b", "GPU-a")
    store.commit(replace(begin, jobs=end.jobs + begin.jobs, ended=end.ended))
    assert "L11 of job 2" in refusal(store, granted(3, 12, "GPU-a"))
    assert store.check() == []


def test_a_lease_that_comes_and_goes_in_one_batch_holds_nothing(store: Store) -> None:
    store.commit(submitted(1, 2))
    store.commit(
        Batch(leases=(lease(10, 1, "GPU-a"), lease(11, 2, "GPU-a")), ended=((10, 4.0),), jobs=(job(2, "running"),))
    )
    assert store.check() == []
    assert "L11 of job 2" in refusal(store, granted(1, 12, "GPU-a"))
    assert "there already is" in refusal(store, granted(1, 10, "GPU-b"))


def test_ending_what_has_ended_or_never_was(store: Store) -> None:
    store.commit(submitted(1, 2))
    store.commit(granted(1, 10, "GPU-a"))
    store.commit(finished(1, 10))
    store.commit(Batch(ended=((10, 11.0), (99, 11.0))))
    store.commit(granted(2, 11, "GPU-a"))
    store.commit(Batch(ended=((10, 12.0),)))
    assert "L11" in refusal(store, granted(1, 12, "GPU-a"))


@pytest.fixture
def history(store: Store) -> Store:
    """A store with ended jobs, among them two that ended at the same time, and some that have not ended."""
    store.commit(
        Batch(
            jobs=(
                job(1, "completed", ended_at=50.0, user="alice", uid=1000, name="Train-ResNet"),
                job(2, "failed", ended_at=20.0, user="bob", uid=1001, name="train_bert"),
                job(3, "completed", ended_at=20.0, user="1000", uid=1002, name="100% ÄRGER"),
                job(4, "cancelled", ended_at=70.5, user="bob", uid=1001, name=""),
                job(5, "lost", ended_at=20.0, user="carol", uid=0, name="a\\b"),
                job(6, "queued"),
                job(7, "running"),
            )
        )
    )
    return store


def ids(jobs: tuple[JobRecord, ...]) -> list[int]:
    return [job.id for job in jobs]


def test_ended_jobs_newest_first(history: Store) -> None:
    assert ids(history.ended_jobs()) == [4, 1, 5, 3, 2]
    assert history.ended_jobs()[0] == history.job(4)
    assert history.count_ended() == 5


def test_ended_jobs_by_the_page(history: Store) -> None:
    for size in (1, 2, 3, 5, 100):
        found: list[int] = []
        after = None
        while page := history.ended_jobs(after=after, limit=size):
            assert len(page) <= size
            found += ids(page)
            assert page[-1].ended_at is not None
            after = (page[-1].ended_at, page[-1].id)
        assert found == [4, 1, 5, 3, 2]
    assert history.ended_jobs(limit=0) == ()


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"states": frozenset({"completed"})}, [1, 3]),
    ({"states": frozenset({"lost", "failed"})}, [5, 2]),
    ({"states": frozenset({"running", "queued"})}, []),
    ({"user": "bob"}, [4, 2]),
    ({"user": "1001"}, [4, 2]),
    ({"user": "1000"}, [1, 3]),  # a login name may be a number
    ({"user": "0"}, [5]),
    ({"user": "01001"}, []),
    ({"user": "١٠٠١"}, []),
    ({"user": "9" * 30}, []),
    ({"user": "9" * 5000}, []),
    ({"user": "Bob"}, []),
    ({"name": "TRAIN"}, [1, 2]),
    ({"name": "ärger"}, [3]),
    ({"name": "%"}, [3]),
    ({"name": "_"}, [2]),
    ({"name": "\\"}, [5]),
    ({"name": "*"}, []),
    ({"name": "x" * 100_000}, []),
    ({"name": "train", "user": "bob", "states": frozenset({"failed"})}, [2]),
    ({"name": "train", "user": "carol"}, []),
]


def test_ended_jobs_filtered(history: Store) -> None:
    for filters, found in FILTERS:
        assert ids(history.ended_jobs(**filters)) == found, filters
        assert history.count_ended(**filters) == len(found), filters
        assert ids(history.ended_jobs(**filters, after=(50.0, 1))) == [id for id in found if id not in (4, 1)], filters


def test_prune_forgets_the_oldest_in_steps(make_store: MakeStore) -> None:
    store = make_store()
    store.open()
    for id in range(1, 8):
        store.commit(submitted(id))
        store.commit(granted(id, 10 + id, "GPU-a"))
        store.commit(finished(id, 10 + id, at=float(id)))
    store.commit(submitted(8))
    assert store.prune(1.0) == 0
    assert store.prune(6.0, limit=3) == 3
    assert ids(store.ended_jobs()) == [7, 6, 5, 4]
    assert store.prune(6.0, limit=3) == 2
    assert store.prune(6.0, limit=3) == 0
    assert ids(store.ended_jobs()) == [7, 6]
    assert store.events(5) == () and len(store.events(6)) == 3
    assert store.check() == []
    assert ids(make_store().open().jobs) == [8]


def test_numbers_of_pruned_jobs_are_not_given_out_again(make_store: MakeStore) -> None:
    store = make_store()
    store.open()
    store.commit(Batch(jobs=(job(1), job(7, "failed", ended_at=2.0), job(9, "failed", ended_at=1.0))))
    assert store.prune(1.5) == 1
    assert store.prune(3.0) == 1
    store = make_store()
    assert store.open().next_job == 10
    store.commit(Batch(jobs=(job(10, "failed", ended_at=1.0),)))
    assert store.prune(3.0) == 1
    assert make_store().open().next_job == 11


def test_prune_leaves_a_job_whose_lease_is_active(store: Store) -> None:
    store.commit(submitted(1))
    store.commit(granted(1, 10, "GPU-a"))
    store.commit(Batch(jobs=(job(1, "lost", ended_at=1.0),)))
    assert store.prune(5.0) == 0
    store.commit(Batch(ended=((10, 2.0),)))
    assert store.prune(5.0) == 1


def test_check_finds_what_contradicts(store: Store) -> None:
    store.commit(submitted(*range(1, 8)))
    store.commit(granted(1, 10, "GPU-a"))
    store.commit(finished(1, 10))
    store.commit(granted(2, 11, "GPU-a"))
    assert store.check() == []
    store.commit(Batch(jobs=(job(3, "running"),)))
    store.commit(Batch(leases=(lease(12, 4, "GPU-b"),)))
    store.commit(Batch(jobs=(job(5, "running"),), leases=(lease(13, 5, "GPU-c"), lease(14, 5, "GPU-d"))))
    store.commit(Batch(jobs=(job(6, "failed"), job(7, "queued", ended_at=3.0))))
    assert sorted(store.check()) == [
        "job 3 is running, but has no active lease",
        "job 5 has several active leases: L13, L14",
        "job 6 is failed, but has no time at which it ended",
        "job 7 is queued, but has a time at which it ended",
        "lease L12 is active, but its job 4 is queued",
    ]


def test_calls_may_come_from_any_thread(store: Store) -> None:
    failures: list[BaseException] = []

    def submit(id: int) -> None:
        try:
            store.commit(submitted(id))
            assert store.job(id) == job(id)
            assert store.count_ended() == 0
        except BaseException as error:
            failures.append(error)

    for id in range(1, 6):
        thread = threading.Thread(target=submit, args=(id,))
        thread.start()
        thread.join()
    assert failures == []
    assert store.prune(1.0) == 0
    assert [store.job(id) for id in range(1, 6)] == [job(id) for id in range(1, 6)]


def test_calls_at_the_same_time_do_not_meet(store: Store) -> None:
    """A reader must not end another thread's transaction, nor see half of it; `check` neither."""
    count = 100
    failures: list[BaseException] = []
    over = threading.Event()

    def write() -> None:
        try:
            for id in range(1, count + 1):
                handed = ((id - 1, 1.0),) if id > 1 else ()
                before = (job(id - 1, "completed", ended_at=float(id)),) if id > 1 else ()
                new = granted(id, id, "GPU-a", "GPU-b")
                store.commit(replace(new, jobs=before + new.jobs, ended=handed, sync=bool(id % 2)))
                assert store.job(id) == new.jobs[0]
        except BaseException as error:
            failures.append(error)
        finally:
            over.set()

    def look(call: Callable[[], object], wanted: Callable[[object], bool]) -> None:
        try:
            while not over.is_set():
                found = call()
                assert wanted(found), found
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=write),
        threading.Thread(target=look, args=(lambda: store.ended_jobs(limit=3), lambda found: True)),
        threading.Thread(target=look, args=(lambda: store.prune(0.5), lambda found: found == 0)),
        threading.Thread(target=look, args=(store.check, lambda found: found == [])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ids(store.ended_jobs(limit=count)) == list(range(count - 1, 0, -1))
    assert store.check() == []


def test_a_store_that_is_not_open_refuses(make_store: MakeStore) -> None:
    store = make_store()
    calls: list[Callable[[], object]] = [
        lambda: store.commit(submitted(1)),
        lambda: store.job(1),
        lambda: store.events(1),
        store.ended_jobs,
        store.count_ended,
        lambda: store.prune(1.0),
    ]
    for opened in (False, True):
        if opened:
            store.open()
            store.close()
            store.close()
        for call in calls:
            with pytest.raises(StoreError, match="is not open") as caught:
                call()
            assert not caught.value.passing


def test_open_again_is_another_start(store: Store) -> None:
    store.commit(submitted(1))
    boot = store.open()
    assert (boot.starts, boot.jobs) == (2, (job(1),))
    store.commit(submitted(2))
