"""Gates and the answers to them. Read only: they change with the appends of their run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

from sqlalchemy import CompoundSelect, Connection, Select, bindparam, select, union_all

from ci_platform.errors import StepNotFound
from ci_platform.model import Approval, Decision, RepositoryId, RunId, StepKey
from ci_platform.store.codec import Columns, key_of
from ci_platform.store.database import Database
from ci_platform.store.packing import unpack
from ci_platform.store.tables import APPROVALS, DECISIONS, RUNS

OPEN_MAX = 200  # gates of one list
REPOSITORIES_EACH = 64  # of one question for the gates of many

_GATES = select(APPROVALS, RUNS.c.id.label("run_id")).join(RUNS, RUNS.c.n == APPROVALS.c.run_n)
_OF_RUN = _GATES.where(RUNS.c.id == bindparam("run_id")).order_by(
    APPROVALS.c.opened_ms, APPROVALS.c.step_name, APPROVALS.c.occurrence
)
_OPEN = (
    _GATES.where(APPROVALS.c.outcome.is_(None))
    .order_by(APPROVALS.c.opened_ms, APPROVALS.c.run_n)
    .limit(OPEN_MAX)
)
# By their runs: asked for open ones, PostgreSQL would look for them among all that are open.
_AMONG = _GATES.where(APPROVALS.c.run_n.in_(bindparam("ns", expanding=True))).order_by(
    APPROVALS.c.opened_ms, APPROVALS.c.run_n
)
_DECISIONS = (
    select(DECISIONS)
    .where(DECISIONS.c.run_n.in_(bindparam("ns", expanding=True)))
    .order_by(DECISIONS.c.at_ms, DECISIONS.c.user_id)
)


class SqlApprovalStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, run_id: RunId, key: StepKey) -> Approval:
        for approval in self.of_run(run_id):
            if approval.key == key:
                return approval
        raise StepNotFound(f"{run_id} has no approval {key.label!r}")

    def of_run(self, run_id: RunId) -> list[Approval]:
        return self._read(_OF_RUN, {"run_id": run_id})

    def open(self, repository_ids: Sequence[RepositoryId] | None = None) -> list[Approval]:
        if repository_ids is None:
            return self._read(_OPEN, {})
        if not repository_ids:
            return []
        return self._database.read(partial(_open_of, list(repository_ids)))

    def decision(self, run_id: RunId, key: StepKey, user_id: str) -> Decision | None:
        for approval in self.of_run(run_id):
            if approval.key == key:
                for decision in approval.decisions:
                    if decision.user_id == user_id:
                        return decision
        return None

    def _read(
        self, statement: Select[tuple[object, ...]], asked: dict[str, object]
    ) -> list[Approval]:
        return self._database.read(lambda connection: _approvals(connection, statement, asked))


@cache
def _oldest_of(count: int) -> CompoundSelect[tuple[int, int]]:
    """The oldest open gates of each of `count` repositories. Asked of all in one, a database would
    read and sort every open gate that one of them has."""
    gates = [
        select(APPROVALS.c.opened_ms, APPROVALS.c.run_n)
        .where(APPROVALS.c.repository_id == bindparam(f"id_{n}"), APPROVALS.c.outcome.is_(None))
        .order_by(APPROVALS.c.opened_ms)  # no more: PostgreSQL would sort all
        .limit(OPEN_MAX)
        .subquery()
        for n in range(count)
    ]
    return union_all(*(select(gate.c.opened_ms, gate.c.run_n) for gate in gates))


def _open_of(ids: list[RepositoryId], connection: Connection) -> list[Approval]:
    oldest: list[tuple[int, int]] = []
    for start in range(0, len(ids), REPOSITORIES_EACH):
        part = ids[start : start + REPOSITORIES_EACH]
        size = 1 << (len(part) - 1).bit_length()  # few sizes, and so few statements
        asked = {f"id_{n}": part[n] if n < len(part) else "" for n in range(size)}
        found = connection.execute(_oldest_of(size), asked)
        oldest = sorted({*oldest, *((row.opened_ms, row.run_n) for row in found)})[:OPEN_MAX]
    if not oldest:
        return []
    wanted = set(oldest)
    gates = [
        gate
        for gate in connection.execute(_AMONG, {"ns": sorted({n for _, n in oldest})})
        if gate.outcome is None and (gate.opened_ms, gate.run_n) in wanted
    ]
    return _with_decisions(connection, gates[:OPEN_MAX])


def _approvals(
    connection: Connection, statement: Select[tuple[object, ...]], asked: dict[str, object]
) -> list[Approval]:
    return _with_decisions(connection, connection.execute(statement, asked).all())


def _with_decisions(connection: Connection, rows: Sequence[Columns]) -> list[Approval]:
    decisions = _decisions(connection, sorted({row.run_n for row in rows}))
    return [_approval_of(row, decisions.get((row.run_n, key_of(row)), ())) for row in rows]


def _decisions(
    connection: Connection, ns: Sequence[int]
) -> dict[tuple[int, StepKey], list[Decision]]:
    found: dict[tuple[int, StepKey], list[Decision]] = {}
    if ns:
        for row in connection.execute(_DECISIONS, {"ns": ns}):
            found.setdefault((row.run_n, key_of(row)), []).append(_decision_of(row))
    return found


def _approval_of(row: Columns, decisions: Sequence[Decision]) -> Approval:
    return Approval(
        run_id=RunId(row.run_id),
        repository_id=RepositoryId(row.repository_id),
        key=key_of(row),
        spec=unpack(row.spec),
        opened_ms=row.opened_ms,
        expires_ms=row.expires_ms,
        outcome=row.outcome,
        closed_ms=row.closed_ms,
        decisions=tuple(decisions),
    )


def _decision_of(row: Columns) -> Decision:
    return Decision(
        user_id=row.user_id,
        user=row.user,
        decision=row.decision,
        comment=row.comment,
        way=row.way,
        form=unpack(row.form),
        at_ms=row.at_ms,
    )
