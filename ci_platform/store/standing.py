"""How many come before a queued run, and who has what it waits for: counted, for people.

In the order in which claims and slots are given: by priority, then by when it became due, or by
number where a hold keeps it. Every row that is looked at is one that counts, or nearly so, and no
more than AHEAD_MAX are: a run at the end of a long queue costs no more than one at its head.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Select,
    TextClause,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.sql.elements import ColumnElement

from ci_platform.model import Run, RunState
from ci_platform.scheduling import AHEAD_MAX, HOLDERS_MAX, Hold, RunLimits, Standing
from ci_platform.store.slots import GROUPED, OVER, executing
from ci_platform.store.tables import RUNS

EACH = 100  # rows of one question
LOOKED_MAX = 2 * AHEAD_MAX  # of more urgent ones: some may sleep, which need not be counted

_OF_REPOSITORY = RUNS.c.repository_id == bindparam("of_repository")
_DUE = (_OF_REPOSITORY, RUNS.c.ready_ms.is_not(None))
_PLACE = tuple_(RUNS.c.ready_ms, RUNS.c.n)
_SOONER = and_(
    tuple_(bindparam("ready", type_=BigInteger), bindparam("before", type_=BigInteger)) > _PLACE,
    tuple_(bindparam("seen_ms", type_=BigInteger), bindparam("seen", type_=BigInteger)) < _PLACE,
)
_EARLIER = and_(RUNS.c.n < bindparam("before"), RUNS.c.n > bindparam("seen"))
_SAME = RUNS.c.priority == bindparam("priority")
_URGENT = RUNS.c.priority > literal_column("0")  # those have an index to themselves


def _next(*where: ColumnElement[bool] | TextClause) -> Select[tuple[int | None, int]]:
    return select(RUNS.c.ready_ms, RUNS.c.n).where(*where)


_DUE_SOONER = _next(*_DUE, _SOONER).order_by(RUNS.c.ready_ms, RUNS.c.n).limit(EACH)
_URGENT_SOONER = (
    _next(*_DUE, _URGENT, _SAME, _SOONER).order_by(RUNS.c.ready_ms, RUNS.c.n).limit(EACH)
)
_MORE_URGENT = (
    select(RUNS.c.state, RUNS.c.ready_ms, RUNS.c.n)
    .where(*_DUE, _URGENT, RUNS.c.priority > bindparam("priority"))
    .order_by(RUNS.c.priority.desc(), RUNS.c.ready_ms, RUNS.c.n)
    .limit(LOOKED_MAX)
)
_HELD = {
    Hold.GROUP: (*GROUPED, RUNS.c.hold == Hold.GROUP.value),
    Hold.LIMIT: (_OF_REPOSITORY, OVER),
}
_HELD_BEFORE = {
    hold: _next(*held, _SAME, _EARLIER).order_by(RUNS.c.n).limit(EACH)
    for hold, held in _HELD.items()
}
_HELD_MORE_URGENT = {
    hold: _next(*held, RUNS.c.priority > bindparam("priority")).limit(AHEAD_MAX)
    for hold, held in _HELD.items()
}
_QUEUED_AMONG = select(func.count()).where(
    RUNS.c.n.in_(bindparam("ns", expanding=True)), RUNS.c.state == RunState.QUEUED.value
)


def _numbers(*where: ColumnElement[bool] | TextClause) -> Executable:
    return select(RUNS.c.number).where(*where).order_by(RUNS.c.n).limit(HOLDERS_MAX)


_HOLDERS = {
    Hold.GROUP: (
        _numbers(*GROUPED, RUNS.c.hold.is_(None)),
        _numbers(*GROUPED, RUNS.c.hold == Hold.LIMIT.value),
    ),
    Hold.LIMIT: (_numbers(_OF_REPOSITORY, text("slot IS NOT NULL")),),
}


def standing(connection: Connection, n: int, run: Run, limits: RunLimits) -> Standing | None:
    if run.state is not RunState.QUEUED:
        return None
    asked: dict[str, object] = {
        "of_repository": run.repository_id,
        "of_group": run.place.group,
        "priority": run.place.priority,
        "before": n,
        "ready": run.ready_ms,
    }
    if run.hold is None:
        ahead = 0 if run.ready_ms is None else _due_before(connection, asked, run)
        every = executing(connection) if limits.every else 0
        return Standing(ahead, [], every if every >= limits.every else 0)
    ns = [row.n for row in connection.execute(_HELD_MORE_URGENT[run.hold], asked)]
    ns += _before(connection, _HELD_BEFORE[run.hold], asked)
    holders: list[int] = []
    for one in _HOLDERS[run.hold]:
        holders += connection.execute(one, asked).scalars()
    return Standing(_queued(connection, ns), sorted(holders)[:HOLDERS_MAX])


def _before(connection: Connection, following: Executable, asked: dict[str, object]) -> list[int]:
    """Runs before this one in line, at most AHEAD_MAX. A few at a time: asked for many,
    PostgreSQL collects and sorts all there are, and does not stop at the last that counts."""
    ns: list[int] = []
    at: dict[str, object] = {"seen_ms": -1, "seen": -1}
    while len(ns) < AHEAD_MAX:
        rows = connection.execute(following, {**asked, **at}).all()
        ns += [row.n for row in rows]
        if len(rows) < EACH:
            break
        at = {"seen_ms": rows[-1].ready_ms, "seen": rows[-1].n}
    return ns


def _due_before(connection: Connection, asked: dict[str, object], run: Run) -> int:
    urgent = run.place.priority > 0
    sooner = len(_before(connection, _URGENT_SOONER if urgent else _DUE_SOONER, asked))
    if sooner >= AHEAD_MAX:
        return AHEAD_MAX
    mine = (run.ready_ms, asked["before"])
    # Without a priority, those that were due sooner are counted already.
    more_urgent = [
        row
        for row in connection.execute(_MORE_URGENT, asked)
        if row.state == RunState.QUEUED.value and (urgent or (row.ready_ms, row.n) > mine)
    ]
    return min(sooner + len(more_urgent), AHEAD_MAX)


def _queued(connection: Connection, ns: Sequence[int]) -> int:
    """How many of these are queued: one that is held may be paused, too."""
    if not ns or len(ns) >= AHEAD_MAX:
        return min(len(ns), AHEAD_MAX)
    count: int = connection.execute(_QUEUED_AMONG, {"ns": ns}).scalar_one()
    return count
