"""The state file: how it comes to be, and who else may read it."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from gpusched.scheduler.core.records import Batch
from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.sqlite import sqlite_url
from store.records import granted, job, submitted


def new(path: Path) -> DatabaseStore:
    return DatabaseStore(sqlite_url(path))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        new(path).open()
    assert not caught.value.passing
    return str(caught.value)


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = new(tmp_path / "state.db")
        store.open()
    finally:
        os.umask(before)
    store.commit(submitted(1))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["state.db", "state.db-shm", "state.db-wal"]
    assert [mode(file) for file in files] == [0o600, 0o600, 0o600]
    store.close()
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]


def test_a_backup_put_back_becomes_private_and_is_used(tmp_path: Path) -> None:
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    store = new(path)
    first = store.open()
    store.commit(submitted(1))
    # Of the live file; and this way it is not in WAL mode afterwards.
    with sqlite3.connect(path) as other:
        other.execute("VACUUM INTO ?", (str(backup),))
    other.close()
    store.commit(submitted(2))
    store.close()
    backup.rename(path)
    path.chmod(0o644)
    again = new(path)
    boot = again.open()
    assert (boot.state_id, boot.jobs) == (first.state_id, (job(1),))
    again.commit(submitted(3))
    assert mode(path) == 0o600
    assert mode(tmp_path / "state.db-wal") == 0o600
    again.close()


@pytest.mark.parametrize("name", ["a b", "50%.db", "what?.db", "#1", "größe'\"\\.db", "file:x", "-", "%41", "\udcff"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / name
    path.parent.mkdir()
    for starts in (1, 2):
        store = new(path)
        assert store.open().starts == starts
        store.commit(submitted(starts))
        store.close()
    assert os.listdir(path.parent) == [name]


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = DatabaseStore("sqlite:///state.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.open()
    store.close()
    assert (tmp_path / "state.db").exists()


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.mkdir()
    (link / "state.db").symlink_to(real / "kept.db")
    for starts in (1, 2):
        store = new(link / "state.db")
        assert store.open().starts == starts
        store.commit(submitted(starts))
        store.close()
    assert os.listdir(real) == ["kept.db"]
    assert (link / "state.db").is_symlink()


@pytest.mark.parametrize(
    "url",
    ["", "state.db", "sqlite://", "sqlite:///:memory:", "sqlite:////x/state.db?mode=ro", "mysql://host/x", "nosuch://"],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(StoreError, match=r"sqlite") as caught:
        DatabaseStore(url)
    assert not caught.value.passing


def test_a_password_is_not_shown() -> None:
    store = DatabaseStore("postgresql+psycopg://me:secret@127.0.0.1:1/x?connect_timeout=1")
    with pytest.raises(StoreError, match="database postgresql") as caught:
        store.open()
    assert "secret" not in str(caught.value)


def test_an_empty_file_is_damage_not_a_new_state(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch()
    said = refusal(path)
    assert f"state file {path} is empty" in said and "move it away to begin anew" in said
    assert path.stat().st_size == 0


def test_a_log_without_its_file_is_damage_not_a_new_state(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = new(path)
    store.open()
    store.commit(submitted(1))
    log = (tmp_path / "state.db-wal").read_bytes()
    store.close()
    path.unlink()
    (tmp_path / "state.db-wal").write_bytes(log)
    said = refusal(path)
    assert "is gone, but its log state.db-wal is there" in said
    assert os.listdir(tmp_path) == ["state.db-wal"]


def test_a_start_that_was_cut_short_leaves_no_harm(tmp_path: Path) -> None:
    """Killed while it made the file: what it had made so far is thrown away."""
    path = tmp_path / "state.db"
    for end in ("", "-wal", "-shm", "-journal"):
        (tmp_path / f"state.db.new{end}").write_bytes(b"half")
    store = new(path)
    assert store.open().starts == 1
    store.close()
    assert os.listdir(tmp_path) == ["state.db"]


def test_synced_batches_and_others(tmp_path: Path) -> None:
    """What SQLite is told before each transaction; that it then holds is shown in test_crash.py."""
    store = new(tmp_path / "state.db")
    store.open()
    said: list[str] = []
    store._connection.connection.driver_connection.set_trace_callback(said.append)  # type: ignore[union-attr]
    store.commit(submitted(1, 2, 3, sync=True))
    store.commit(granted(1, 10, "GPU-a"))
    store.commit(granted(2, 11, "GPU-b"))
    store.commit(submitted(4, sync=True))
    framing = [line.split(" ")[0] + line.partition("synchronous")[2] for line in said]
    wanted = {"BEGIN", "COMMIT", "PRAGMA=FULL", "PRAGMA=NORMAL"}
    assert [word for word in framing if word in wanted] == [
        *("BEGIN", "COMMIT"),  # the connection is at FULL since it was opened
        *("PRAGMA=NORMAL", "BEGIN", "COMMIT", "BEGIN", "COMMIT"),
        *("PRAGMA=FULL", "BEGIN", "COMMIT"),
    ]
    store.close()


def test_values_that_no_database_takes(tmp_path: Path) -> None:
    store = new(tmp_path / "state.db")
    store.open()
    for bad in (job(2**63), job(1, name="\udcff"), job(1, user=object())):  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="cannot take this") as caught:
            store.commit(Batch(jobs=(job(2), bad)))
        assert not caught.value.passing
    assert store.job(2) is None
    store.commit(submitted(1))
    store.close()


def test_boot_and_pages_use_the_indexes(tmp_path: Path) -> None:
    """With a long history neither a restart nor a page may read all of it."""
    path = tmp_path / "state.db"
    new(path).open()
    connection = sqlite3.connect(path)
    place = "(ended_at, id) < (3.0, 4) ORDER BY ended_at DESC, id DESC"
    for query, index in (
        ("jobs WHERE ended_at IS NULL ORDER BY id", "jobs_open"),
        (f"jobs WHERE ended_at IS NOT NULL AND {place} LIMIT 9", "jobs_ended"),
        ("jobs WHERE ended_at < 5.0 ORDER BY ended_at, id LIMIT 9", "jobs_ended"),
        ("events WHERE job = 7 ORDER BY id", "events_job"),
    ):
        plan = " ".join(str(row[-1]) for row in connection.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {query}"))
        assert index in plan and "TEMP B-TREE" not in plan, plan
    connection.close()
