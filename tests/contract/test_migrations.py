"""The way from one schema to the next, on both databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, inspect, text

from ci_platform.errors import StoreUnavailable
from ci_platform.ports import RunFilter
from ci_platform.store import SqlStore, migrate_store, migrations, open_store, schema
from ci_platform.store.database import Database
from ci_platform.store.tables import SCHEMA_VERSION
from git_store.tables import metadata as git_tables
from tests.contract.conftest import KEY
from tests.contract.store_values import created
from tests.postgres import PostgresServer

HOW = """
The tables are not what the revisions make of them. After a change of tables.py:

  1. raise SCHEMA_VERSION;
  2. write ci_platform/store/migrations/versions/sNNNN_what.py with revision = that version,
     down_revision = the one before, and an upgrade() of op.add_column(...) and the like, which
     must do for SQLite too (it adds columns and tables, but alters little else);
  3. nothing else: new databases are created from tables.py itself.

As long as no version has been released, `python -m tests.initial_schema` rewrites the first
revision instead.
"""
NEXT = f"{int(SCHEMA_VERSION) + 1:04}"
REVISION = f"""
import sqlalchemy
from alembic import op

revision = "{NEXT}"
down_revision = "{SCHEMA_VERSION}"

def upgrade():
    op.add_column("runs", sqlalchemy.Column("colour", sqlalchemy.String(), nullable=True))
    op.add_column("git_refs", sqlalchemy.Column("colour", sqlalchemy.String(), nullable=True))
"""
BROKEN = (
    REVISION
    + """
    op.execute("SELECT * FROM nowhere")
"""
)

BEFORE_0012 = (
    "DROP INDEX runs_of_commit",
    "ALTER TABLE runs DROP COLUMN commit_key",
    'CREATE INDEX runs_of_commit ON runs (repository_id, "commit", number)',
    "ALTER TABLE audit DROP COLUMN subjects",
    "UPDATE alembic_version SET version_num = '0011'",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database without a table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        yield url


Open = Callable[..., SqlStore]


@pytest.fixture
def opened(new_url: str) -> Open:
    return partial(open_store, new_url, key=KEY, beside=[git_tables])


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is one version newer; returns its newest revision."""
    folder = tmp_path / "100% of the revisions"
    folder.mkdir()
    revision = folder / f"s{NEXT}_next.py"
    revision.write_text(REVISION)
    monkeypatch.setattr(migrations, "VERSIONS", [*migrations.VERSIONS, folder])
    monkeypatch.setattr(schema, "SCHEMA_VERSION", NEXT)
    return revision


def shape(engine: Engine) -> dict[str, Any]:
    """All that the database says of its tables, apart from the order of columns."""
    looked = inspect(engine)
    found: dict[str, Any] = {}
    for name in looked.get_table_names():
        columns = {
            column["name"]: (
                str(column["type"]),
                getattr(column["type"], "collation", None),
                column["nullable"],
                str(column["default"]).replace(name, ""),
            )
            for column in looked.get_columns(name)
        }
        found[name] = {
            "columns": columns,
            "key": looked.get_pk_constraint(name)["constrained_columns"],
            "indexes": sorted(
                repr(index | {"dialect_options": {k: str(v) for k, v in options.items()}})
                for index in looked.get_indexes(name)
                for options in [index.get("dialect_options", {})]
            ),
            "unique": sorted(map(repr, looked.get_unique_constraints(name))),
            "foreign": sorted(map(repr, looked.get_foreign_keys(name))),
            "checks": sorted(map(repr, looked.get_check_constraints(name))),
            "options": looked.get_table_options(name),
        }
    return found


def columns_of(store: SqlStore, table: str) -> set[str]:
    return {column["name"] for column in inspect(store.engine).get_columns(table)}


def test_revisions_make_what_the_tables_say(
    new_url: str, opened: Open, tmp_path: Path, postgres: PostgresServer
) -> None:
    with closing(opened()) as store:
        said = shape(store.engine)
    with postgres.database() as another:
        url = f"sqlite:///{tmp_path / 'made.db'}" if new_url.startswith("sqlite") else another
        made = Database(url)
        try:
            made.write(lambda connection: migrations.upgrade(connection, SCHEMA_VERSION))
            assert shape(made.engine) == said, HOW
        finally:
            made.close()
    assert {"runs", "entries", "git_refs"} <= set(said)


def test_an_older_schema_is_refused_until_it_is_migrated(
    new_url: str, opened: Open, next_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION)
        with closing(opened()) as store:
            run = created(store)
    with pytest.raises(StoreUnavailable, match=f"{SCHEMA_VERSION}.*{NEXT}.*sluice migrate"):
        opened()
    done = migrate_store(new_url)
    assert done is not None
    assert (done.before, done.after) == (SCHEMA_VERSION, NEXT)
    assert migrate_store(new_url) is None
    with closing(opened()) as store:
        assert "colour" in columns_of(store, "runs") & columns_of(store, "git_refs")
        assert store.runs.get(run.id) == run
    with monkeypatch.context() as older:
        older.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION)
        with pytest.raises(StoreUnavailable, match="newer.*install"):
            opened(migrate=True)
        with pytest.raises(StoreUnavailable, match="newer.*install"):
            migrate_store(new_url)


def test_runs_from_before_are_found_by_their_commit(new_url: str, opened: Open) -> None:
    """Revision 0012 puts a checksum in place of repository and commit."""
    with closing(opened()) as store:
        run = created(store)
    older = Database(new_url)
    try:
        for statement in map(text, BEFORE_0012):
            older.write(partial(Connection.execute, statement=statement))
    finally:
        older.close()
    assert migrate_store(new_url) is not None
    with closing(opened()) as store:
        which = RunFilter(repository_ids=[run.repository_id], commit=run.commit)
        assert [one.id for one in store.runs.list(which).runs] == [run.id]
        assert store.runs.commits_used(run.repository_id, [run.commit, "d"]) == {run.commit}


def test_a_migration_that_fails_changes_nothing(
    new_url: str, opened: Open, next_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION)
        opened().close()
        next_version.write_text(BROKEN)
        monkeypatch.setattr(schema, "SCHEMA_VERSION", NEXT)
        with pytest.raises(StoreUnavailable, match="nowhere"):
            migrate_store(new_url)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION)
    with closing(opened()) as store:  # it is as before, and of use
        assert "colour" not in columns_of(store, "runs")
        created(store)


def test_a_database_of_the_data_directory_is_copied_and_then_migrates_by_itself(
    tmp_path: Path, next_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sluice.db"
    open_here = partial(open_store, f"sqlite:///{file}", key=KEY, beside=[git_tables])
    with monkeypatch.context() as older:
        older.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION)
        with closing(open_here()) as store:
            run = created(store)
    for _ in range(2):
        with closing(open_here(migrate=True)) as store:
            assert "colour" in columns_of(store, "runs")
    with closing(sqlite3.connect(tmp_path / f"sluice.db.{SCHEMA_VERSION}.backup")) as backup:
        assert backup.execute("SELECT version_num FROM alembic_version").fetchall() == [
            (SCHEMA_VERSION,)
        ]
        assert backup.execute("SELECT id FROM runs").fetchall() == [(run.id,)]


def test_postgresql_is_never_migrated_on_the_way(
    postgres: PostgresServer, next_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres.database() as url:
        with monkeypatch.context() as older:
            older.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION)
            open_store(url, key=KEY, beside=[git_tables]).close()
        with pytest.raises(StoreUnavailable, match="sluice migrate"):
            open_store(url, key=KEY, migrate=True)


@pytest.mark.parametrize(
    "harm", ["DELETE FROM alembic_version", "DROP TABLE alembic_version"], ids=["empty", "gone"]
)
def test_a_schema_without_its_version_is_refused(new_url: str, opened: Open, harm: str) -> None:
    with closing(opened()) as store, store.engine.begin() as connection:
        connection.exec_driver_sql(harm)
    with pytest.raises(StoreUnavailable, match="cut off.*backup"):
        opened(migrate=True)


def test_a_schema_that_no_revision_starts_from_is_said(new_url: str, opened: Open) -> None:
    with closing(opened()) as store, store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(StoreUnavailable, match="cannot be migrated.*0001"):
        migrate_store(new_url)
