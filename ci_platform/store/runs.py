"""Runs and their journals: the door to births, journal, claims, and the queries.

Called by commands, queries and workers through `ports.RunStore`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from sqlalchemy import Connection, bindparam, func, select

from ci_platform.errors import Conflict, InvalidRequest, RunNotFound, SluiceError, StoreUnavailable
from ci_platform.model import (
    TERMINAL_STATES,
    AuditNote,
    Entry,
    NewRun,
    RepositoryId,
    Run,
    RunId,
    RunState,
    WorkerId,
)
from ci_platform.ports import Append, Appended, Claim, Clock, RunFilter, RunPage
from ci_platform.ports.housekeeping import OldRuns
from ci_platform.scheduling import RunLimits, Share, Standing, Superseded
from ci_platform.store import (
    audit,
    births,
    family,
    journal,
    listing,
    pools,
    retention,
    slots,
    standing,
)
from ci_platform.store.bell import Bells
from ci_platform.store.claims import Leases
from ci_platform.store.codec import Columns, entry_of, run_of
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.inputs import InputCache, payload_of
from ci_platform.store.operations import SqlOperationStore
from ci_platform.store.packing import unpack
from ci_platform.store.tables import ENTRIES, RUN_INPUTS, RUNS
from ci_platform.store.writer import GroupCommit

CREATED_MAX = 10_000  # runs of one call to `create`
LIVE_STATES = tuple(state for state in RunState if state not in TERMINAL_STATES)

_WITH_INPUTS = select(RUNS, RUN_INPUTS.c.payload, RUN_INPUTS.c.event).join(
    RUN_INPUTS, RUN_INPUTS.c.run_n == RUNS.c.n
)
_GET = _WITH_INPUTS.where(RUNS.c.id == bindparam("run_id"))
_BY_NUMBER = _WITH_INPUTS.where(
    RUNS.c.repository_id == bindparam("repository_id"), RUNS.c.number == bindparam("number")
)
_NUMBER = select(RUNS.c.n).where(RUNS.c.id == bindparam("run_id"))
_JOURNAL = (
    select(ENTRIES)
    .where(ENTRIES.c.run_n == bindparam("run_n"), ENTRIES.c.seq > bindparam("after"))
    .order_by(ENTRIES.c.seq)
)
_COUNTS = (
    select(RUNS.c.state, func.count())
    .where(RUNS.c.state.in_([state.value for state in LIVE_STATES]))
    .group_by(RUNS.c.state)
)
_NEXT_RUN = Direct(
    select(RUNS.c.ready_ms).where(RUNS.c.ready_ms.is_not(None)).order_by(RUNS.c.ready_ms).limit(1)
)
_DUE_SINCE = Direct(
    select(RUNS.c.ready_ms)
    .where(RUNS.c.ready_ms.is_not(None), RUNS.c.ready_ms <= bindparam("now"))
    .order_by(RUNS.c.ready_ms)
    .limit(1)
)
_LOCK = select(RUNS.c.n, RUNS.c.state).where(RUNS.c.id == bindparam("run_id")).with_for_update()
_DELETE = RUNS.delete().where(RUNS.c.n == bindparam("run_n"))

Verdicts: TypeAlias = Sequence[journal.Verdict | SluiceError]


class SqlRunStore:
    def __init__(
        self,
        database: Database,
        clock: Clock,
        operations: SqlOperationStore,
        bells: Bells,
        *,
        limits: RunLimits,
    ) -> None:
        self._database = database
        self._clock = clock
        self._operations = operations
        self._bells = bells
        self._inputs = InputCache()
        self._limits = limits
        self._leases = Leases(database, clock, self._inputs.complete, limits)
        self._appends = GroupCommit[journal.Prepared, journal.Verdict](
            database, journal.Appender(clock), committed=self._appended
        )
        self._births = GroupCommit[births.Creation, list[Run]](
            database, births.Creator(clock), committed=lambda _: bells.ring()
        )

    def create(
        self,
        new: Sequence[NewRun],
        *,
        skip_existing: bool = False,
        notes: Sequence[AuditNote] = (),
    ) -> list[Run]:
        check_created(new)
        if not new:
            return []
        creation = births.prepare(new, skip_existing=skip_existing, notes=notes)
        return self._births.submit(creation, size=creation.size)

    def get(self, run_id: RunId) -> Run:
        return self._database.read(lambda connection: _get(connection, run_id))

    def by_number(self, repository_id: RepositoryId, number: int) -> Run:
        asked = {"repository_id": repository_id, "number": number}
        row = self._database.read(
            lambda connection: connection.execute(_BY_NUMBER, asked).one_or_none()
        )
        if row is None:
            raise RunNotFound(f"{repository_id} has no run #{number}")
        return whole(row)

    def list(self, which: RunFilter, *, cursor: str | None = None, limit: int = 50) -> RunPage:
        listing.check_limit(limit)
        return self._database.read(partial(_list, which=which, cursor=cursor, limit=limit))

    def counts(self) -> Mapping[RunState, int]:
        rows = self._database.read(lambda connection: connection.execute(_COUNTS).all())
        found = {RunState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in LIVE_STATES}

    def journal(
        self, run_id: RunId, *, after: int = 0, limit: int | None = None
    ) -> Sequence[Entry]:
        return self._database.read(partial(_journal, run_id=run_id, after=after, limit=limit))

    def claim(
        self, worker: WorkerId, *, limit: int, lease_ms: int, share: Share | None = None
    ) -> Sequence[Claim]:
        claims = self._leases.claim(worker, limit=limit, lease_ms=lease_ms, share=share)
        if claims:
            self._bells.tell()
        return claims

    def append(self, append: Append) -> Appended:
        prepared = journal.prepare(append)
        match self._appends.submit(prepared, size=prepared.size):
            case journal.Written(n=n, run=run, entries=entries):
                payload, event = self._inputs.of(self._database, n, run)
                return Appended(True, entries, replace(run, payload=payload, event=event))
            case journal.Stale():
                return self._refused(append)

    def _appended(self, verdicts: Verdicts) -> None:
        if any(isinstance(verdict, journal.Written) and verdict.work for verdict in verdicts):
            self._bells.ring()
        else:
            self._bells.tell()

    def _refused(self, append: Append) -> Appended:
        run = self.get(append.run_id)
        entries = self.journal(append.run_id, after=append.expected_seq)
        # Of one moment: what came between the two reads is left for the next look.
        return Appended(False, [entry for entry in entries if entry.seq <= run.last_seq], run)

    def renew(
        self, worker: WorkerId, *, lease_ms: int, held: Collection[str] | None = None
    ) -> None:
        self._leases.renew(worker, lease_ms=lease_ms, held=held)

    def expire(self, *, limit: int = 100) -> int:
        expired = self._leases.expire(limit=limit) + self._operations.expire(limit=limit)
        if self._leases.refill() or expired:
            self._bells.ring()
        return expired

    def release(self, worker: WorkerId | None) -> int:
        released = self._leases.release(worker) + self._operations.release(worker)
        if released:
            self._bells.ring()
        return released

    def next_ready_ms(self, labels: Collection[str] | None = None) -> int | None:
        return self._database.read(partial(_next_ready_ms, labels=labels))

    def due_since_ms(self) -> int | None:
        asked = {"now": self._clock.now_ms()}
        rows = self._database.read(lambda connection: _DUE_SINCE.rows(connection, asked))
        return next((row.ready_ms for row in rows), None)

    def delete(self, run_id: RunId, *, note: AuditNote | None = None) -> None:
        noted = [] if note is None else [audit.columns(note)]

        def delete(connection: Connection) -> None:
            _delete(connection, run_id)
            audit.write(connection, noted)

        self._database.write(delete)
        self._bells.ring()

    def old(self, *, before_ms: int, keep: int, after: int = 0, limit: int = 500) -> OldRuns:
        return self._database.read(
            partial(retention.old, before_ms=before_ms, keep=keep, after=after, limit=limit)
        )

    def standing(self, run_id: str) -> Standing | None:
        def work(connection: Connection) -> Standing | None:
            row = connection.execute(_GET, {"run_id": run_id}).one_or_none()
            if row is None:
                raise RunNotFound(f"no run has the id {run_id}")
            return standing.standing(connection, row.n, whole(row), self._limits)

        return self._database.read(work)

    def superseded(self, *, limit: int = 100) -> Sequence[Superseded]:
        return self._database.read(partial(slots.superseded, limit))

    def superseded_done(self, by: str) -> None:
        self._database.write(partial(slots.superseded_done, by))

    def commits_used(self, repository_id: RepositoryId, commits: Sequence[str]) -> set[str]:
        return self._database.read(partial(retention.commits_used, repository_id, commits))

    def layers_used(self, digests: Sequence[str]) -> set[str]:
        return self._database.read(partial(retention.layers_used, digests))


def check_created(new: Sequence[NewRun]) -> None:
    """Raises InvalidRequest."""
    if len(new) > CREATED_MAX:
        raise InvalidRequest(f"{len(new)} runs at once: at most {CREATED_MAX}", field="new")


def whole(row: Columns) -> Run:
    """A run from its row joined with its inputs."""
    run = run_of(row, {}, unpack(row.event))
    return replace(run, payload=payload_of(row.payload, run))


def _get(connection: Connection, run_id: RunId) -> Run:
    row = connection.execute(_GET, {"run_id": run_id}).one_or_none()
    if row is None:
        raise RunNotFound(f"no run has the id {run_id}")
    return whole(row)


def _list(connection: Connection, *, which: RunFilter, cursor: str | None, limit: int) -> RunPage:
    look = listing.floor(which, cursor=cursor)
    floor = None if look is None else connection.execute(look).scalar_one_or_none()
    statement = listing.page(_WITH_INPUTS, which, cursor=cursor, floor=floor, limit=limit)
    if statement is None:
        return RunPage((), None)
    rows = connection.execute(statement).all()
    last = None if floor is None else str(floor)
    if len(rows) > limit:
        last = str(getattr(rows[limit - 1], listing.place(which).name))
    return RunPage([whole(row) for row in rows[:limit]], last)


def _journal(
    connection: Connection, *, run_id: RunId, after: int, limit: int | None
) -> list[Entry]:
    run_n = connection.execute(_NUMBER, {"run_id": run_id}).scalar_one_or_none()
    if run_n is None:
        raise RunNotFound(f"no run has the id {run_id}")
    statement = _JOURNAL if limit is None else _JOURNAL.limit(limit)
    asked = {"run_n": run_n, "after": after}
    return [entry_of(row) for row in connection.execute(statement, asked).all()]


def _next_ready_ms(connection: Connection, labels: Collection[str] | None) -> int | None:
    due = [row.ready_ms for row in _NEXT_RUN.rows(connection, {})]
    command_ms = pools.next_due_ms(connection, labels)
    return min(due if command_ms is None else [*due, command_ms], default=None)


def _delete(connection: Connection, run_id: RunId) -> None:
    row = connection.execute(_LOCK, {"run_id": run_id}).one_or_none()
    if row is None:
        raise RunNotFound(f"no run has the id {run_id}")
    if not RunState(row.state).terminal:
        raise Conflict(f"{run_id} is {row.state}: only a run that has ended can be deleted")
    family.lock(connection, [row.n])  # they go with it, in no order of their own
    gone = connection.execute(_DELETE, {"run_n": row.n}).rowcount
    if gone != 1:
        raise StoreUnavailable(f"{run_id}: {gone} rows went instead of one")
