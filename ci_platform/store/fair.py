"""What to claim next: due rows in round robin over repositories, within one by priority and age.

Costs do not grow with sleepers, nor with how much one repository has queued. The oldest due rows
are looked at through a window; when all of them fit, that is exact. When a backlog fills it, the
repositories themselves are walked in the order of the index, from where the last claim stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    bindparam,
    literal,
    literal_column,
    select,
)

from ci_platform.store.direct import Direct

WINDOW_MIN = 64  # of the oldest due rows
CLAIM_MAX = 128  # rows of one claim
REPOSITORIES_WALKED_MAX = 2000  # in one claim, from the last one served on


@dataclass(frozen=True, slots=True)
class Candidate:
    n: int
    repository_id: str
    priority: int = 0


class FairQueue:
    """The due rows of one table with the columns n, repository_id and `due`, and, where it matters,
    `priority`, which is 0 or more, and the `pool` that a row is in."""

    def __init__(
        self,
        table: Table,
        due: Column[int | None],
        priority: Column[int] | None = None,
        *,
        pool: Column[str] | None = None,
    ) -> None:
        rank = literal(0) if priority is None else priority
        self._window = Direct(
            select(table.c.n, table.c.repository_id, rank.label("priority"))
            .where(*_within(table, pool), due <= bindparam("now"))
            .order_by(due, table.c.n)
            .limit(bindparam("window"))
        )
        self._walk = Direct(_walk(table, due, pool))
        self._pooled = pool is not None
        urgent = None if priority is None else _urgent(table, due, priority)
        self._urgent = None if urgent is None else Direct(urgent, each="repositories")

    def candidates(
        self, connection: Connection, *, now_ms: int, limit: int, after: str, pool: str = ""
    ) -> list[Candidate]:
        """Up to `limit` due rows, beginning with the repositories behind `after`."""
        size = max(WINDOW_MIN, limit + 1)
        asked: dict[str, object] = {"now": now_ms}
        if self._pooled:
            asked["pool"] = pool
        window = [
            Candidate(row.n, row.repository_id, row.priority)
            for row in self._window.rows(connection, {**asked, "window": size})
        ]
        if len(window) < size:
            return in_turns(window, after)[:limit]
        heads = self._heads(connection, asked, limit=limit, after=after)
        urgent = self._most_urgent(connection, now_ms=now_ms, limit=limit, heads=heads)
        if urgent:
            # Heads first, as they are the oldest of theirs; the others know their priority.
            known = {row.n: row for row in [*heads, *window, *urgent]}
            return in_turns(list(known.values()), after)[:limit]
        seen = {candidate.n for candidate in heads}
        rest = [candidate for candidate in window if candidate.n not in seen]
        return (heads + in_turns(rest, after))[:limit]

    def _most_urgent(
        self, connection: Connection, *, now_ms: int, limit: int, heads: Sequence[Candidate]
    ) -> list[Candidate]:
        """The due rows with a priority above 0 of the repositories that `heads` are of: few rows
        have one, and they have an index to themselves."""
        if self._urgent is None or not heads:
            return []
        of = sorted({head.repository_id for head in heads})
        asked = {"now": now_ms, "count": max(WINDOW_MIN, limit), "repositories": of}
        return [
            Candidate(row.n, row.repository_id, row.priority)
            for row in self._urgent.rows(connection, asked)
        ]

    def _heads(
        self, connection: Connection, asked: Mapping[str, object], *, limit: int, after: str
    ) -> list[Candidate]:
        """The oldest due row of each of the next repositories, around the circle once."""
        heads: dict[int, Candidate] = {}
        for start in (after, "") if after else ("",):
            for row in self._walk.rows(connection, {**asked, "after": start, "count": limit}):
                heads.setdefault(row.n, Candidate(row.n, row.repository_id))
            if len(heads) >= limit:
                break
        return list(heads.values())[:limit]


def in_turns(rows: Sequence[Candidate], after: str) -> list[Candidate]:
    """One row of each repository, then a second of each, ...; rows of one by their priority, and
    else in the order they have."""
    ranked: list[tuple[int, bool, str, Candidate]] = []
    for repository_id, own in groupby(sorted(rows, key=_repository), key=_repository):
        passed = repository_id <= after
        first = sorted(own, key=_urgency)
        ranked += [(turn, passed, repository_id, row) for turn, row in enumerate(first)]
    ranked.sort(key=lambda item: item[:3])
    return [item[3] for item in ranked]


def _repository(row: Candidate) -> str:
    return row.repository_id


def _urgency(row: Candidate) -> int:
    return -row.priority


def _urgent(
    table: Table, due: Column[int | None], priority: Column[int]
) -> Select[tuple[int, str, int]]:
    return (
        select(table.c.n, table.c.repository_id, priority)
        .where(
            table.c.repository_id.in_(bindparam("repositories", expanding=True)),
            due.is_not(None),
            due <= bindparam("now"),
            priority > literal_column("0"),
        )
        .order_by(priority.desc(), due, table.c.n)
        .limit(bindparam("count"))
    )


def _within(table: FromClause, pool: Column[str] | None) -> list[ColumnElement[bool]]:
    return [] if pool is None else [table.c[pool.name] == bindparam("pool")]


def _walk(
    table: Table, due: Column[int | None], pool: Column[str] | None
) -> Select[tuple[str, int]]:
    """The first due row of each repository behind `after`, by jumps through one index."""
    outer = table.alias("head")
    jump = (
        select(table.c.repository_id)
        .where(*_within(table, pool), due.is_not(None))
        .order_by(table.c.repository_id)
    )
    start = jump.where(table.c.repository_id > bindparam("after")).limit(1).scalar_subquery()
    steps = select(start.label("id"), literal(1).label("depth")).cte("walked", recursive=True)
    following = jump.where(table.c.repository_id > steps.c.id).limit(1)
    steps = steps.union_all(
        select(following.correlate(steps).scalar_subquery(), steps.c.depth + 1).where(
            steps.c.id.is_not(None), steps.c.depth < REPOSITORIES_WALKED_MAX
        )
    )
    head_due = outer.c[due.name]
    head = (
        select(outer.c.n)
        .where(
            *_within(outer, pool),
            outer.c.repository_id == steps.c.id,
            head_due <= bindparam("now"),
        )
        .order_by(head_due, outer.c.n)
        .limit(1)
        .correlate(steps)
        .scalar_subquery()
    )
    heads = select(steps.c.id.label("repository_id"), head.label("n")).subquery("heads")
    return (
        select(heads.c.repository_id, heads.c.n)
        .where(heads.c.n.is_not(None))
        .limit(bindparam("count"))
    )
