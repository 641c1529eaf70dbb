"""Operations of the in-memory store, and who is served next.

Part of `testing_store.InMemoryStore`; the same rules as there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from ci_platform.errors import LeaseLost
from ci_platform.labels import RECALL, pool_of_labels, serves
from ci_platform.model import Operation, OperationId, OperationState, RunId, StepKey, WorkerId
from ci_platform.scheduling import AHEAD_MAX, QUEUED_MAX
from ci_platform.store.claims import check_claim
from ci_platform.store.fair import Candidate, in_turns
from ci_platform.testing.tables import Tables

Value = TypeVar("Value")


class InMemoryOperations:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables
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
        tables = self._tables
        now_ms = tables.clock.now_ms()
        with tables.lock:
            queued = [
                (one.id, one.repository_id, one.ready_ms, 0)
                for one in tables.operations.values()
                if one.state is OperationState.QUEUED
                and (one.pool == RECALL if recall else serves(labels, one.pool))
            ]
            claimed = []
            for operation_id, repository_id in in_order(queued, now_ms=now_ms, served=self._served)[
                :limit
            ]:
                one = tables.operations[operation_id]
                tables.operations[operation_id] = replace(
                    one,
                    state=OperationState.RUNNING,
                    fence=one.fence + 1,
                    worker=worker,
                    lease_until_ms=now_ms + lease_ms,
                )
                self._served = repository_id
                claimed.append(tables.operations[operation_id])
        if claimed:
            tables.ring()
        return claimed

    def queued(self, run_id: RunId) -> Mapping[StepKey, int]:
        now_ms = self._tables.clock.now_ms()
        with self._tables.lock:
            every = [
                (number, one)
                for number, one in enumerate(self._tables.operations.values())
                if one.state is OperationState.QUEUED
            ]
        every.sort(key=lambda item: (item[1].ready_ms, item[0]))
        lines: dict[tuple[str, str], list[Operation]] = {}
        for _, one in every:
            lines.setdefault((one.pool, one.repository_id), []).append(one)
        found = {
            one.key: min(ahead, AHEAD_MAX)
            for line in lines.values()
            for ahead, one in enumerate(line)
            if one.run_id == run_id and one.ready_ms <= now_ms
        }
        return dict(list(found.items())[:QUEUED_MAX])

    def pass_on(self, operation: Operation) -> None:
        with self._tables.lock:
            one = self._tables.operations.get(operation.id)
            if one is None or not one.worker or one.fence != operation.fence or one.stop:
                raise LeaseLost(f"{operation.id}: the lease {operation.fence} of it has ended")
            self._tables.operations[one.id] = replace(
                one,
                state=OperationState.QUEUED,
                worker=None,
                lost_worker=None,
                lease_until_ms=None,
                pool=pool_of_labels(one.spec.get("labels") or ()),
            )
        self._tables.ring()

    def close(self, operation_id: OperationId, *, fence: int) -> None:
        with self._tables.lock:
            one = self._tables.operations.get(operation_id)
            if one is not None and one.worker is not None and one.fence == fence:
                self._tables.operations[operation_id] = replace(
                    one, state=OperationState.DONE, worker=None, lease_until_ms=None
                )

    def get(self, operation_id: OperationId) -> Operation | None:
        with self._tables.lock:
            return self._tables.operations.get(operation_id)


def in_order(
    rows: Iterable[tuple[Value, str, int | None, int]], *, now_ms: int, served: str
) -> list[tuple[Value, str]]:
    """Due ones in round robin; `rows` are in order of creation."""
    due = [row for row in rows if row[2] is not None and row[2] <= now_ms]
    due.sort(key=lambda row: row[2] or 0)
    turns = in_turns([Candidate(n, row[1], row[3]) for n, row in enumerate(due)], served)
    return [due[turn.n][:2] for turn in turns]
