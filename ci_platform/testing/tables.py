"""The tables of the in-memory store that change together, and the effects of an append on them.

Part of `testing_store.InMemoryStore`; the same rules as there.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ci_platform.effects import (
    CloseApproval,
    CloseOperation,
    DelayApprovals,
    Effect,
    OpenApproval,
    OpenOperation,
    RecordDecision,
    ReleaseChildren,
    StopOperations,
)
from ci_platform.errors import Conflict, LeaseLost, RunNotFound, StepNotFound
from ci_platform.family import Link
from ci_platform.labels import pool_of
from ci_platform.model import (
    Approval,
    Decision,
    Entry,
    Json,
    LogLine,
    Operation,
    OperationId,
    OperationState,
    RepositoryId,
    Run,
    RunId,
    StepKey,
    WorkerId,
)
from ci_platform.ports import Clock
from ci_platform.ports.logs import Held
from ci_platform.shell import Memo
from ci_platform.store import effects, logs
from ci_platform.store.codec import plain
from ci_platform.store.packing import unpack


@dataclass(frozen=True, slots=True)
class KeptMemo:
    memo: Memo
    used_ms: int


@dataclass(slots=True)
class Tables:
    """Everything, under one lock."""

    clock: Clock
    ring: Callable[[], None]
    lock: threading.RLock = field(default_factory=threading.RLock)
    runs: dict[RunId, Run] = field(default_factory=dict)  # in order of creation
    counters: Counter[RepositoryId] = field(default_factory=Counter)
    journals: dict[RunId, list[Entry]] = field(default_factory=dict)
    operations: dict[OperationId, Operation] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)  # by child, in order of creation
    approvals: dict[tuple[RunId, StepKey], Approval] = field(default_factory=dict)
    logs: dict[RunId, dict[str, list[LogLine]]] = field(default_factory=dict)
    memos: dict[tuple[RepositoryId, str, str], KeptMemo] = field(default_factory=dict)

    def run(self, run_id: RunId) -> Run:
        try:
            return self.runs[run_id]
        except KeyError:
            raise RunNotFound(f"no run has the id {run_id}") from None

    def held(self, worker: WorkerId) -> tuple[int, int]:
        """How many runs and commands a worker has leased."""
        with self.lock:
            runs = sum(run.worker == worker for run in self.runs.values())
            return runs, sum(one.worker == worker for one in self.operations.values())


class Effects:
    """The effects of one append."""

    def __init__(self, tables: Tables, run: Run, now_ms: int) -> None:
        self._tables = tables
        self._run = run
        self._now_ms = now_ms

    def check_lease(self, effect: Effect) -> None:
        match effect:
            case CloseOperation(id=operation_id, fence=fence):
                one = self._tables.operations.get(operation_id)
                mine = one is not None and one.run_id == self._run.id and one.worker is not None
                effects.check_held(
                    operation_id, fence=fence, held=one.fence if one and mine else None
                )

    def check(self, effect: Effect) -> None:
        match effect:
            case RecordDecision(key=key, user_id=user_id):
                gate = self._tables.approvals.get((self._run.id, key))
                if gate is None:
                    raise StepNotFound(f"the run has no approval {key.label!r}")
                given = (one.decision for one in gate.decisions if one.user_id == user_id)
                effects.check_decision(effect, outcome=gate.outcome, before=next(given, None))
            case OpenOperation(id=operation_id) if operation_id in self._tables.operations:
                raise Conflict(f"the operation {operation_id} exists")
            case OpenApproval(key=key) if (self._run.id, key) in self._tables.approvals:
                raise Conflict(f"the approval {key.label!r} exists")

    def apply(self, effect: Effect, encoded: effects.Prepared) -> None:
        match effect:
            case OpenOperation():
                self._open(effect, unpack(encoded.data))
            case CloseOperation(id=operation_id):
                self._tables.operations[operation_id] = replace(
                    self._tables.operations[operation_id],
                    state=OperationState.DONE,
                    worker=None,
                    lease_until_ms=None,
                )
            case StopOperations(key=key):
                self._stop(key)
            case ReleaseChildren():
                self._mark()
            case DelayApprovals(by_ms=by_ms):
                self._delay(by_ms)
            case OpenApproval(key=key):
                self._tables.approvals[self._run.id, key] = Approval(
                    run_id=self._run.id,
                    repository_id=self._run.repository_id,
                    key=key,
                    spec=unpack(encoded.data),
                    opened_ms=self._now_ms,
                    expires_ms=effect.expires_ms,
                    outcome=None,
                    closed_ms=None,
                    decisions=(),
                )
            case RecordDecision():
                self._record(effect, unpack(encoded.data))
            case CloseApproval(key=key, outcome=outcome):
                self._close(key, outcome)

    def _delay(self, by_ms: int) -> None:
        for key, gate in self._tables.approvals.items():
            if key[0] == self._run.id and gate.outcome is None and gate.expires_ms is not None:
                expires_ms = gate.expires_ms + by_ms
                self._tables.approvals[key] = replace(gate, expires_ms=expires_ms)

    def end(self) -> None:
        self._stop(None)
        self._close(None, "cancelled")
        self._mark()

    def _mark(self) -> None:
        links = self._tables.links
        for child_id, link in links.items():
            if self._run.id in (child_id, link.kin.parent_id):
                links[child_id] = replace(link, due=abs(link.due) + 1)

    def _open(self, opened: OpenOperation, spec: Json) -> None:
        self._tables.operations[opened.id] = Operation(
            id=opened.id,
            run_id=self._run.id,
            repository_id=self._run.repository_id,
            key=opened.key,
            attempt=opened.attempt,
            spec=spec,
            state=OperationState.QUEUED,
            fence=0,
            worker=None,
            lease_until_ms=None,
            ready_ms=opened.ready_ms,
            stop=False,
            pool=pool_of(spec),
        )

    def _stop(self, key: StepKey | None) -> None:
        for one in list(self._tables.operations.values()):
            mine = one.run_id == self._run.id and key in (None, one.key)
            if mine and one.state is not OperationState.DONE:
                running = one.state is OperationState.RUNNING
                state = OperationState.RUNNING if running else OperationState.DONE
                self._tables.operations[one.id] = replace(one, stop=True, state=state)

    def _record(self, effect: RecordDecision, form: Json) -> None:
        gate = self._tables.approvals[self._run.id, effect.key]
        decision = Decision(
            user_id=effect.user_id,
            user=effect.user,
            decision=effect.decision,
            comment=effect.comment,
            way=effect.way,
            form=form,
            at_ms=self._now_ms,
        )
        self._tables.approvals[self._run.id, effect.key] = replace(
            gate, decisions=(*gate.decisions, decision)
        )

    def _close(self, key: StepKey | None, outcome: str) -> None:
        for gate in list(self._tables.approvals.values()):
            mine = gate.run_id == self._run.id and key in (None, gate.key)
            if mine and gate.outcome is None:
                self._tables.approvals[gate.run_id, gate.key] = replace(
                    gate, outcome=outcome, closed_ms=self._now_ms
                )


class InMemoryLogs:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def append(
        self,
        run_id: RunId,
        step: str,
        lines: Sequence[LogLine],
        *,
        held: Held | None = None,
        shared: bool = False,
    ) -> None:
        if not lines:
            return
        plain(step, "step")
        logs.check_lines(lines)
        with self._tables.lock:
            self._tables.run(run_id)
            one = None if held is None else self._tables.operations.get(held.operation_id)
            if held is not None and (one is None or (one.worker and one.fence) != held.fence):
                raise LeaseLost(f"{held.operation_id}: another worker has this command")
            log = self._tables.logs.setdefault(run_id, {}).setdefault(step, [])
            last = log[-1].number if log else 0
            log += logs.unwritten(lines, last, shared=shared)
        self._tables.ring()

    def read(self, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
        logs.check_limit(limit)
        return [line for line in self._all(run_id, step) if line.number > after][:limit]

    def tail(self, run_id: RunId, step: str, *, limit: int = 1000) -> list[LogLine]:
        logs.check_limit(limit)
        return self._all(run_id, step)[-limit:]

    def seal(self, run_id: RunId, step: str) -> bool:
        return False

    def unsealed(self, *, limit: int = 100) -> Sequence[tuple[RunId, str]]:
        return []

    def last(self, run_id: RunId, step: str) -> int:
        lines = self._all(run_id, step)
        return lines[-1].number if lines else 0

    def steps(self, run_id: RunId) -> Mapping[str, int]:
        with self._tables.lock:
            found = self._tables.logs.get(run_id, {})
            return {step: lines[-1].number for step, lines in sorted(found.items()) if lines}

    def _all(self, run_id: RunId, step: str) -> list[LogLine]:
        with self._tables.lock:
            return list(self._tables.logs.get(run_id, {}).get(step, ()))
