"""Appending to journals: a batch of appends inside one transaction.

Every row the batch will touch is locked first, in one order everywhere; then each append is
decided on its own by moves.py, and what is admitted is written in a few statements for all of
them. Everything that can be checked or encoded before the transaction is, in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

from sqlalchemy import Connection, bindparam, select

from ci_platform.errors import RunNotFound, SluiceError
from ci_platform.model import Entry, Run, RunId
from ci_platform.ports import Append, Clock
from ci_platform.store import audit, effects, family, moves, retention, slots
from ci_platform.store.codec import (
    Columns,
    commit_columns,
    entry_columns,
    key_columns,
    moving_columns,
    pack_data,
    run_of,
)
from ci_platform.store.direct import Direct
from ci_platform.store.tables import ENTRIES, RUNS

_LOCK_RUNS = Direct(
    select(RUNS)
    .where(RUNS.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(RUNS.c.n)
    # No key moves: who writes logs of these runs, or starts children of them, need not wait.
    .with_for_update(key_share=True),
    each="ids",
)
_ADD_ENTRIES = Direct(ENTRIES.insert())
_MOVING = (
    *("state", "reason", "last_seq", "fence", "worker", "lease_until_ms", "ready_ms"),
    *("waits", "started_ms", "ended_ms", "output", "error", "pause_requested", "cancel_requested"),
    *("hold", "slot"),
)
_MOVE_RUN = Direct(
    RUNS.update()
    .where(RUNS.c.n == bindparam("run_n"))
    .values({name: bindparam(name) for name in _MOVING})
)
# Apart: a column that is set costs its index a turn, even when it stays what it was. So most
# appends, which leave their run as it is, set nothing but how long its journal is.
_EXTEND_RUN = Direct(
    RUNS.update().where(RUNS.c.n == bindparam("run_n")).values(last_seq=bindparam("last_seq"))
)
_standing = attrgetter(*(name for name in _MOVING if name != "last_seq"))
_MOVE_COMMIT = Direct(
    RUNS.update()
    .where(RUNS.c.n == bindparam("run_n"))
    .values({name: bindparam(name) for name in ("commit", "commit_key")})
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An append whose parts are checked and encoded."""

    append: Append
    data: Sequence[bytes | None]  # packed, of each draft's data
    effects: Sequence[effects.Prepared]
    note: Mapping[str, object] | None  # for the audit log

    @property
    def size(self) -> int:
        return sum(len(data) for data in self.data if data is not None)


@dataclass(frozen=True, slots=True)
class Written:
    """The append stands. The run lacks its inputs."""

    n: int
    run: Run
    entries: Sequence[Entry]
    work: bool  # a worker may have something to do: a run that was let go, an operation


@dataclass(frozen=True, slots=True)
class Stale:
    """The journal has moved on. Nothing was written."""


Verdict: TypeAlias = Written | Stale


def prepare(append: Append) -> Prepared:
    """Raises InvalidRequest, TooLarge."""
    moves.check(append)
    for draft in append.drafts:
        if draft.key is not None:
            key_columns(draft.key)  # checks the name
    return Prepared(
        append=append,
        data=[pack_data(draft.data, draft.kind) for draft in append.drafts],
        effects=[effects.prepare(effect) for effect in append.effects],
        note=None if append.note is None else audit.columns(append.note),
    )


def head_of(row: Columns) -> Run:
    """A run without its inputs, for deciding and moving."""
    return run_of(row, {}, {})


def lock_runs(connection: Connection, ids: Sequence[RunId]) -> dict[RunId, tuple[int, Run]]:
    return {row.id: (row.n, head_of(row)) for row in _LOCK_RUNS.rows(connection, {"ids": ids})}


def write_moves(connection: Connection, runs: Sequence[tuple[int, Run]]) -> None:
    """Write the moving columns of runs, but not their commits. Their rows are locked."""
    if runs:
        _MOVE_RUN.many(connection, [{"run_n": n, **moving_columns(run)} for n, run in runs])


def write_lengths(connection: Connection, runs: Sequence[tuple[int, Run]]) -> None:
    """Write that journals have grown, of runs that are as they were. Their rows are locked."""
    if runs:
        rows = [{"run_n": n, "last_seq": run.last_seq} for n, run in runs]
        _EXTEND_RUN.many(connection, rows)


def write_commits(connection: Connection, runs: Sequence[tuple[int, Run]]) -> None:
    """Write the commits that runs go on from. Their rows are locked."""
    if runs:
        _MOVE_COMMIT.many(connection, [{"run_n": n, **commit_columns(run)} for n, run in runs])


def write_entries(connection: Connection, rows: Sequence[dict[str, object]]) -> None:
    if rows:
        _ADD_ENTRIES.many(connection, rows)
        retention.note_layers(connection, rows)


class Appender:
    """Handles batches for the group commit."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(
        self, connection: Connection, batch: Sequence[Prepared]
    ) -> list[Verdict | SluiceError]:
        slots.lock(connection, filter(None, (_group(prepared.append) for prepared in batch)))
        runs = lock_runs(connection, sorted({prepared.append.run_id for prepared in batch}))
        now_ms = self._clock.now_ms()  # when the locks are held: entries are in order of time
        before = dict(runs.values())
        moved: dict[int, Run] = {}
        elsewhere: dict[int, Run] = {}  # of these, which go on from another commit
        freed: list[str] = []  # repositories in which a run stopped executing
        rows: list[dict[str, object]] = []
        notes: list[Mapping[str, object]] = []
        verdicts: list[Verdict | SluiceError] = []
        for prepared in batch:
            run_id = prepared.append.run_id
            try:
                verdict = _decide(connection, prepared, runs.get(run_id), now_ms)
            except SluiceError as error:
                verdicts.append(error)
                continue
            verdicts.append(verdict)
            if isinstance(verdict, Written):
                if runs[run_id][1].slot and not verdict.run.slot:
                    freed.append(verdict.run.repository_id)
                if runs[run_id][1].commit != verdict.run.commit:
                    elsewhere[verdict.n] = verdict.run
                runs[run_id] = (verdict.n, verdict.run)
                moved[verdict.n] = verdict.run
                if prepared.note is not None:
                    notes.append(prepared.note)
                rows += [
                    entry_columns(verdict.n, entry, data)
                    for entry, data in zip(verdict.entries, prepared.data, strict=True)
                ]
        write_entries(connection, rows)
        standing = {n for n, run in moved.items() if _standing(run) == _standing(before[n])}
        write_lengths(connection, [(n, moved[n]) for n in standing])
        write_moves(connection, [(n, run) for n, run in moved.items() if n not in standing])
        write_commits(connection, list(elsewhere.items()))
        audit.write(connection, notes)
        groups = [group for run in moved.values() if (group := slots.concerns(run)) is not None]
        if groups:
            slots.admit(connection, groups, now_ms)
        if freed:
            slots.release(connection, freed, now_ms)
        ended = [n for n, run in moved.items() if run.state.terminal]
        if ended:
            effects.end(connection, ended, now_ms)
            family.mark(connection, ended)
        return verdicts


def _group(append: Append) -> tuple[str, str] | None:
    """The group in which this append may free a slot, or find one: see `slots.concerns`."""
    may = append.update.state.terminal or append.fence is None
    if append.group is None or append.identity is None or not may:
        return None
    return append.identity[0], append.group


def _makes_work(before: Run, after: Run, append: Append) -> bool:
    """Whether a worker may have something to do now. Not when the one that has a run ends it, and
    nothing waits for its place: most rings of a busy deployment would be for that."""
    if append.effects or after.worker is not None:
        return bool(append.effects)
    alone = append.fence is not None and after.place.group is None and not before.slot
    return not (after.state.terminal and alone)


def _decide(
    connection: Connection, prepared: Prepared, found: tuple[int, Run] | None, now_ms: int
) -> Verdict:
    """Decide one append and apply its effects; the caller writes entries and run."""
    append = prepared.append
    if found is None:
        raise RunNotFound(f"no run has the id {append.run_id}")
    n, run = found
    for effect in prepared.effects:
        effects.check_lease(connection, effect, n)
    if not moves.admits(run, append):
        return Stale()
    for effect in prepared.effects:
        effects.check(connection, effect, n)
    for effect in prepared.effects:
        effects.apply(connection, effect, n, run, now_ms)
    after = moves.moved(run, append, now_ms)
    entries = moves.numbered(append.drafts, run.last_seq, now_ms)
    return Written(n, after, entries, work=_makes_work(run, after, append))
