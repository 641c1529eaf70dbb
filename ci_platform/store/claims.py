"""Leases of runs: claim, renew, expire.

A claim looks for candidates without any lock, then locks those rows, drops the ones somebody else
got in between, and writes the rest, all in one short transaction. So callers never wait for each
other's choice, and no run goes to two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, Select, bindparam, select

from ci_platform.errors import InvalidRequest
from ci_platform.model import Entry, Run, WorkerId
from ci_platform.ports import Claim, Clock
from ci_platform.scheduling import RunLimits, Share
from ci_platform.store import moves, slots
from ci_platform.store.codec import entry_columns, entry_of, pack_data, plain
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.fair import CLAIM_MAX, FairQueue
from ci_platform.store.journal import head_of, write_entries, write_moves
from ci_platform.store.tables import ENTRIES, OPERATIONS, RUNS

CLAIM_TRIES_MAX = 5  # when others take all candidates first
SPARES = 2  # candidates looked at for each run asked for

_LOCK_DUE = Direct(
    select(RUNS)
    .where(RUNS.c.n.in_(bindparam("ns", expanding=True)), RUNS.c.ready_ms <= bindparam("now"))
    .order_by(RUNS.c.n)
    .with_for_update(skip_locked=True, key_share=True),
    each="ns",
)
_LOCK_EXPIRED = (
    select(RUNS)
    .where(RUNS.c.worker.is_not(None), RUNS.c.lease_until_ms <= bindparam("now"))
    .order_by(RUNS.c.worker, RUNS.c.n)  # as the index of leases has them
    .limit(bindparam("count"))
    .with_for_update(skip_locked=True, key_share=True)
)
_LOCK_LEASED = (
    select(RUNS)
    .where(RUNS.c.worker.is_not(None))
    .order_by(RUNS.c.worker, RUNS.c.n)
    .with_for_update(key_share=True)
)
_LOCK_LEASED_BY = _LOCK_LEASED.where(RUNS.c.worker == bindparam("by_worker"))
_JOURNALS = Direct(
    select(ENTRIES)
    .where(ENTRIES.c.run_n.in_(bindparam("ns", expanding=True)))
    .order_by(ENTRIES.c.run_n, ENTRIES.c.seq),
    each="ns",
)

Inputs = Callable[[Connection, Sequence[tuple[int, Run]]], list[Run]]


class Leases:
    def __init__(self, database: Database, clock: Clock, inputs: Inputs, limits: RunLimits) -> None:
        self._limits = limits
        self._database = database
        self._clock = clock
        self._inputs = inputs
        self._queue = FairQueue(RUNS, RUNS.c.ready_ms, RUNS.c.priority)
        self._served = ""  # the repository this process served last

    def claim(
        self, worker: WorkerId, *, limit: int, lease_ms: int, share: Share | None = None
    ) -> list[Claim]:
        check_claim(worker, limit)
        if share is not None and share.crowded:
            # Often there is only more of the same: a look costs less than a turn to write.
            look = partial(self._look, now_ms=self._clock.now_ms(), limit=limit, share=share)
            if not self._database.read(look):
                return []
        for _ in range(CLAIM_TRIES_MAX):
            claim = partial(self._claim, worker=worker, limit=limit, lease_ms=lease_ms, share=share)
            claimed = self._database.write(claim, durable=False)
            if claimed is None:
                return []
            if claimed:
                self._served = claimed[-1][1].repository_id
                return self._database.read(partial(self._with_journals, claimed=claimed))
        return []

    def _claim(
        self,
        connection: Connection,
        *,
        worker: WorkerId,
        limit: int,
        lease_ms: int,
        share: Share | None,
    ) -> list[tuple[int, Run]] | None:
        """None: nothing is due."""
        lease = _Lease(worker, lease_ms, self._clock.now_ms(), self._limits)
        ns = self._look(connection, now_ms=lease.now_ms, limit=limit, share=share)
        return _claim(connection, ns=ns, limit=limit, lease=lease) if ns else None

    def _look(
        self, connection: Connection, *, now_ms: int, limit: int, share: Share | None
    ) -> list[int]:
        """Candidates, best first. Where there is a limit, those that execute already go first."""
        ns: list[int] = []
        most = limit * SPARES
        if self._limits:
            ns = slots.continuing(connection, now_ms=now_ms, limit=most)
            if slots.full(connection, self._limits):
                return ns
        found = self._queue.candidates(connection, now_ms=now_ms, limit=most, after=self._served)
        due = [(candidate.n, candidate.repository_id) for candidate in found]
        chosen = [n for n, _ in due] if share is None else share.first(due)
        return list(dict.fromkeys([*ns, *chosen]))

    def _with_journals(
        self, connection: Connection, claimed: Sequence[tuple[int, Run]]
    ) -> list[Claim]:
        runs = self._inputs(connection, claimed)
        journals: dict[int, list[Entry]] = {n: [] for n, _ in claimed}
        for row in _JOURNALS.rows(connection, {"ns": list(journals)}):
            journals[row.run_n].append(entry_of(row))
        # Entries that somebody added behind the claim are told by a refused append, not here.
        return [
            Claim(run, journals[n][: run.last_seq])
            for (n, _), run in zip(claimed, runs, strict=True)
        ]

    def renew(self, worker: WorkerId, *, lease_ms: int, held: Collection[str] | None) -> None:
        def renew(connection: Connection) -> None:
            lease = {"lease_until_ms": self._clock.now_ms() + lease_ms}
            _renew(connection, worker=worker, lease=lease, held=held)

        self._database.write(renew, durable=False)

    def expire(self, *, limit: int) -> int:
        def expire(connection: Connection) -> int:
            now_ms = self._clock.now_ms()
            return _take_back(connection, _LOCK_EXPIRED, {"now": now_ms, "count": limit}, now_ms)

        return self._database.write(expire)

    def refill(self) -> int:
        """See slots.refill. Looks first: there are hardly ever any held runs."""
        if not self._database.read(slots.anyone_over):
            return 0
        now_ms = self._clock.now_ms()
        return self._database.write(
            lambda connection: slots.refill(connection, self._limits, now_ms)
        )

    def release(self, worker: WorkerId | None) -> int:
        leased = _LOCK_LEASED if worker is None else _LOCK_LEASED_BY
        return self._database.write(
            lambda connection: _take_back(
                connection, leased, {"by_worker": worker}, self._clock.now_ms()
            )
        )


def check_claim(worker: WorkerId, limit: int) -> None:
    """Raises InvalidRequest."""
    plain(worker, "worker")
    if not 1 <= limit <= CLAIM_MAX:
        raise InvalidRequest(f"limit is {limit}: expected 1 to {CLAIM_MAX}", field="limit")


@dataclass(frozen=True, slots=True)
class _Lease:
    worker: WorkerId
    lease_ms: int
    now_ms: int
    limits: RunLimits


def _claim(
    connection: Connection, *, ns: Sequence[int], limit: int, lease: _Lease
) -> list[tuple[int, Run]]:
    """Lease the first of the runs `ns` that are still free."""
    rows = _LOCK_DUE.rows(connection, {"ns": ns, "now": lease.now_ms})
    free = {row.n: row for row in rows}
    chosen = [n for n in ns if n in free][:limit]
    if lease.limits:
        due = [(n, head_of(free[n])) for n in ns if n in free]
        chosen, over = slots.choose(connection, due, lease.limits, limit=limit)
        slots.hold(connection, over, lease.now_ms)
    claimed = []
    entries = []
    for n in chosen:
        run, entry = moves.claimed(
            head_of(free[n]),
            lease.worker,
            lease_ms=lease.lease_ms,
            now_ms=lease.now_ms,
            slot=bool(lease.limits),
        )
        claimed.append((n, run))
        entries.append(entry_columns(n, entry, pack_data(entry.data, entry.kind)))
    write_entries(connection, entries)
    write_moves(connection, claimed)
    return claimed


def _renew(
    connection: Connection,
    *,
    worker: WorkerId,
    lease: dict[str, int],
    held: Collection[str] | None,
) -> None:
    for table in (RUNS, OPERATIONS):
        # Rows that are being written right now are left for the next heartbeat: waiting for them
        # in another order than their writer's could lock both up.
        leased = select(table.c.n, table.c.id).where(table.c.worker == worker)
        rows = connection.execute(leased.with_for_update(skip_locked=True)).all()
        ns = [row.n for row in rows if held is None or row.id in held]
        if ns:
            connection.execute(table.update().where(table.c.n.in_(ns)).values(lease))


def _take_back(
    connection: Connection,
    leased: Select[tuple[object, ...]],
    asked: dict[str, object],
    now_ms: int,
) -> int:
    """Requeue the runs that `leased` selects and locks."""
    runs = []
    entries = []
    for row in connection.execute(leased, asked):
        run, entry = moves.expired(head_of(row), now_ms)
        runs.append((row.n, run))
        entries.append(entry_columns(row.n, entry, pack_data(entry.data, entry.kind)))
    write_entries(connection, entries)
    write_moves(connection, runs)
    return len(runs)
