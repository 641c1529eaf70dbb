"""Operations: claimed by workers on their own; opened and closed by the appends of their run."""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection, Select, bindparam, case, select

from ci_platform.model import (
    TERMINAL_STATES,
    Operation,
    OperationId,
    OperationState,
    RepositoryId,
    RunId,
    WorkerId,
)
from ci_platform.ports import Clock
from ci_platform.store.claims import CLAIM_TRIES_MAX, SPARES, check_claim
from ci_platform.store.codec import Columns, key_of
from ci_platform.store.database import Database
from ci_platform.store.fair import FairQueue
from ci_platform.store.packing import unpack
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
_LOCK_LEASED = (
    select(OPERATIONS.c.n)
    .where(OPERATIONS.c.worker.is_not(None))
    .order_by(OPERATIONS.c.worker, OPERATIONS.c.n)
    .with_for_update()
)
_LOCK_LEASED_BY = _LOCK_LEASED.where(OPERATIONS.c.worker == bindparam("by_worker"))
_RUN_OVER = (
    select(RUNS.c.n)
    .where(RUNS.c.n == OPERATIONS.c.run_n, RUNS.c.state.in_([s.value for s in TERMINAL_STATES]))
    .exists()
)
_REQUEUE = (
    OPERATIONS.update()
    .where(OPERATIONS.c.n.in_(bindparam("ns", expanding=True)))
    .values(
        # Nobody waits for the command of a run that is over, so it is not done again.
        state=case((_RUN_OVER, _DONE), else_=_QUEUED),
        due_ms=case((_RUN_OVER, None), else_=bindparam("at_ms")),
        worker=None,
        lease_until_ms=None,
    )
)


class SqlOperationStore:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._queue = FairQueue(OPERATIONS, OPERATIONS.c.due_ms)
        self._served = ""

    def claim(self, worker: WorkerId, *, limit: int, lease_ms: int) -> list[Operation]:
        check_claim(worker, limit)
        for _ in range(CLAIM_TRIES_MAX):
            now_ms = self._clock.now_ms()
            look = partial(
                self._queue.candidates, now_ms=now_ms, limit=limit * SPARES, after=self._served
            )
            candidates = self._database.read(look)
            if not candidates:
                return []
            take = partial(
                _claim,
                ns=[candidate.n for candidate in candidates],
                lease={"by_worker": worker, "until_ms": now_ms + lease_ms},
                limit=limit,
                now_ms=now_ms,
            )
            claimed = self._database.write(take)
            if claimed:
                self._served = claimed[-1].repository_id
                return claimed
        return []

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
        now_ms = self._clock.now_ms()
        return self._database.write(
            lambda connection: _take_back(
                connection, _LOCK_EXPIRED, {"now": now_ms, "count": limit}, now_ms
            )
        )

    def release(self, worker: WorkerId | None) -> int:
        """The same for `RunStore.release`."""
        now_ms = self._clock.now_ms()
        leased = _LOCK_LEASED if worker is None else _LOCK_LEASED_BY
        return self._database.write(
            lambda connection: _take_back(connection, leased, {"by_worker": worker}, now_ms)
        )


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
        **{**fields, **changed},
    )
