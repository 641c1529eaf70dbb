"""Statements on the driver's own cursor: rows, lists, types and errors as SQLAlchemy has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    select,
)

from ci_platform.errors import Conflict, StoreUnavailable
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct

THINGS = Table(
    "things",
    MetaData(),
    Column("n", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("whole", Boolean),
)
ADD = Direct(THINGS.insert())
SOME = Direct(
    select(THINGS).where(THINGS.c.n.in_(bindparam("ns", expanding=True))).order_by(THINGS.c.n),
    each="ns",
)
FIRST = Direct(
    select(THINGS.c.name).where(THINGS.c.n >= bindparam("least")).order_by(THINGS.c.n).limit(1)
)
RENAME = Direct(
    THINGS.update()
    .where(THINGS.c.n.in_(bindparam("ns", expanding=True)), THINGS.c.name != "kept")
    .values(name=bindparam("to")),
    each="ns",
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(f"sqlite:///{tmp_path}/test.db")) as database:
        database.write(lambda connection: THINGS.create(connection))
        rows = [{"n": n, "name": f"thing {n}", "whole": n % 2 == 0} for n in range(1, 8)]
        database.write(lambda connection: ADD.many(connection, rows))
        yield database


def numbers(database: Database, *ns: int) -> list[int]:
    return [row.n for row in database.read(lambda c: SOME.rows(c, {"ns": list(ns)}))]


def test_lists_of_any_length_find_each_row_once(database: Database) -> None:
    for length in range(1, 8):
        assert numbers(database, *range(1, length + 1)) == list(range(1, length + 1))


def test_truths_are_truths(database: Database) -> None:
    rows = database.read(lambda c: SOME.rows(c, {"ns": [1, 2]}))
    assert [row.whole for row in rows] == [False, True]


def test_constants_of_a_statement_are_kept(database: Database) -> None:
    (row,) = database.read(lambda c: FIRST.rows(c, {"least": 3}))
    assert row.name == "thing 3"
    database.write(lambda c: RENAME.run(c, {"ns": [3], "to": "kept"}))
    database.write(lambda c: RENAME.run(c, {"ns": [3, 4, 5], "to": "new"}))
    rows = database.read(lambda c: SOME.rows(c, {"ns": [3, 4, 5]}))
    assert [row.name for row in rows] == ["kept", "new", "new"]


def test_a_transaction_is_written_whole_or_not_at_all(database: Database) -> None:
    new = {"n": 100, "name": "new", "whole": True}

    def twice(connection: Connection) -> None:
        ADD.many(connection, [new])
        ADD.many(connection, [{**new, "n": 1}])

    with pytest.raises(Conflict):
        database.write(twice)
    assert numbers(database, 100) == []


def test_errors_are_ours(database: Database) -> None:
    missing = Direct(select(Table("missing", MetaData(), Column("n", Integer))))
    with pytest.raises(StoreUnavailable, match="no such table"):
        database.read(lambda c: missing.rows(c, {}))
