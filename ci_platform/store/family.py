"""Links between runs and their children, kept beside the rows of runs.

Written with the birth of a child, and marked by the commits that end one of the two; read and
settled through `ports.FamilyStore`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Select, bindparam, func, or_, select

from ci_platform.family import Kin, Link
from ci_platform.model import NewRun
from ci_platform.store.codec import Columns, plain
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.tables import FAMILY, RUNS

_PARENT = RUNS.alias("parent")
_CHILD = RUNS.alias("child")
_LINKS = (
    select(FAMILY, _CHILD.c.id.label("child_id"), _PARENT.c.id.label("parent_id"))
    .join(_CHILD, _CHILD.c.n == FAMILY.c.child_n)
    .join(_PARENT, _PARENT.c.n == FAMILY.c.parent_n)
)
_OF_CHILD = _LINKS.where(_CHILD.c.id == bindparam("run_id"))
_OF_PARENT = _LINKS.where(_PARENT.c.id == bindparam("run_id")).order_by(FAMILY.c.child_n)
_DUE = _LINKS.where(FAMILY.c.due > 0).order_by(FAMILY.c.child_n).limit(bindparam("count"))
_NUMBERS = select(RUNS.c.n, RUNS.c.id).where(RUNS.c.id.in_(bindparam("ids", expanding=True)))
_OF_ANY = or_(
    FAMILY.c.child_n.in_(bindparam("runs", expanding=True)),
    FAMILY.c.parent_n.in_(bindparam("runs", expanding=True)),
)
# Locked in one order everywhere, before they are written.
_LOCK_OF = Direct(
    select(FAMILY.c.child_n).where(_OF_ANY).order_by(FAMILY.c.child_n).with_for_update(),
    each="runs",
)
_MARK = (
    FAMILY.update()
    .where(FAMILY.c.child_n.in_(bindparam("children", expanding=True)))
    .values(due=func.abs(FAMILY.c.due) + 1)
)
_SETTLE = (
    FAMILY.update()
    .where(
        FAMILY.c.child_n
        == select(RUNS.c.n).where(RUNS.c.id == bindparam("of_child")).scalar_subquery(),
        FAMILY.c.due == bindparam("seen"),
    )
    .values(due=-FAMILY.c.due)
)


def add(connection: Connection, new: Sequence[NewRun], numbered: Mapping[str, int]) -> None:
    """Link new runs to their parents, as far as these are still there."""
    kin = {one.id: one.kin for one in new if one.kin is not None}
    if not kin:
        return
    ids = sorted({one.parent_id for one in kin.values()})
    parents = {row.id: row.n for row in connection.execute(_NUMBERS, {"ids": ids})}
    rows = [
        {
            "child_n": numbered[run_id],
            "parent_n": parents[one.parent_id],
            "step": plain(one.step, "step"),
            "waits": one.waits,
            "depth": one.depth,
            "due": 1,  # its parent may have ended already
        }
        for run_id, one in kin.items()
        if one.parent_id in parents
    ]
    if rows:
        connection.execute(FAMILY.insert(), rows)


def lock(connection: Connection, runs: Sequence[int]) -> list[int]:
    """Lock the links of these runs, in the order in which everybody does. Returns the children."""
    return [row.child_n for row in _LOCK_OF.rows(connection, {"runs": list(runs)})]


def mark(connection: Connection, runs: Sequence[int]) -> None:
    """Note that these runs have ended, or let go of their children."""
    children = lock(connection, runs)
    if children:
        connection.execute(_MARK, {"children": children})


class SqlFamilyStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def parent(self, run_id: str) -> Link | None:
        found = self._read(_OF_CHILD, {"run_id": run_id})
        return found[0] if found else None

    def children(self, run_id: str) -> Sequence[Link]:
        return self._read(_OF_PARENT, {"run_id": run_id})

    def due(self, *, limit: int = 100) -> Sequence[Link]:
        return self._read(_DUE, {"count": limit})

    def settled(self, link: Link) -> None:
        asked = {"of_child": link.child_id, "seen": link.due}
        self._database.write(lambda connection: connection.execute(_SETTLE, asked))

    def _read(self, statement: Select[tuple[object, ...]], asked: dict[str, object]) -> list[Link]:
        return self._database.read(
            lambda connection: [_link(row) for row in connection.execute(statement, asked)]
        )


def _link(row: Columns) -> Link:
    return Link(row.child_id, Kin(row.parent_id, row.step, row.waits, row.depth), row.due)
