"""What the store asks of its databases costs the same however many runs there are.

Each question is asked of a database of many runs, in which the answer is rare or far behind. What
is counted is the work: rows that PostgreSQL touched, instructions that SQLite executed. So a scan,
a sort, or an index that is read from end to end shows, whatever the plan is called.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.pool import Pool

from ci_platform.model import LogLine, OperationId, RepositoryId, RunId, RunState, WorkerId
from ci_platform.ports import RunFilter
from ci_platform.scheduling import RunLimits
from ci_platform.store import SqlStore, open_store
from ci_platform.store.codec import commit_key
from ci_platform.store.listing import LOOKED_MAX
from ci_platform.store.runs import LIVE_STATES
from tests.contract.conftest import KEY
from tests.contract.store_values import FakeClock, append, created, end, new_run, note
from tests.postgres import PostgresServer

RUNS = int(os.environ.get("SLUICE_PLAN_RUNS", "50000"))  # 1000000 is for a quiet hour
NOW_MS = 1_700_000_000_000
TOUCHED_MAX = 10_000  # rows, by one statement
STEPS_MAX = 40_000  # instructions
LOOKED_TOUCHED_MAX = 2 * LOOKED_MAX + 1_000  # of a list by what no index knows
LOOKED_STEPS_MAX = 30 * LOOKED_MAX
STEPS_EACH = 100  # are counted together
FLOODED = RepositoryId("repo_0")  # has half of all runs, and most of what is due
QUIET = RepositoryId("repo_1007")
WORKER = WorkerId("w1")
SERIES = {
    "postgresql": f"(SELECT i FROM generate_series(1, {RUNS}) AS i) AS s",
    "sqlite": "(WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s"
    f" LIMIT {RUNS}) SELECT i FROM s) AS s",
}
REPOSITORY = "CASE WHEN i % 2 = 0 THEN 'repo_0' ELSE 'repo_' || CAST(1000 + i % 1000 AS TEXT) END"
DUE, SOON, WAITS = "i % 100 = 2", "i % 100 BETWEEN 3 AND 5", "i % 100 BETWEEN 6 AND 10"
IN_GROUP, OVER = "i % 100 = 98", "i % 100 = 96"  # held by a group of the flooded one, by its limit
URGENT = "i % 400 = 102"  # of those that are due
RARE = "i = 2"  # the oldest run of the flooded repository

RUN_COLUMNS = {
    "n": "1000 + i",
    "id": "'run_' || CAST(i AS TEXT)",
    "number": "1000 + i",
    "repository_id": REPOSITORY,
    "created_ms": f"{NOW_MS} - 1000 * ({RUNS} - i)",
    "state": f"CASE WHEN {DUE} OR {IN_GROUP} OR {OVER} THEN 'queued'"
    " WHEN i % 100 < 11 THEN 'waiting' ELSE 'passed' END",
    "group_key": f"CASE WHEN {IN_GROUP} THEN 'g' END",
    "hold": f"CASE WHEN {IN_GROUP} THEN 'group' WHEN {OVER} THEN 'limit' END",
    "priority": f"CASE WHEN {URGENT} THEN 1 + i % 3 ELSE 0 END",
    "ready_ms": f"CASE WHEN {DUE} THEN {NOW_MS} - i WHEN {SOON} THEN {NOW_MS} + 1000 * i END",
    "ended_ms": f"CASE WHEN i % 100 > 10 AND NOT ({IN_GROUP} OR {OVER}) THEN {NOW_MS} END",
    **{
        name: f"CASE WHEN {RARE} THEN 'rare' ELSE r.{name} END"
        for name in ("pipeline", "trigger", "actor")
    },
    "ref": f"CASE WHEN {RARE} THEN 'refs/heads/rare' ELSE r.ref END",
    "commit": f"CASE WHEN {RARE} THEN 'rare' ELSE 'c' || CAST(i / 5 AS TEXT) END",
    "commit_key": f"CASE WHEN {RARE} THEN {commit_key('repo_0', 'rare')} ELSE i / 5 END",
}
# Of each fifth run: table, columns.
BESIDE: dict[str, dict[str, str]] = {
    "operations": {
        **{"n": "i", "id": "'op_' || CAST(i AS TEXT)", "run_n": "1000 + i"},
        **{"run_id": "'run_' || CAST(i AS TEXT)", "repository_id": REPOSITORY},
        **{"step_kind": "'sh'", "step_name": "'a'", "occurrence": "1", "attempt": "1"},
        **{"spec": "(SELECT payload FROM run_inputs LIMIT 1)", "fence": "0", "stop": "false"},
        "state": "CASE WHEN i % 100 = 0 THEN 'queued' ELSE 'done' END",
        **{"ready_ms": f"{NOW_MS} - i", "pool": "''"},
        "due_ms": f"CASE WHEN i % 100 = 0 THEN {NOW_MS} - i END",
    },
    "approvals": {
        **{"run_n": "1000 + i", "step_kind": "'approval'", "step_name": "'a'", "occurrence": "1"},
        **{"repository_id": REPOSITORY, "spec": "(SELECT payload FROM run_inputs LIMIT 1)"},
        "opened_ms": f"{NOW_MS} - i",
        "outcome": "CASE WHEN i % 100 = 0 THEN NULL ELSE 'approved' END",
    },
    "family": {
        **{"child_n": "1000 + i", "parent_n": "999 + i", "step": "'run:a'", "waits": "true"},
        **{"depth": "1", "due": "0"},
    },
    "schedules": {
        **{"repository_id": REPOSITORY, "pipeline": "'CI' || CAST(i AS TEXT)"},
        **{"cron": "'0 0 * * *'", "timezone": "'UTC'", "next_ms": f"{NOW_MS} + 1000 * i"},
    },
    "logs": {"run_n": "1000 + i", "step": "'$run'", "last": "1", "hot": "10"},
    "log_chunks": {
        **{"run_n": "1000 + i", "step": "'$run'", "first": "1", "last": "1", "size": "10"},
        "lines": "(SELECT lines FROM log_chunks LIMIT 1)",
    },
}


def fill(store: SqlStore) -> None:
    """Many runs like one that the store has made itself, and what lies beside them."""
    seed = created(store, "seed")
    store.logs.append(seed.id, "$run", [LogLine(1, NOW_MS, "stdout", "a")])
    kind = store.engine.dialect.name
    with store.engine.begin() as connection:
        known = [
            f'"{row[0]}"'
            for row in connection.execute(text("SELECT * FROM runs")).cursor.description
        ]
        columns = {name: RUN_COLUMNS.get(name.strip('"'), f"r.{name}") for name in known}
        columns |= {name: sql for name, sql in RUN_COLUMNS.items() if name in columns}
        statements = [
            f"INSERT INTO runs ({', '.join(columns)}) SELECT {', '.join(columns.values())}"
            f" FROM {SERIES[kind]}, runs r WHERE r.id = '{seed.id}'",
            "INSERT INTO run_inputs (run_n, payload, event) SELECT 1000 + i, payload, event"
            f" FROM {SERIES[kind]}, run_inputs r WHERE r.run_n < 1000",
            "INSERT INTO entries (run_n, seq, kind, at_ms, data) SELECT 1000 + i, seq, kind, at_ms,"
            f" data FROM {SERIES[kind]}, entries r WHERE r.run_n < 1000",
        ]
        for table, beside in BESIDE.items():
            statements.append(
                f"INSERT INTO {table} ({', '.join(beside)}) SELECT {', '.join(beside.values())}"
                f" FROM {SERIES[kind]} WHERE i % 5 = 0"
            )
        if kind == "postgresql":  # it does that by itself in time; SQLite never does
            statements.append("ANALYZE")
        for statement in statements:
            connection.execute(text(statement))


# --- what is counted ------------------------------------------------------------------------------


class Meter:
    """Work done for each statement since `reset`."""

    def __init__(self) -> None:
        self.work: Counter[str] = Counter()
        self.statement = ""

    def reset(self) -> None:
        self.work.clear()

    def watch_sqlite(self, connection: sqlite3.Connection, _: object) -> None:
        def began(statement: str) -> None:
            self.statement = statement

        def stepped() -> None:
            self.work[self.statement] += STEPS_EACH

        connection.set_trace_callback(began)
        connection.set_progress_handler(stepped, STEPS_EACH)

    def watch_postgres(self, connection: psycopg.Connection[Any], _: object) -> None:
        meter = self

        class Explaining(psycopg.Cursor[Any]):
            """Asks for what a statement does before it is executed."""

            def execute(self, query: Any, params: Any = None, **named: Any) -> Any:
                meter.explain(connection, query, params)
                return super().execute(query, params, **named)

            def executemany(self, query: Any, params_seq: Any, **named: Any) -> None:
                rows = list(params_seq)
                meter.explain(connection, query, rows[0])
                super().executemany(query, rows, **named)

        connection.cursor_factory = Explaining

    def explain(self, connection: psycopg.Connection[Any], query: Any, params: Any) -> None:
        verb = str(query).split(None, 1)[0].upper()
        if verb not in ("SELECT", "WITH", "UPDATE", "DELETE"):
            return
        # What writes is not executed twice: its plan's own estimate has to do.
        options = "ANALYZE, TIMING FALSE, " if verb in ("SELECT", "WITH") else ""
        with psycopg.Cursor(connection) as cursor:
            cursor.execute(f"EXPLAIN ({options}FORMAT JSON) {query}", params)
            (plan,) = cursor.fetchone() or ("[]",)
        plan = json.loads(plan) if isinstance(plan, str) else plan
        self.work[str(query)] += round(_touched(plan[0]["Plan"]))


def _touched(node: dict[str, Any]) -> float:
    """Rows that a plan reads from tables and indexes."""
    below: float = sum(_touched(child) for child in node.get("Plans", ()))
    if "Scan" not in node["Node Type"] or "CTE" in node["Node Type"]:
        return below
    rows = node.get("Actual Rows", node["Plan Rows"])
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float(below + (rows + removed) * node.get("Actual Loops", 1))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database of many runs."""
    if request.param == "sqlite":
        path: Path = tmp_path_factory.mktemp("plans") / "sluice.db"
        with closing(open_store(f"sqlite:///{path}", clock=FakeClock(NOW_MS), key=KEY)) as store:
            fill(store)
        yield f"sqlite:///{path}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        with closing(open_store(url, clock=FakeClock(NOW_MS), key=KEY)) as store:
            fill(store)
        yield url


@pytest.fixture(scope="module")
def meter() -> Meter:
    return Meter()


@pytest.fixture(scope="module")
def store(full_url: str, meter: Meter) -> Iterator[SqlStore]:
    limits = RunLimits(repository=50, every=1_000)
    watch = meter.watch_sqlite if full_url.startswith("sqlite") else meter.watch_postgres
    event.listen(Pool, "connect", watch)
    try:
        with closing(
            open_store(full_url, clock=FakeClock(NOW_MS), key=KEY, limits=limits)
        ) as opened:
            yield opened
    finally:
        event.remove(Pool, "connect", watch)


# --- what is asked --------------------------------------------------------------------------------


def listed(**which: Any) -> Callable[[SqlStore], object]:
    return lambda store: store.runs.list(RunFilter(**which), limit=50)


OF: dict[str, Any] = {"repository_ids": [FLOODED]}
SEED = RunId("run_seed")
LONG_AGO_MS = NOW_MS - 1000 * RUNS
QUESTIONS: dict[str, Callable[[SqlStore], object]] = {
    "claim runs": lambda store: store.runs.claim(WORKER, limit=20, lease_ms=30_000),
    "claim commands": lambda store: store.operations.claim(WORKER, limit=4, lease_ms=30_000),
    "look up results": lambda store: store.operations.claim(
        WORKER, limit=4, lease_ms=30_000, recall=True
    ),
    "renew": lambda store: store.runs.renew(WORKER, lease_ms=30_000),
    "expire": lambda store: store.runs.expire(),
    "next ready": lambda store: store.runs.next_ready_ms(),
    "due since": lambda store: store.runs.due_since_ms(),
    "create": lambda store: store.runs.create([new_run("new", repository=FLOODED)]),
    "get": lambda store: store.runs.get(SEED),
    "by number": lambda store: store.runs.by_number(FLOODED, 1_000 + RUNS // 2 * 2),
    "journal": lambda store: store.runs.journal(RunId("run_10")),
    "event": lambda store: append(store, store.runs.get(RunId("run_8")), note()),
    "end": lambda store: end(store, store.runs.get(RunId("run_9"))),
    "standing": lambda store: store.runs.standing("run_2"),  # last in line
    "standing of the next": lambda store: store.runs.standing(f"run_{RUNS - 98}"),
    "standing of an urgent one": lambda store: store.runs.standing("run_102"),
    "standing of the next of a group": lambda store: store.runs.standing("run_98"),
    "standing of the last of a group": lambda store: store.runs.standing(f"run_{RUNS - 2}"),
    "standing of the next at a limit": lambda store: store.runs.standing("run_96"),
    "standing of the last at a limit": lambda store: store.runs.standing(f"run_{RUNS - 4}"),
    "superseded": lambda store: store.runs.superseded(),
    "commits used": lambda store: store.runs.commits_used(FLOODED, ["rare", "none"]),
    "delete": lambda store: store.runs.delete(RunId("run_11")),
    "list": listed(),
    "list of a repository": listed(**OF),
    "list of a quiet one": listed(repository_ids=[QUIET]),
    "list of some": listed(repository_ids=[f"repo_{n}" for n in range(1001, 1060, 2)]),
    "list by state": listed(states=[RunState.QUEUED, RunState.FAILED]),
    "list by state of one": listed(**OF, states=[RunState.FAILED]),
    "list of paused": listed(**OF, states=[RunState.PAUSED]),
    "one that lives": lambda store: store.runs.list(RunFilter(**OF, states=LIVE_STATES), limit=1),
    "list by pipeline": listed(**OF, pipeline="rare"),
    "list by branch": listed(**OF, branch="rare"),
    "list by commit": listed(**OF, commit="rare"),
    "list by commit of all": listed(commit="none"),
    "list by trigger": listed(**OF, trigger="rare"),
    "list by actor": listed(**OF, actor="rare"),
    "list by age": listed(created_before_ms=LONG_AGO_MS + 5_000),
    "list by age of one": listed(**OF, created_before_ms=LONG_AGO_MS + 5_000),
    "list since": listed(created_after_ms=NOW_MS + 1),
    "list behind": lambda store: store.runs.list(RunFilter(**OF), cursor="1100", limit=50),
    "gates": lambda store: store.approvals.open(),
    "gates of some": lambda store: store.approvals.open([QUIET, FLOODED]),
    "gates of many": lambda store: store.approvals.open(
        [FLOODED, *(RepositoryId(f"repo_{n}") for n in range(1000, 1300))]
    ),
    "gates of a run": lambda store: store.approvals.of_run(RunId("run_100")),
    "log": lambda store: store.logs.read(RunId("run_10"), "$run"),
    "log line": lambda store: store.logs.append(SEED, "new", [LogLine(1, NOW_MS, "stdout", "a")]),
    "a worker's log line": lambda store: store.logs.last(RunId("run_10"), "$run"),
    "schedules": lambda store: store.schedules.due(NOW_MS),
    "schedules of one": lambda store: store.schedules.of_repository(QUIET),
    "children": lambda store: store.family.children("run_9"),
    "parent": lambda store: store.family.parent("run_10"),
    "links": lambda store: store.family.due(),
    "command": lambda store: store.operations.get(OperationId("op_10")),
    "queued commands": lambda store: store.operations.queued(RunId("run_100")),
}
# Some that look among the newest runs, or among those of one repository that have not ended.
LOOKED = {
    "list of paused",
    *("list by pipeline", "list by branch", "list by trigger", "list by actor", "list since"),
    *("list by age", "list by age of one", "list by state of one", "list by commit of all"),
}


@pytest.mark.parametrize("what", QUESTIONS)
def test_it_costs_the_same_however_many_runs_there_are(
    store: SqlStore, meter: Meter, what: str
) -> None:
    meter.reset()
    QUESTIONS[what](store)
    sqlite = store.engine.dialect.name == "sqlite"
    if what in LOOKED:
        most = LOOKED_STEPS_MAX if sqlite else LOOKED_TOUCHED_MAX
    else:
        most = STEPS_MAX if sqlite else TOUCHED_MAX
    print(f"{what}: {max(meter.work.values(), default=0):,} of {most:,}")
    assert max(meter.work.values(), default=0) <= most, meter.work.most_common(2)
