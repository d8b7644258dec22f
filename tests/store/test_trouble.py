"""Full disks, locks, damage and worse: a clear error, nothing changed, and on it goes when the cause is gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpusched.scheduler.core.records import Batch
from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store import sqlite
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.sqlite import sqlite_url
from store.records import event, finished, granted, job, lease, submitted

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk or become another user")
BIG = "x" * 60_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[DatabaseStore]:
    """An open one, with job 1 running on GPU-a and job 2 queued."""
    made = DatabaseStore(sqlite_url(path))
    made.open()
    made.commit(submitted(1, 2))
    made.commit(granted(1, 10, "GPU-a"))
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "gpusched-test", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def trouble(call: Callable[[], object], *, passing: bool) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    assert caught.value.passing is passing, caught.value
    return str(caught.value)


def big(first: int) -> Batch:
    """A batch of about 0.6 MB, with something of each kind."""
    ids = range(first, first + 10)
    return Batch(
        jobs=(*(job(id, data=BIG) for id in ids), job(1, "completed", ended_at=5.0)),
        events=tuple(event(id) for id in ids),
        ended=((10, 5.0),),
        leases=(lease(11, first, "GPU-a"),),
        settings={"big": "1"},
        sync=True,
    )


def fill(place: Path) -> Path:
    """Leave no room on a disk."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size >>= 1
    return filler


def as_before(store: DatabaseStore) -> None:
    """What the fixture put there is all that is there."""
    assert store.job(1) == job(1, "running")
    assert store.job(2) == job(2)
    assert [line.message for line in store.events(1)] == ["submitted", "granted"]
    assert store.job(100) is None
    assert store.check() == []


@as_root
@pytest.mark.parametrize("start", [True, False], ids=["opened-before", "opened-when-full"])
def test_a_full_disk(small_disk: Path, start: bool) -> None:
    path = small_disk / "state.db"
    store = DatabaseStore(sqlite_url(path))
    store.open()
    store.commit(submitted(1, 2))
    store.commit(granted(1, 10, "GPU-a"))
    why = "no space left on its disk; make room; a running server then goes on by itself"
    full = f"state file {path} cannot be written: {why}"
    if not start:
        store.close()
        filler = fill(small_disk)
        assert trouble(store.open, passing=True) == full
    else:
        filler = fill(small_disk)
        for _ in range(2):
            assert trouble(lambda: store.commit(big(100)), passing=True) == full
            as_before(store)
        assert trouble(lambda: [store.commit(submitted(id)) for id in range(200, 10_000)], passing=True) == full
    filler.unlink()
    if not start:
        assert store.open().starts == 2
        as_before(store)
    store.commit(big(100))
    store.commit(finished(100, 11))
    assert store.job(109) == job(109, data=BIG)
    assert store.check() == []
    boot = store.open()
    assert boot.settings == {"big": "1"}
    store.close()


@as_root
def test_a_full_disk_at_the_very_first_start(small_disk: Path) -> None:
    filler = fill(small_disk)
    store = DatabaseStore(sqlite_url(small_disk / "state.db"))
    assert "no space left" in trouble(store.open, passing=True)
    assert os.listdir(small_disk) == ["filler"]
    filler.unlink()
    assert store.open().starts == 1
    store.close()


def test_a_full_file_in_the_middle_of_a_batch(store: DatabaseStore, path: Path) -> None:
    """The same without being root: SQLite is told that the file may not grow."""
    driver = store._connection.connection.driver_connection  # type: ignore[union-attr]
    pages = driver.execute("PRAGMA page_count").fetchone()[0]
    driver.execute(f"PRAGMA max_page_count={pages + 20}")
    assert "no space left on its disk" in trouble(lambda: store.commit(big(100)), passing=True)
    as_before(store)
    store.commit(submitted(3))
    driver.execute("PRAGMA max_page_count=100000")
    store.commit(big(100))
    assert store.job(1) == job(1, "completed", ended_at=5.0)


@pytest.mark.parametrize("how", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_lock(store: DatabaseStore, path: Path, how: str) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(how)
    said = trouble(lambda: store.commit(big(100)), passing=True)
    assert f"state file {path} is locked by another process" in said
    assert "no space" not in said
    as_before(store)
    assert "is locked" in trouble(lambda: store.commit(submitted(3, sync=False)), passing=True)
    other.execute("ROLLBACK")
    store.commit(big(100))
    assert store.job(100) == job(100, data=BIG)
    other.close()


def test_a_lock_at_the_start(store: DatabaseStore, path: Path) -> None:
    store.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    again = DatabaseStore(sqlite_url(path))
    assert "is locked by another process" in trouble(again.open, passing=True)
    assert "is locked by another process" in trouble(again.check, passing=True)
    other.close()
    assert again.open().starts == 2
    as_before(again)
    again.close()


def test_reading_goes_on_beside_a_lock(store: DatabaseStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    as_before(store)
    assert store.ended_jobs() == ()
    other.close()


def test_not_a_database(path: Path) -> None:
    path.write_bytes(b"#!/bin/sh\necho this is somebody's script\n" * 100)
    before = path.read_bytes()
    store = DatabaseStore(sqlite_url(path))
    said = trouble(store.open, passing=False)
    assert f"state file {path} is not a database" in said and "put the file back from a backup" in said
    assert store.check() == [said]
    assert path.read_bytes() == before


def test_a_damaged_file(store: DatabaseStore, path: Path) -> None:
    store.commit(Batch(jobs=tuple(job(id, data=BIG) for id in range(100, 120))))
    store.close()
    content = bytearray(path.read_bytes())
    # All pages but the first, which says what the file is.
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    said = trouble(store.open, passing=False)
    assert f"state file {path} is damaged" in said and "put the file back from a backup" in said
    assert trouble(store.open, passing=False) == said
    assert any("damaged" in line for line in store.check())
    assert path.read_bytes() == content


def test_a_file_that_was_cut_off(store: DatabaseStore, path: Path) -> None:
    store.commit(Batch(jobs=tuple(job(id, data=BIG) for id in range(100, 120))))
    store.close()
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    assert any("damaged" in line for line in store.check())
    path.write_bytes(whole)
    assert store.check() == []


def test_damage_found_while_running(store: DatabaseStore, path: Path) -> None:
    """Damage below the surface: what needs that page fails, is never guessed, and `check` tells."""
    store.commit(Batch(jobs=tuple(job(id, data=BIG) for id in range(100, 120))))
    store.close()
    content = bytearray(path.read_bytes())
    at = content.rindex(b"x" * 4000)
    content[at : at + 4000] = b"\0" * 4000
    path.write_bytes(content)
    store.open()
    assert store.job(1) == job(1, "running")
    store.close()
    # A page of the jobs' table itself, rather than what it holds.
    root = sqlite3.connect(path)
    page = root.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()[0]
    root.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    store.open()
    assert "is damaged" in trouble(lambda: store.events(1), passing=False)
    assert "is damaged" in trouble(lambda: store.commit(submitted(3)), passing=False)
    assert store.job(3) is None
    assert store.job(1) == job(1, "running")
    assert any("damaged" in line for line in store.check())


def test_a_file_that_is_removed_while_in_use(store: DatabaseStore, path: Path, tmp_path: Path) -> None:
    """SQLite would go on writing to what nobody will ever find."""
    shutil.rmtree(tmp_path)
    for sync in (True, False):
        said = trouble(lambda sync=sync: store.commit(submitted(3, sync=sync)), passing=True)  # type: ignore[misc]
        assert f"state file {path} is gone or was replaced while in use" in said
    store.close()
    assert not tmp_path.exists()
    assert "cannot be used: No such file or directory" in trouble(store.open, passing=True)
    assert not tmp_path.exists()


def test_a_directory_that_is_moved_and_comes_back(store: DatabaseStore, path: Path, tmp_path: Path) -> None:
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    assert "is gone" in trouble(lambda: store.commit(big(100)), passing=True)
    assert "is gone" in trouble(lambda: store.prune(1e9) or store.commit(big(100)), passing=True)
    away.rename(tmp_path)
    as_before(store)
    store.commit(big(100))
    assert store.open().settings == {"big": "1"}


def test_a_file_that_is_replaced_while_in_use(store: DatabaseStore, path: Path) -> None:
    """An older backup put back under a running server would let a device be given out twice."""
    with sqlite3.connect(path) as other:
        other.execute("VACUUM INTO ?", (f"{path}.backup",))
    other.close()
    store.commit(Batch(jobs=(job(2, "running"),), leases=(lease(11, 2, "GPU-b"),)))
    Path(f"{path}.backup").rename(path)
    said = trouble(lambda: store.commit(submitted(3)), passing=True)
    assert "was replaced while in use" in said and "restart the server" in said


def test_the_log_is_removed_while_in_use(store: DatabaseStore, path: Path) -> None:
    """What was in it alone is saved from the file that is still open."""
    store.commit(submitted(3))
    Path(f"{path}-wal").unlink()
    assert "its log state.db-wal was removed" in trouble(lambda: store.commit(big(100)), passing=True)
    store.commit(big(100))
    store.commit(submitted(4))
    boot = DatabaseStore(sqlite_url(path)).open()
    assert [kept.id for kept in boot.jobs] == [2, 3, 4, *range(100, 110)]
    assert boot.settings == {"big": "1"}


def test_another_server_on_the_same_state(store: DatabaseStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that got past the lock of the state directory: who was first must not go on after it loses the connection."""
    DatabaseStore(sqlite_url(path)).open()
    store._drop()
    said = trouble(lambda: store.commit(submitted(3)), passing=False)
    assert "another server has started on it" in said
    assert "another server" in trouble(lambda: store.job(1), passing=False)


def test_an_error_of_the_disk(store: DatabaseStore, path: Path) -> None:
    """There is no broken disk to test with; so what SQLite would say, said by us."""
    explain = sqlite.SqliteBackend(sqlite_url(path)).explain
    for name, words in (
        ("SQLITE_IOERR_FSYNC", "the disk reports an error (SQLITE_IOERR_FSYNC)"),
        ("SQLITE_IOERR_READ", "the disk reports an error (SQLITE_IOERR_READ)"),
        ("SQLITE_READONLY_DBMOVED", "cannot be written"),
        ("SQLITE_CANTOPEN_ISDIR", "cannot be opened"),
        ("SQLITE_PROTOCOL", "is locked"),
    ):
        error = sqlite3.OperationalError("as SQLite says it")
        error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, name), name
        verdict = explain(error)
        assert verdict is not None and verdict.passing and not verdict.reconnect
        assert verdict.message.startswith(f"state file {path}") and words in verdict.message
    assert explain(KeyError("a fault of our own")) is None


def test_a_fault_of_our_own_is_not_called_trouble_of_the_disk(store: DatabaseStore) -> None:
    with pytest.raises(AttributeError):
        store.commit(Batch(jobs=(job(3),), leases=(None,)))  # type: ignore[arg-type]
    as_before(store)
    assert store.job(3) is None
    store.commit(submitted(3))


AS_NOBODY = """
import os, sys, tempfile
from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store.database import DatabaseStore
# Once as ourselves, which imports what nobody may not be able to read.
with tempfile.TemporaryDirectory() as directory:
    DatabaseStore(f"sqlite:///{directory}/state.db").open()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.stdin:
    try:
        DatabaseStore("sqlite:///" + path.strip()).open()
        print("opened", flush=True)
    except StoreError as error:
        print(error.passing, error, flush=True)
"""


@as_root
def test_read_only_for_this_user(store: DatabaseStore, path: Path) -> None:
    store.close()
    # Not below pytest's directory, which is closed to others.
    place = Path(tempfile.mkdtemp(prefix="gpusched-read-only-"))
    shutil.copy(path, place)
    kept = place / "state.db"

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    nobody = subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def say() -> str:
        assert nobody.stdin is not None and nobody.stdout is not None
        nobody.stdin.write(f"{kept}\n")
        nobody.stdin.flush()
        return nobody.stdout.readline().strip()

    try:
        place.chmod(0o755)
        kept.chmod(0o644)
        read_only = f"True state file {kept} cannot be written: it, its directory or the disk is read-only"
        read_only += " for this user"
        assert say() == read_only
        kept.chmod(0o600)
        assert say().startswith(f"True state file {kept} cannot be opened")
        kept.chmod(0o666)
        assert say() == read_only
        kept.unlink()
        assert say() == f"True state file {kept} cannot be used: Permission denied"
        place.chmod(0o777)
        assert say() == "opened"
    finally:
        nobody.kill()
        nobody.communicate()
        shutil.rmtree(place)
