"""Rows that change in the same transaction as the entries that cause them: operations, gates.

Called by journal.py with the run's row locked. `check` refuses before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, and_, bindparam, case, select

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
from ci_platform.errors import Conflict, LeaseLost, StepNotFound
from ci_platform.labels import pool_of
from ci_platform.model import Approval, OperationId, OperationState, Run
from ci_platform.store import family
from ci_platform.store.codec import KeyColumns, key_columns, plain
from ci_platform.store.direct import Direct
from ci_platform.store.packing import pack
from ci_platform.store.tables import APPROVALS, DECISIONS, OPERATIONS

_QUEUED, _RUNNING, _DONE = (
    OperationState.QUEUED.value,
    OperationState.RUNNING.value,
    OperationState.DONE.value,
)
_LOCK_OPERATION = (
    select(OPERATIONS.c.run_n, OPERATIONS.c.state, OPERATIONS.c.fence)
    .where(OPERATIONS.c.id == bindparam("operation_id"))
    .with_for_update()
)
_CLOSE_OPERATION = (
    OPERATIONS.update()
    .where(OPERATIONS.c.id == bindparam("operation_id"))
    .values(state=_DONE, worker=None, lease_until_ms=None, due_ms=None)
)
_STOP = {
    "stop": True,
    "due_ms": None,
    "state": case((OPERATIONS.c.state == _QUEUED, _DONE), else_=OPERATIONS.c.state),
}
_STOP_ALL = Direct(
    OPERATIONS.update()
    .where(OPERATIONS.c.run_n.in_(bindparam("runs", expanding=True)), OPERATIONS.c.state != _DONE)
    .values(_STOP),
    each="runs",
)
_STOP_STEP = (
    OPERATIONS.update()
    .where(
        OPERATIONS.c.run_n == bindparam("of_run"),
        OPERATIONS.c.step_kind == bindparam("of_kind"),
        OPERATIONS.c.step_name == bindparam("of_name"),
        OPERATIONS.c.occurrence == bindparam("of_occurrence"),
        OPERATIONS.c.state != _DONE,
    )
    .values(_STOP)
)
_CLOSE_ALL_GATES = Direct(
    APPROVALS.update()
    .where(APPROVALS.c.run_n.in_(bindparam("runs", expanding=True)), APPROVALS.c.outcome.is_(None))
    .values(outcome=bindparam("with_outcome"), closed_ms=bindparam("at_ms")),
    each="runs",
)
_GATE = and_(
    APPROVALS.c.run_n == bindparam("of_run"),
    APPROVALS.c.step_kind == bindparam("of_kind"),
    APPROVALS.c.step_name == bindparam("of_name"),
    APPROVALS.c.occurrence == bindparam("of_occurrence"),
)
_LOCK_GATE = select(APPROVALS.c.outcome).where(_GATE).with_for_update()
_CLOSE_GATE = (
    APPROVALS.update()
    .where(_GATE, APPROVALS.c.outcome.is_(None))
    .values(outcome=bindparam("with_outcome"), closed_ms=bindparam("at_ms"))
)
_DELAY_GATES = (
    APPROVALS.update()
    .where(APPROVALS.c.run_n == bindparam("of_run"), APPROVALS.c.outcome.is_(None))
    .values(expires_ms=APPROVALS.c.expires_ms + bindparam("by_ms", type_=BigInteger))
)
_DECISION = select(DECISIONS.c.decision).where(
    DECISIONS.c.run_n == bindparam("of_run"),
    DECISIONS.c.step_kind == bindparam("of_kind"),
    DECISIONS.c.step_name == bindparam("of_name"),
    DECISIONS.c.occurrence == bindparam("of_occurrence"),
    DECISIONS.c.user_id == bindparam("of_user"),
)


@dataclass(frozen=True, slots=True)
class Prepared:
    effect: Effect
    data: bytes  # its structured part, packed
    key: KeyColumns | None


def prepare(effect: Effect) -> Prepared:
    """Encode and check. Raises InvalidRequest naming the field."""
    data, key = b"", None
    match effect:
        case OpenOperation() | OpenApproval():
            if isinstance(effect, OpenOperation):
                plain(effect.id, "operation id")
            data, key = pack(effect.spec, "spec"), key_columns(effect.key)
        case RecordDecision():
            data, key = pack(effect.form, "form"), key_columns(effect.key)
            for field in ("user_id", "user", "decision", "comment", "way"):
                plain(getattr(effect, field), field)
        case ReleaseChildren() | DelayApprovals():
            pass
        case StopOperations() | CloseApproval():
            key = None if effect.key is None else key_columns(effect.key)
        case CloseOperation():
            plain(effect.id, "operation id")
    return Prepared(effect, data, key)


def check_held(operation_id: OperationId, *, fence: int, held: int | None) -> None:
    """`held` is the fence of the lease the operation is under. Raises LeaseLost."""
    if held != fence:
        raise LeaseLost(f"{operation_id}: the lease {fence} of this command has ended")


def check_decision(decision: RecordDecision, *, outcome: str | None, before: str | None) -> None:
    """Raises Conflict when the gate is closed, or has an answer of this person."""
    label = decision.key.label
    if outcome is not None:
        raise Conflict(f"the approval {label!r} is closed: {outcome}")
    if before is not None:
        raise Conflict(f"{decision.user} has already answered {label!r}: {before}")


def check_lease(connection: Connection, prepared: Prepared, run_n: int) -> None:
    """Raises LeaseLost if an operation to be closed is no longer this worker's."""
    match prepared.effect:
        case CloseOperation(id=operation_id, fence=fence):
            row = connection.execute(_LOCK_OPERATION, {"operation_id": operation_id}).one_or_none()
            held = row is not None and row.run_n == run_n and row.state == _RUNNING
            check_held(operation_id, fence=fence, held=row.fence if row and held else None)


def check(connection: Connection, prepared: Prepared, run_n: int) -> None:
    """Raises Conflict or StepNotFound if a decision cannot be recorded."""
    match prepared.effect:
        case RecordDecision(key=key, user_id=user_id) as decision:
            gate = _of(run_n, prepared)
            row = connection.execute(_LOCK_GATE, gate).one_or_none()
            if row is None:
                raise StepNotFound(f"the run has no approval {key.label!r}")
            before = connection.execute(_DECISION, {**gate, "of_user": user_id}).scalar()
            check_decision(decision, outcome=row.outcome, before=before)


def apply(connection: Connection, prepared: Prepared, run_n: int, run: Run, now_ms: int) -> None:
    match prepared.effect:
        case OpenOperation() as opened:
            columns = _operation_columns(opened, prepared, run_n, run)
            connection.execute(OPERATIONS.insert(), columns)
        case CloseOperation(id=operation_id):
            connection.execute(_CLOSE_OPERATION, {"operation_id": operation_id})
        case StopOperations(key=None):
            _STOP_ALL.run(connection, {"runs": [run_n]})
        case StopOperations():
            connection.execute(_STOP_STEP, _of(run_n, prepared))
        case OpenApproval() as gate:
            columns = _approval_columns(gate, prepared, run_n, run, now_ms)
            connection.execute(APPROVALS.insert(), columns)
        case RecordDecision() as decision:
            connection.execute(
                DECISIONS.insert(), _decision_columns(decision, prepared, run_n, now_ms)
            )
        case ReleaseChildren():
            family.mark(connection, [run_n])
        case DelayApprovals(by_ms=by_ms):
            connection.execute(_DELAY_GATES, {"of_run": run_n, "by_ms": by_ms})
        case CloseApproval(key=None, outcome=outcome):
            closing = {"runs": [run_n], "with_outcome": outcome, "at_ms": now_ms}
            _CLOSE_ALL_GATES.run(connection, closing)
        case CloseApproval(outcome=outcome):
            closing = {**_of(run_n, prepared), "with_outcome": outcome, "at_ms": now_ms}
            connection.execute(_CLOSE_GATE, closing)


def end(connection: Connection, runs: Sequence[int], now_ms: int) -> None:
    """What a run leaves open ends with it: no command starts, no gate waits, for a run that is
    over."""
    _STOP_ALL.run(connection, {"runs": runs})
    closing = {"runs": runs, "with_outcome": "cancelled", "at_ms": now_ms}
    _CLOSE_ALL_GATES.run(connection, closing)


def copy_gates(connection: Connection, gates: Sequence[Approval], run_n: int) -> None:
    """Give a new run the gates of the steps it shares, with the answers they had."""
    rows = [
        {
            **key_columns(gate.key),
            "run_n": run_n,
            "repository_id": gate.repository_id,
            "spec": pack(gate.spec, "spec"),
            "opened_ms": gate.opened_ms,
            "expires_ms": gate.expires_ms,
            "outcome": gate.outcome,
            "closed_ms": gate.closed_ms,
        }
        for gate in gates
    ]
    answers = [
        {
            **key_columns(gate.key),
            "run_n": run_n,
            "user_id": one.user_id,
            "user": one.user,
            "decision": one.decision,
            "comment": one.comment,
            "way": one.way,
            "form": pack(one.form, "form"),
            "at_ms": one.at_ms,
        }
        for gate in gates
        for one in gate.decisions
    ]
    connection.execute(APPROVALS.insert(), rows)
    if answers:
        connection.execute(DECISIONS.insert(), answers)


def _of(run_n: int, prepared: Prepared) -> dict[str, object]:
    key = prepared.key
    assert key is not None
    return {
        "of_run": run_n,
        "of_kind": key["step_kind"],
        "of_name": key["step_name"],
        "of_occurrence": key["occurrence"],
    }


def _keyed(run_n: int, prepared: Prepared) -> dict[str, object]:
    assert prepared.key is not None
    return {"run_n": run_n, **prepared.key}


def _operation_columns(
    opened: OpenOperation, prepared: Prepared, run_n: int, run: Run
) -> dict[str, object]:
    return {
        **_keyed(run_n, prepared),
        "id": opened.id,
        "run_id": run.id,
        "repository_id": run.repository_id,
        "attempt": opened.attempt,
        "spec": prepared.data,
        "state": _QUEUED,
        "fence": 0,
        "worker": None,
        "lease_until_ms": None,
        "ready_ms": opened.ready_ms,
        "due_ms": opened.ready_ms,
        "stop": False,
        "pool": pool_of(opened.spec),
        "lost_worker": None,
    }


def _approval_columns(
    gate: OpenApproval, prepared: Prepared, run_n: int, run: Run, now_ms: int
) -> dict[str, object]:
    return {
        **_keyed(run_n, prepared),
        "repository_id": run.repository_id,
        "spec": prepared.data,
        "opened_ms": now_ms,
        "expires_ms": gate.expires_ms,
        "outcome": None,
        "closed_ms": None,
    }


def _decision_columns(
    decision: RecordDecision, prepared: Prepared, run_n: int, now_ms: int
) -> dict[str, object]:
    return {
        **_keyed(run_n, prepared),
        "user_id": decision.user_id,
        "user": decision.user,
        "decision": decision.decision,
        "comment": decision.comment,
        "way": decision.way,
        "form": prepared.data,
        "at_ms": now_ms,
    }
