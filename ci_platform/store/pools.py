"""Which pools have queued commands, and since when: by jumps through one index."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, Select, literal, select

from ci_platform.labels import RECALL, serves
from ci_platform.store.direct import Direct
from ci_platform.store.tables import OPERATIONS

POOLS_MAX = 1000  # looked at; more sets of labels than that are not served


def _walk() -> Select[tuple[str, int]]:
    due = OPERATIONS.c.due_ms.is_not(None)
    jump = select(OPERATIONS.c.pool).where(due).order_by(OPERATIONS.c.pool).limit(1)
    steps = select(jump.scalar_subquery().label("pool"), literal(1).label("depth")).cte(
        "walked", recursive=True
    )
    following = jump.where(OPERATIONS.c.pool > steps.c.pool).correlate(steps).scalar_subquery()
    steps = steps.union_all(
        select(following, steps.c.depth + 1).where(
            steps.c.pool.is_not(None), steps.c.depth < POOLS_MAX
        )
    )
    oldest = OPERATIONS.alias("oldest")
    first = (
        select(oldest.c.due_ms)
        .where(oldest.c.pool == steps.c.pool, oldest.c.due_ms.is_not(None))
        .order_by(oldest.c.due_ms)
        .limit(1)
        .correlate(steps)
        .scalar_subquery()
    )
    return select(steps.c.pool, first.label("due_ms")).where(steps.c.pool.is_not(None))


_DUE = Direct(_walk())


def due(connection: Connection) -> Mapping[str, int]:
    """Pool -> when the first command in it is due."""
    return {row.pool: row.due_ms for row in _DUE.rows(connection, {}) if row.due_ms is not None}


def next_due_ms(connection: Connection, labels: Collection[str] | None) -> int | None:
    """When the next command is due that a worker with these labels may run or look up."""
    return min(
        (
            at_ms
            for pool, at_ms in due(connection).items()
            if labels is None or pool == RECALL or serves(labels, pool)
        ),
        default=None,
    )
