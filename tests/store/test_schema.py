"""The schema: made from nothing or by migrations it is the same, and a database that is not ours is left alone."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gpusched.scheduler.core.records import Batch
from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store import migrate
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.schema import metadata
from gpusched.scheduler.store.sqlite import sqlite_url
from store.records import event, job, lease, submitted

MIGRATIONS = Path(migrate.__file__).with_name("migrations")

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("jobs", recreate="always") as table:  # a new table, though others point to the old one
        table.add_column(sa.Column("project", sa.Text, nullable=False, server_default="none"))
"""


def new(path: Path) -> DatabaseStore:
    return DatabaseStore(sqlite_url(path))


def refusal(path: Path) -> str:
    """Why it will not be opened; neither is it changed by that."""
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        new(path).open()
    assert not caught.value.passing
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith(".new")] == []
    return str(caught.value)


def sql(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        rows = [row for statement in statements for row in connection.execute(statement)]
        connection.commit()
        return rows
    finally:
        connection.close()


def shape(url: sqlalchemy.URL) -> dict[str, object]:
    """Everything about the tables but the ways in which the same can be written."""
    engine = sqlalchemy.create_engine(url)
    inspector = sqlalchemy.inspect(engine)
    with engine.connect() as connection:
        # Older versions of SQLAlchemy cannot tell.
        tables = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        without_row_numbers = {name for name, text in tables if text.rstrip().upper().endswith("WITHOUT ROWID")}

    def by_name(found: list[Any]) -> list[str]:
        plain = [{key: str(value) for key, value in entry.items() if key != "comment"} for entry in found]
        return sorted(str(sorted(entry.items())) for entry in plain)

    def written_out(found: list[Any]) -> list[Any]:
        options = "dialect_options"
        return [entry | {options: {name: str(text) for name, text in entry[options].items()}} for entry in found]

    try:
        return {
            table: {
                "columns": [str(sorted(column.items(), key=str)) for column in inspector.get_columns(table)],
                "key": inspector.get_pk_constraint(table)["constrained_columns"],
                "indexes": by_name(written_out(inspector.get_indexes(table))),
                "foreign": by_name(inspector.get_foreign_keys(table)),
                "checks": by_name(inspector.get_check_constraints(table)),
                "unique": by_name(inspector.get_unique_constraints(table)),
                "without row numbers": table in without_row_numbers,
            }
            for table in inspector.get_table_names()
            if table != migrate.VERSION_TABLE
        }
    finally:
        engine.dispose()


def test_from_scratch_and_by_migrations_are_the_same(tmp_path: Path) -> None:
    store = new(tmp_path / "migrated.db")
    store.open()
    store.close()
    scratch = sqlite_url(tmp_path / "scratch.db")
    engine = sqlalchemy.create_engine(scratch)
    metadata.create_all(engine)
    engine.dispose()
    migrated = shape(sqlite_url(tmp_path / "migrated.db"))
    assert set(migrated) == set(metadata.tables)
    assert migrated == shape(scratch)


def test_alembic_sees_nothing_to_do(tmp_path: Path) -> None:
    store = new(tmp_path / "state.db")
    store.open()
    store.close()
    engine = sqlalchemy.create_engine(sqlite_url(tmp_path / "state.db"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrate.VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_shape_tells_schemas_apart(tmp_path: Path) -> None:
    """The comparison above would notice."""
    shapes = []
    for number, predicate in enumerate(("active", "NOT active")):
        path = tmp_path / f"{number}.db"
        sql(
            path,
            "CREATE TABLE t (device TEXT, active BOOLEAN)",
            f"CREATE UNIQUE INDEX i ON t (device) WHERE {predicate}",
        )
        shapes.append(shape(sqlite_url(path)))
    assert shapes[0] != shapes[1]


def test_head_is_the_last_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [migrate.HEAD]


def test_the_usual_start_does_without_alembic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    new(path).open()

    def must_not(*_: object) -> None:
        raise AssertionError("an up-to-date schema was migrated")

    monkeypatch.setattr(migrate, "upgrade", must_not)
    assert new(path).open().starts == 2


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have this program be its own successor, with one more migration."""
    folder = tmp_path / "100% migrations"
    shutil.copytree(MIGRATIONS, folder)

    def be_next(migration: str) -> None:
        (folder / "versions" / "v0003_next.py").write_text(migration)
        monkeypatch.setattr(migrate, "_folder", lambda: folder)
        monkeypatch.setattr(migrate, "HEAD", "0003")

    return be_next


def test_an_older_schema_is_brought_up_to_date(
    tmp_path: Path,
    next_version: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "state.db"
    store = new(path)
    first = store.open()
    store.commit(submitted(1, 2))
    store.close()

    next_version(NEXT)
    assert new(path).check() == [
        f"state file {path} has an older schema; the server brings it up to date when it starts"
    ]
    store = new(path)
    with caplog.at_level(logging.INFO, "gpusched.store"):
        boot = store.open()
    assert f"state file {path}: schema brought from 0002 to 0003" in caplog.text
    assert (boot.state_id, boot.starts, boot.jobs) == (first.state_id, 2, (job(1), job(2)))
    assert store.check() == []
    with pytest.raises(StoreError):  # foreign keys hold again
        store.commit(Batch(events=(event(9),)))
    store.close()
    assert sql(path, "SELECT id, project FROM jobs") == [(1, "none"), (2, "none")]
    assert sql(path, "PRAGMA foreign_key_check") == []


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, next_version: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.db"
    store = new(path)
    store.open()
    store.commit(submitted(1, 2))
    store.close()
    before = sql(path, "SELECT sql FROM sqlite_master", "SELECT * FROM jobs", "SELECT * FROM meta")
    next_version(NEXT + "    op.execute('INSERT INTO nowhere VALUES (1)')\n")
    with pytest.raises(StoreError, match="no such table: nowhere"):
        new(path).open()
    monkeypatch.undo()
    assert sql(path, "SELECT sql FROM sqlite_master", "SELECT * FROM jobs", "SELECT * FROM meta") == before
    assert new(path).open().jobs == (job(1), job(2))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = new(path)
    store.open()
    store.close()
    sql(path, f"UPDATE {migrate.VERSION_TABLE} SET version_num = '0099'")
    said = refusal(path)
    assert "was written by a newer gpusched (schema 0099; this one knows up to 0002)" in said
    assert "install that version again" in said
    assert new(path).check() == [said]


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    sql(path, "CREATE TABLE jobs (id INTEGER)", "INSERT INTO jobs VALUES (1)")
    said = refusal(path)
    assert f"state file {path} is a database, but none of gpusched's" in said
    assert new(path).check() == [said]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (f"DELETE FROM {migrate.VERSION_TABLE}", "does not say which schema it has"),
        ("DELETE FROM meta", "does not say whose it is"),
    ],
)
def test_half_a_database_is_refused(tmp_path: Path, statement: str, words: str) -> None:
    path = tmp_path / "state.db"
    store = new(path)
    store.open()
    store.close()
    sql(path, statement)
    with pytest.raises(StoreError, match=words) as caught:
        new(path).open()
    assert not caught.value.passing


def test_the_database_itself_forbids_two_active_leases(tmp_path: Path) -> None:
    """Even from a program that does not ask the store."""
    path = tmp_path / "state.db"
    store = new(path)
    store.open()
    store.commit(submitted(1))
    store.close()
    for epoch in (10, 11):
        sql(path, f"INSERT INTO leases VALUES ({epoch}, 1, 1.0, NULL)")
    sql(path, "INSERT INTO lease_devices VALUES (10, 'GPU-a', 0, 0), (11, 'GPU-a', 1, 0)")
    with pytest.raises(sqlite3.IntegrityError):
        sql(path, "UPDATE lease_devices SET active = 1")
    sql(path, "UPDATE lease_devices SET active = 1, shared = 1")


def test_leases_of_the_first_schema_have_their_devices_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.db"
    monkeypatch.setattr(migrate, "HEAD", "0001")
    engine = sqlalchemy.create_engine(sqlite_url(path))
    with engine.begin() as connection:
        migrate.upgrade(connection)
    engine.dispose()
    sql(path, "INSERT INTO meta VALUES (1, 'x', 1, 0)")
    job_row = "INSERT INTO jobs VALUES (1, 'running', 'batch', 0, 'u', '', '', 1.0, NULL, '{}')"
    sql(path, job_row, "INSERT INTO leases VALUES (10, 1, 1.0, NULL)", "INSERT INTO lease_devices VALUES (10, 'a', 1)")
    monkeypatch.undo()
    store = new(path)
    store.open()
    assert sql(path, "SELECT epoch, active, shared FROM lease_devices") == [(10, 1, 0)]
    with pytest.raises(StoreError, match="already has an active lease"):
        store.commit(Batch(leases=(lease(11, 1, "a"),)))
    assert store.check() == []


def test_check_sees_what_was_done_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = new(path)
    store.open()
    store.commit(submitted(1))
    sql(
        path,
        "DROP INDEX lease_devices_one_active",
        "INSERT INTO leases VALUES (10, 1, 1.0, NULL), (11, 1, 1.0, NULL), (12, 1, 1.0, 2.0), (13, 9, 1.0, 2.0)",
        "INSERT INTO lease_devices VALUES (10, 'GPU-a', 1, 0), (11, 'GPU-a', 1, 0)",
        "INSERT INTO lease_devices VALUES (11, 'GPU-b', 0, 0), (12, 'GPU-c', 1, 0)",
        "INSERT INTO events VALUES (77, 8, 1.0, 'queued', '', 0)",
        "UPDATE jobs SET state = 'running'",
    )
    assert sorted(store.check()) == [
        "GPU GPU-a has several active leases: L10, L11",
        "history line 77 belongs to job 8, which is unknown",
        "job 1 has several active leases: L10, L11",
        "lease L11 and its hold on GPU GPU-b disagree about whether it has ended",
        "lease L12 and its hold on GPU GPU-c disagree about whether it has ended",
        "lease L13 belongs to job 9, which is unknown",
        "the index lease_devices_one_active is missing: put the state back from a backup",
    ]
    store.close()
