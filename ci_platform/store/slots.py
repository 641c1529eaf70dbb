"""Who may be claimed: slots of concurrency groups, and limits on how many runs execute.

A run that must wait has a `hold` and no `ready_ms`, so that claims never look at it. Whoever frees
a slot gives it on in the same transaction: `admit` for groups, `release` for limits. On PostgreSQL
a lock per group makes two who free slots at once see each other; SQLite has one writer anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import Connection, bindparam, func, literal_column, select, text

from ci_platform.model import Run, RunState
from ci_platform.scheduling import (
    Hold,
    OnNew,
    RunLimits,
    Superseded,
)
from ci_platform.store.tables import RUNS, SUPERSESSIONS

RELEASED_MAX = 100  # runs of one repository that are let go at once when there is no limit any more
REFILLED_MAX = 10_000  # repositories looked at in one turn
HELD_MAX = 500  # runs of one repository that are held in one claim

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
GROUPED = (
    RUNS.c.repository_id == bindparam("of_repository"),
    RUNS.c.group_key == bindparam("of_group"),
    text("group_key IS NOT NULL AND ended_ms IS NULL"),
)
_HOLDERS = select(func.count()).where(*GROUPED, RUNS.c.hold.is_(None))
_HOLDERS_OVER = select(func.count()).where(*GROUPED, RUNS.c.hold == Hold.LIMIT.value)
_NEXT_HELD = (
    select(RUNS.c.n, RUNS.c.group_limit)
    .where(*GROUPED, RUNS.c.hold == Hold.GROUP.value, RUNS.c.state == RunState.QUEUED.value)
    .order_by(RUNS.c.priority.desc(), RUNS.c.n)
    .limit(1)
    .with_for_update(key_share=True)
)
OVER = text("hold = 'limit'")
_NEXT_OVER = (
    select(RUNS.c.n)
    .where(RUNS.c.repository_id == bindparam("of_repository"), OVER)
    .order_by(RUNS.c.priority.desc(), RUNS.c.n)
    .limit(bindparam("count"))
    .with_for_update(skip_locked=True, key_share=True)
)
# By jumps through the index of held runs: one after the other, it would be a scan of it.
_NEXT_REPOSITORY_OVER = (
    select(RUNS.c.repository_id)
    .where(OVER, RUNS.c.repository_id > bindparam("after"))
    .order_by(RUNS.c.repository_id)
    .limit(1)
)
_LET_GO = (
    RUNS.update()
    .where(RUNS.c.n.in_(bindparam("ns", expanding=True)))
    .values(hold=None, ready_ms=bindparam("now"))
)
_HOLD = (
    RUNS.update()
    .where(RUNS.c.n.in_(bindparam("ns", expanding=True)))
    .values(hold=Hold.LIMIT.value, ready_ms=None)
)
_DUE_OF = (
    select(RUNS.c.n)
    .where(
        RUNS.c.repository_id == bindparam("of_repository"),
        RUNS.c.ready_ms <= bindparam("now"),
        RUNS.c.slot.is_(None),
    )
    .order_by(RUNS.c.ready_ms, RUNS.c.n)
    .limit(HELD_MAX)
    .with_for_update(skip_locked=True, key_share=True)
)
_USED = (
    select(RUNS.c.repository_id, func.count())
    .where(RUNS.c.slot.is_not(None))
    .group_by(RUNS.c.repository_id)
)
# Nothing SQLite sees to be not null: it would take the index of all that is due, and not that of
# the few slots.
_ready = func.coalesce(RUNS.c.ready_ms, literal_column(str(2**62)))
_CONTINUING = (
    select(RUNS.c.n)
    .where(RUNS.c.slot.is_not(None), _ready <= bindparam("now"))
    .order_by(_ready, RUNS.c.n)
    .limit(bindparam("count"))
)


# --- groups ---------------------------------------------------------------------------------------


def lock(connection: Connection, groups: Iterable[tuple[str, str]]) -> None:
    """Let nobody else give slots of these groups until the transaction ends. Before any row is
    locked: who gives a slot locks rows of others, which must not wait for the same groups then."""
    for repository_id, group in sorted(set(groups)):
        _take_lock(connection, f"group {repository_id} {group}")


def admit(connection: Connection, groups: Iterable[tuple[str, str]], now_ms: int) -> list[int]:
    """Give the free slots of groups, (repository, group), to those who are next. Returns them."""
    admitted: list[int] = []
    wanted = sorted(set(groups))
    lock(connection, wanted)
    for repository_id, group in wanted:
        asked = {"of_repository": repository_id, "of_group": group}
        taken = sum(
            connection.execute(one, asked).scalar_one() for one in (_HOLDERS, _HOLDERS_OVER)
        )
        while (head := connection.execute(_NEXT_HELD, asked).one_or_none()) is not None:
            if taken >= head.group_limit:
                break
            connection.execute(_LET_GO, {"ns": [head.n], "now": now_ms})
            admitted.append(head.n)
            taken += 1
    return admitted


def concerns(run: Run) -> tuple[str, str] | None:
    """The group in which a run's last move may have freed a slot, or claimed one."""
    if run.place.group is None:
        return None
    if run.state.terminal or run.hold is Hold.GROUP:
        return run.repository_id, run.place.group
    return None


# --- limits ---------------------------------------------------------------------------------------


def continuing(connection: Connection, *, now_ms: int, limit: int) -> list[int]:
    """Due runs that have a slot already: they may always go on."""
    return list(connection.execute(_CONTINUING, {"now": now_ms, "count": limit}).scalars())


def full(connection: Connection, limits: RunLimits) -> bool:
    """Whether all repositories together run as many as they may."""
    return 0 < limits.every <= executing(connection)


def choose(
    connection: Connection, runs: Sequence[tuple[int, Run]], limits: RunLimits, *, limit: int
) -> tuple[list[int], set[str]]:
    """Which of the due runs may be claimed, and the repositories that are at their limit. Waits
    for other claims to commit: they would count the same slots."""
    _take_lock(connection, "claims")
    used = _used(connection)
    total = sum(used.values())
    chosen: list[int] = []
    over: set[str] = set()
    for n, run in runs:
        repository_id = run.repository_id
        if len(chosen) == limit:
            break
        if run.slot:
            chosen.append(n)
        elif 0 < limits.repository <= used.get(repository_id, 0):
            over.add(repository_id)
        elif not 0 < limits.every <= total:
            chosen.append(n)
            used[repository_id] = used.get(repository_id, 0) + 1
            total += 1
    return chosen, over


def hold(connection: Connection, repositories: Iterable[str], now_ms: int) -> None:
    """Take the due runs of repositories at their limit out of the queue."""
    for repository_id in sorted(repositories):
        asked = {"of_repository": repository_id, "now": now_ms}
        ns = list(connection.execute(_DUE_OF, asked).scalars())
        if ns:
            connection.execute(_HOLD, {"ns": ns})


def release(connection: Connection, repositories: Sequence[str], now_ms: int) -> None:
    """Offer the next held runs of repositories again, one for each slot that fell free: a name
    may be there several times."""
    for repository_id in sorted(set(repositories)):
        _release(connection, repository_id, repositories.count(repository_id), now_ms)


def refill(connection: Connection, limits: RunLimits, now_ms: int) -> int:
    """Offer held runs whose repository has room, whatever became of the one who should have: two
    transactions may not have seen each other, or the limit is another now."""
    released = 0
    repositories = list(islice(_repositories_over(connection), REFILLED_MAX))
    used = _used(connection) if repositories else {}
    for repository_id in repositories:
        room = RELEASED_MAX
        if limits.repository > 0:
            room = min(room, limits.repository - used.get(repository_id, 0))
        if room > 0:
            released += _release(connection, repository_id, room, now_ms)
    return released


def anyone_over(connection: Connection) -> bool:
    return any(_repositories_over(connection))


def _repositories_over(connection: Connection) -> Iterator[str]:
    """Those that have runs held at their limit, in order."""
    found: str | None = ""
    while (
        found := connection.execute(_NEXT_REPOSITORY_OVER, {"after": found}).scalar()
    ) is not None:
        yield found


def _release(connection: Connection, repository_id: str, count: int, now_ms: int) -> int:
    asked = {"of_repository": repository_id, "count": count}
    ns = list(connection.execute(_NEXT_OVER, asked).scalars())
    if ns:
        connection.execute(_LET_GO, {"ns": ns, "now": now_ms})
    return len(ns)


def executing(connection: Connection) -> int:
    """How many runs of all repositories have a slot."""
    return sum(_used(connection).values())


def _used(connection: Connection) -> dict[str, int]:
    return {repository_id: count for repository_id, count in connection.execute(_USED)}


def _take_lock(connection: Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"name": name})


# --- superseding ----------------------------------------------------------------------------------

_PENDING = (
    select(
        RUNS.c.n, RUNS.c.id, RUNS.c.number, RUNS.c.repository_id, RUNS.c.group_key, RUNS.c.on_new
    )
    # Not a join: SQLite, which thinks both tables are large, would begin with all runs.
    .where(
        RUNS.c.n.in_(
            select(SUPERSESSIONS.c.run_n).order_by(SUPERSESSIONS.c.run_n).limit(bindparam("count"))
        )
    )
    .order_by(RUNS.c.n)
)
_EARLIER = select(RUNS.c.id).where(*GROUPED, RUNS.c.n < bindparam("before")).order_by(RUNS.c.n)
_NOT_BEGUN = (RUNS.c.state == RunState.QUEUED.value, RUNS.c.started_ms.is_(None))
_DONE = SUPERSESSIONS.delete().where(
    SUPERSESSIONS.c.run_n == select(RUNS.c.n).where(RUNS.c.id == bindparam("by")).scalar_subquery()
)


def superseding(run: Run) -> bool:
    """Whether a new run is to end others."""
    place = run.place
    return place.group is not None and place.on_new is not OnNew.QUEUE and not run.state.terminal


def superseded(limit: int, connection: Connection) -> list[Superseded]:
    found = []
    for row in connection.execute(_PENDING, {"count": limit}).all():
        asked = {"of_repository": row.repository_id, "of_group": row.group_key, "before": row.n}
        earlier = _EARLIER if row.on_new == OnNew.CANCEL_RUNNING else _EARLIER.where(*_NOT_BEGUN)
        runs = list(connection.execute(earlier, asked).scalars())
        found.append(Superseded(row.id, row.number, runs))
    return found


def superseded_done(by: str, connection: Connection) -> None:
    connection.execute(_DONE, {"by": by})
