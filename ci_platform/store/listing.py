"""Pages of runs, newest first. Builds statements; runs.py executes them.

A list that names several states or repositories is the merge of one short list for each, so that
every part is read from an index and stops early, however many rows there are. What no index
answers is looked for among so many of the newest runs, and the page's cursor leads on from there.
"""

from __future__ import annotations

from itertools import product

from sqlalchemy import Column, ColumnElement, Select, select, union_all

from ci_platform.errors import InvalidRequest
from ci_platform.model import TERMINAL_STATES, RepositoryId, RunState
from ci_platform.ports import RunFilter
from ci_platform.store.codec import commit_key
from ci_platform.store.tables import RUNS

PAGE_MAX = 500  # runs of one page
PARTS_MAX = 64  # states times repositories that are read one by one; more are read together
_LIVE = frozenset(RunState) - TERMINAL_STATES
LOOKED_MAX = 10_000  # runs that one page is looked for in, when no index answers its filter


def place(which: RunFilter) -> Column[int]:
    """What a cursor counts: of one repository the numbers, which have the order of `n` there."""
    number: Column[int] = RUNS.c.number if _one(which) else RUNS.c.n
    return number


def floor(which: RunFilter, *, cursor: str | None) -> Select[int] | None:
    """Select the place of the last run that is looked at; no row: all are. None: an index leads to
    the runs. Raises InvalidRequest."""
    one, column = _one(which), place(which)
    if which.commit is not None and one is not None:
        return None
    ended = one is not None and which.states and not _live(which)
    # Of those that have not ended, the index does not say in which state they are.
    some_live = one is not None and _live(which) and not set(which.states).issuperset(_LIVE)
    if not _others(which) and not ended and not some_live:
        return None
    before = position(cursor)
    conditions = _equal(one, None)
    if some_live:
        conditions.append(RUNS.c.ended_ms.is_(None))
    if before is not None:
        conditions.append(column < before)
    ordered = select(column).where(*conditions).order_by(column.desc())
    return ordered.limit(1).offset(LOOKED_MAX - 1)


def page(
    base: Select[tuple[object, ...]],
    which: RunFilter,
    *,
    cursor: str | None,
    floor: int | None,
    limit: int,
) -> Select[tuple[object, ...]] | None:
    """Select one row more than `limit`, to see whether there is a next page. None: no rows.

    Raises InvalidRequest for a cursor that is none of ours, and a limit out of range.
    """
    check_limit(limit)
    if which.repository_ids is not None and not which.repository_ids:
        return None
    column, before = place(which), position(cursor)
    common = _others(which)
    if _live(which):
        common.append(RUNS.c.ended_ms.is_(None))  # they have an index
    common += [] if before is None else [column < before]
    common += [] if floor is None else [column >= floor]
    repositories: list[RepositoryId | None] = [None]
    if which.repository_ids is not None:
        repositories = [*sorted(set(which.repository_ids))]
    states: list[RunState | None] = [*sorted(set(which.states))] or [None]
    one = _one(which)
    together = floor is not None or (one is not None and _live(which))
    if not together and len(repositories) * len(states) <= PARTS_MAX:
        parts = [
            _part([*common, *_equal(repository, state)], repository, limit + 1)
            for repository, state in product(repositories, states)
        ]
        if len(parts) == 1:
            chosen = parts[0]
        else:
            chosen = select(union_all(*(select(part.subquery()) for part in parts)).subquery())
    else:
        some = [*common, *_equal(one, None)]
        if which.states:
            some.append(RUNS.c.state.in_(which.states))
        if which.repository_ids and one is None:
            some.append(RUNS.c.repository_id.in_(repositories))
        chosen = _part(some, one, limit + 1)
    ns = chosen.subquery()
    return base.where(RUNS.c.n.in_(select(ns.c.n))).order_by(RUNS.c.n.desc()).limit(limit + 1)


def _live(which: RunFilter) -> bool:
    """Whether runs that have not ended are asked for."""
    return bool(which.states) and TERMINAL_STATES.isdisjoint(which.states)


def _one(which: RunFilter) -> RepositoryId | None:
    """The only repository that is asked for."""
    ids = set(which.repository_ids or ())
    return ids.pop() if len(ids) == 1 else None


def check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidRequest(f"limit is {limit}: expected 1 to {PAGE_MAX}", field="limit")


def position(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise InvalidRequest("cursor is not one that a page of runs gave", field="cursor")
    return int(cursor)


def _others(which: RunFilter) -> list[ColumnElement[bool]]:
    """What is asked for besides repositories and states."""
    conditions: list[ColumnElement[bool]] = []
    if which.pipeline is not None:
        conditions.append(RUNS.c.pipeline == which.pipeline)
    if which.branch is not None:
        conditions.append(RUNS.c.ref == f"refs/heads/{which.branch}")
    if which.commit is not None:
        conditions.append(RUNS.c.commit == which.commit)
        if (one := _one(which)) is not None:  # there is an index
            conditions.append(RUNS.c.commit_key == commit_key(one, which.commit))
    if which.trigger is not None:
        conditions.append(RUNS.c.trigger == which.trigger)
    if which.actor is not None:
        conditions.append(RUNS.c.actor == which.actor)
    if which.created_after_ms is not None:
        conditions.append(RUNS.c.created_ms >= which.created_after_ms)
    if which.created_before_ms is not None:
        conditions.append(RUNS.c.created_ms < which.created_before_ms)
    return conditions


def _equal(repository: str | None, state: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if repository is not None:
        conditions.append(RUNS.c.repository_id == repository)
    if state is not None:
        conditions.append(RUNS.c.state == state)
    return conditions


def _part(
    conditions: list[ColumnElement[bool]], repository: str | None, limit: int
) -> Select[tuple[int]]:
    """One short list. Within a repository the numbers have the same order as `n`, and an index."""
    order = RUNS.c.n if repository is None else RUNS.c.number
    return select(RUNS.c.n).where(*conditions).order_by(order.desc()).limit(limit)
