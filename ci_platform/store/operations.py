"""Operations: claimed by workers on their own; opened and closed by the appends of their run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from sqlalchemy import Connection, Select, bindparam, case, select

from ci_platform.errors import LeaseLost
from ci_platform.labels import RECALL, most_wanting, pool_of_labels, serves
from ci_platform.model import (
    TERMINAL_STATES,
    Operation,
    OperationId,
    OperationState,
    RepositoryId,
    RunId,
    StepKey,
    WorkerId,
)
from ci_platform.ports import Clock
from ci_platform.scheduling import AHEAD_MAX, QUEUED_MAX
from ci_platform.store.claims import CLAIM_TRIES_MAX, SPARES, check_claim
from ci_platform.store.codec import Columns, key_of
from ci_platform.store.database import Database
from ci_platform.store.fair import FairQueue, in_turns
from ci_platform.store.packing import unpack
from ci_platform.store.pools import due as due_pools
from ci_platform.store.tables import OPERATIONS, RUNS

_QUEUED, _RUNNING, _DONE = (
    OperationState.QUEUED.value,
    OperationState.RUNNING.value,
    OperationState.DONE.value,
)
_GET = select(OPERATIONS).where(OPERATIONS.c.id == bindparam("operation_id"))
_LOCK_DUE = (
    select(OPERATIONS)
    .where(
        OPERATIONS.c.n.in_(bindparam("ns", expanding=True)),
        OPERATIONS.c.due_ms <= bindparam("now"),
    )
    .order_by(OPERATIONS.c.n)
    .with_for_update(skip_locked=True)
)
_QUEUED_OF = (
    select(
        *(OPERATIONS.c[name] for name in ("n", "pool", "repository_id")),
        *(OPERATIONS.c[name] for name in ("step_kind", "step_name", "occurrence")),
    )
    .where(
        OPERATIONS.c.run_n
        == select(RUNS.c.n).where(RUNS.c.id == bindparam("of_run")).scalar_subquery(),
        OPERATIONS.c.state == _QUEUED,
        OPERATIONS.c.due_ms <= bindparam("now"),
    )
    .order_by(OPERATIONS.c.due_ms, OPERATIONS.c.n)
    .limit(QUEUED_MAX)
)
_LINE = (
    select(OPERATIONS.c.n)
    .where(
        OPERATIONS.c.pool == bindparam("of_pool"),
        OPERATIONS.c.repository_id == bindparam("of_repository"),
        OPERATIONS.c.due_ms.is_not(None),
    )
    .order_by(OPERATIONS.c.due_ms, OPERATIONS.c.n)
    .limit(AHEAD_MAX)
)
_LEASE = (
    OPERATIONS.update()
    .where(OPERATIONS.c.n == bindparam("of_n"))
    .values(
        state=_RUNNING,
        due_ms=None,
        fence=OPERATIONS.c.fence + 1,
        worker=bindparam("by_worker"),
        lease_until_ms=bindparam("until_ms"),
    )
)
_CLOSE = (
    OPERATIONS.update()
    .where(
        OPERATIONS.c.id == bindparam("of_id"),
        OPERATIONS.c.fence == bindparam("under_fence"),
        OPERATIONS.c.state == _RUNNING,
    )
    .values(state=_DONE, worker=None, lease_until_ms=None)
)
_LOCK_EXPIRED = (
    select(OPERATIONS.c.n)
    .where(OPERATIONS.c.worker.is_not(None), OPERATIONS.c.lease_until_ms <= bindparam("now"))
    .order_by(OPERATIONS.c.worker, OPERATIONS.c.n)  # as the index of leases has them
    .limit(bindparam("count"))
    .with_for_update(skip_locked=True)
)
_LEASED = select(OPERATIONS.c.n).where(OPERATIONS.c.worker.is_not(None))
_LEASED_BY = _LEASED.where(OPERATIONS.c.worker == bindparam("by_worker"))
_LOCK_ONE = (
    select(OPERATIONS.c.n)
    .where(OPERATIONS.c.n == bindparam("of_n"), OPERATIONS.c.worker == bindparam("by_worker"))
    .with_for_update()
)
_LOCK_ONE_OF_ANY = (
    select(OPERATIONS.c.n)
    .where(OPERATIONS.c.n == bindparam("of_n"), OPERATIONS.c.worker.is_not(None))
    .with_for_update()
)
_RUN_OVER = (
    select(RUNS.c.n)
    .where(RUNS.c.n == OPERATIONS.c.run_n, RUNS.c.state.in_([s.value for s in TERMINAL_STATES]))
    .exists()
)
_PASS_ON = (
    OPERATIONS.update()
    .where(
        OPERATIONS.c.id == bindparam("of_id"),
        OPERATIONS.c.fence == bindparam("under_fence"),
        OPERATIONS.c.state == _RUNNING,
        OPERATIONS.c.stop.is_(False),
    )
    .values(
        state=_QUEUED,
        due_ms=OPERATIONS.c.ready_ms,
        worker=None,
        lost_worker=None,
        lease_until_ms=None,
        pool=bindparam("to_pool"),
    )
)
_REQUEUE = (
    OPERATIONS.update()
    .where(OPERATIONS.c.n.in_(bindparam("ns", expanding=True)))
    .values(
        # Nobody waits for the command of a run that is over, so it is not done again.
        state=case((_RUN_OVER, _DONE), else_=_QUEUED),
        due_ms=case((_RUN_OVER, None), else_=bindparam("at_ms")),
        lost_worker=OPERATIONS.c.worker,
        worker=None,
        lease_until_ms=None,
    )
)


class SqlOperationStore:
    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        ring: Callable[[], None],
        tell: Callable[[], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._ring = ring
        self._tell = tell
        self._queue = FairQueue(OPERATIONS, OPERATIONS.c.due_ms, pool=OPERATIONS.c.pool)
        self._served = ""

    def claim(
        self,
        worker: WorkerId,
        *,
        limit: int,
        lease_ms: int,
        labels: Collection[str] = (),
        recall: bool = False,
    ) -> list[Operation]:
        check_claim(worker, limit)
        for _ in range(CLAIM_TRIES_MAX):
            wanted = [RECALL] if recall else None
            look = partial(self._look, pools=wanted, labels=labels, limit=limit)
            ns = self._database.read(look)
            if not ns:
                return []
            take = partial(self._claim, ns=ns, worker=worker, limit=limit, lease_ms=lease_ms)
            claimed = self._database.write(take)
            if claimed:
                self._tell()  # pages say that they wait
                self._served = claimed[-1].repository_id
                return claimed
        return []

    def _look(
        self,
        connection: Connection,
        *,
        pools: Sequence[str] | None,
        labels: Collection[str],
        limit: int,
    ) -> list[int]:
        """Candidates, best first."""
        now_ms = self._clock.now_ms()
        if pools is None:
            due = due_pools(connection)
            pools = most_wanting(pool for pool in due if serves(labels, pool))
        found = [
            candidate
            for pool in pools
            for candidate in self._queue.candidates(
                connection, now_ms=now_ms, limit=limit * SPARES, after=self._served, pool=pool
            )
        ]
        if len(pools) > 1:
            found = in_turns(found, self._served)[: limit * SPARES]
        return [candidate.n for candidate in found]

    def _claim(
        self,
        connection: Connection,
        *,
        ns: list[int],
        worker: WorkerId,
        limit: int,
        lease_ms: int,
    ) -> list[Operation]:
        now_ms = self._clock.now_ms()  # of the turn to write: it may have been waited for
        lease: dict[str, object] = {"by_worker": worker, "until_ms": now_ms + lease_ms}
        return _claim(connection, ns=ns, lease=lease, limit=limit, now_ms=now_ms)

    def queued(self, run_id: RunId) -> Mapping[StepKey, int]:
        asked = {"of_run": run_id, "now": self._clock.now_ms()}
        return self._database.read(lambda connection: _standing(connection, asked))

    def pass_on(self, operation: Operation) -> None:
        pool = pool_of_labels(operation.spec.get("labels") or ())
        of = {"of_id": operation.id, "under_fence": operation.fence, "to_pool": pool}
        passed = self._database.write(lambda connection: connection.execute(_PASS_ON, of).rowcount)
        if not passed:
            raise LeaseLost(f"{operation.id}: the lease {operation.fence} of it has ended")
        self._ring()

    def get(self, operation_id: OperationId) -> Operation | None:
        row = self._database.read(
            lambda connection: connection.execute(
                _GET, {"operation_id": operation_id}
            ).one_or_none()
        )
        return None if row is None else _operation_of(row)

    def close(self, operation_id: OperationId, *, fence: int) -> None:
        ending = {"of_id": operation_id, "under_fence": fence}
        self._database.write(lambda connection: connection.execute(_CLOSE, ending))

    def expire(self, *, limit: int) -> int:
        """Called with the runs' leases; not part of the protocol."""

        def expire(connection: Connection) -> int:
            now_ms = self._clock.now_ms()
            return _take_back(connection, _LOCK_EXPIRED, {"now": now_ms, "count": limit}, now_ms)

        return self._database.write(expire)

    def release(self, worker: WorkerId | None) -> int:
        """The same for `RunStore.release`."""
        now_ms = self._clock.now_ms()
        leased, lock = (_LEASED, _LOCK_ONE_OF_ANY) if worker is None else (_LEASED_BY, _LOCK_ONE)
        asked = {"by_worker": worker}
        ns = self._database.read(
            lambda connection: list(connection.execute(leased, asked).scalars())
        )
        # One after the other: appends lock those of a run after the run, in no order of theirs.
        return sum(
            self._database.write(
                partial(_take_back, leased=lock, asked={**asked, "of_n": n}, now_ms=now_ms)
            )
            for n in ns
        )


def _standing(connection: Connection, asked: dict[str, object]) -> dict[StepKey, int]:
    rows = connection.execute(_QUEUED_OF, asked).all()
    places: dict[str, dict[int, int]] = {}
    for row in rows:
        if row.pool not in places:
            line = {"of_pool": row.pool, "of_repository": row.repository_id}
            ns = connection.execute(_LINE, line).scalars()
            places[row.pool] = {n: place for place, n in enumerate(ns)}
    return {key_of(row): places[row.pool].get(row.n, AHEAD_MAX) for row in rows}


def _claim(
    connection: Connection, *, ns: list[int], lease: dict[str, object], limit: int, now_ms: int
) -> list[Operation]:
    free = {row.n: row for row in connection.execute(_LOCK_DUE, {"ns": ns, "now": now_ms})}
    chosen = [n for n in ns if n in free][:limit]
    if chosen:
        connection.execute(_LEASE, [{"of_n": n, **lease} for n in chosen])
    return [
        _operation_of(
            free[n],
            state=OperationState.RUNNING,
            fence=free[n].fence + 1,
            worker=lease["by_worker"],
            lease_until_ms=lease["until_ms"],
        )
        for n in chosen
    ]


def _take_back(
    connection: Connection,
    leased: Select[tuple[int | None]],
    asked: dict[str, object],
    now_ms: int,
) -> int:
    """Requeue the operations that `leased` selects and locks."""
    ns = list(connection.execute(leased, asked).scalars())
    if ns:
        connection.execute(_REQUEUE, {"ns": ns, "at_ms": now_ms})
    return len(ns)


def _operation_of(row: Columns, **changed: object) -> Operation:
    fields = {
        "state": OperationState(row.state),
        "fence": row.fence,
        "worker": row.worker,
        "lease_until_ms": row.lease_until_ms,
    }
    return Operation(
        id=OperationId(row.id),
        run_id=RunId(row.run_id),
        repository_id=RepositoryId(row.repository_id),
        key=key_of(row),
        attempt=row.attempt,
        spec=unpack(row.spec),
        ready_ms=row.ready_ms,
        stop=row.stop,
        pool=row.pool,
        lost_worker=None if row.lost_worker is None else WorkerId(row.lost_worker),
        **{**fields, **changed},
    )
