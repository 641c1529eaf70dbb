"""Which logs are still rows although their step has ended: its worker died before it sealed them,
or the object store was away. Asked by the duty that makes up for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, bindparam, literal_column, select

from ci_platform.model import TERMINAL_STATES, OperationState, RunId, RunState, StepKey, StepKind
from ci_platform.store.tables import LOG_HOT_BYTES, LOGS, OPERATIONS, RUNS

LOOKED_AT_MAX = 1_000  # large logs of rows: those of commands that run are among them

_HOT = (
    select(LOGS.c.run_n, LOGS.c.step, RUNS.c.id, RUNS.c.state)
    .join(RUNS, RUNS.c.n == LOGS.c.run_n)
    .where(LOGS.c.hot >= literal_column(str(LOG_HOT_BYTES)))
    .order_by(LOGS.c.run_n, LOGS.c.step)
    .limit(LOOKED_AT_MAX)
)
_STATES = select(OPERATIONS.c.state).where(
    and_(
        OPERATIONS.c.run_n == bindparam("run_n"),
        OPERATIONS.c.step_kind == bindparam("kind"),
        OPERATIONS.c.step_name == bindparam("name"),
        OPERATIONS.c.occurrence == bindparam("occurrence"),
    )
)


def unsealed(connection: Connection, limit: int) -> Sequence[tuple[RunId, str]]:
    found: list[tuple[RunId, str]] = []
    for row in connection.execute(_HOT).all():
        over = RunState(row.state) in TERMINAL_STATES
        if over or _command_ended(connection, row.run_n, row.step):
            found.append((RunId(row.id), row.step))
        if len(found) == limit:
            break
    return found


def _command_ended(connection: Connection, run_n: int, step: str) -> bool:
    """Whether it is a command's log, and no attempt of it is open."""
    try:
        key = StepKey.parse(step)
    except ValueError:  # the log of the run itself
        return False
    if key.kind is not StepKind.SH:
        return False
    asked = {
        "run_n": run_n,
        "kind": key.kind.value,
        "name": key.name,
        "occurrence": key.occurrence,
    }
    states = set(connection.execute(_STATES, asked).scalars())
    return states == {OperationState.DONE.value}
