"""What waiting runs cost: a row set each, with its indexes, and caches that their number fills."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg

from ci_platform.envelope import Dispatch, wrap
from ci_platform.model import (
    AuditNote,
    Draft,
    EntryKind,
    NewRun,
    RunId,
    RunState,
    StepKey,
    StepKind,
    Wait,
    WorkerId,
)
from ci_platform.ports import Claim
from ci_platform.store import SqlStore
from ci_platform.store.ids import new_id
from tests.contract.conftest import OpenStore
from tests.contract.store_values import append, new_run, update

RUNS = 1_000
BATCH = 100  # as a caller creates them
SQLITE_BYTES_MAX = 1_024
# Each claim and suspension leaves a version of the row behind, in each index too: what VACUUM frees
# of these is used again by later runs, but is counted here.
POSTGRES_BYTES_MAX = 2_304
NOW_MS = 1_795_000_000_000
MONTH_MS = 30 * 86_400_000
WAIT = StepKey(StepKind.WAIT, "go")
REPOSITORY, TOKEN = new_id("repo", NOW_MS), new_id("tok", NOW_MS)
_POSTGRES_BYTES = """
    SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relkind = 'r'
"""


def test_a_waiting_run_costs_less_than_a_kilobyte_of_sqlite(
    open_sqlite: OpenStore, tmp_path: Path
) -> None:
    file = tmp_path / "sluice.db"
    with closing(open_sqlite()) as store:
        each = _each(store, lambda: _sqlite_bytes(file))
    assert each < SQLITE_BYTES_MAX


def test_what_a_waiting_run_costs_of_postgresql(
    open_postgres: OpenStore, empty_postgres_url: str
) -> None:
    with closing(open_postgres()) as store:
        each = _each(store, lambda: _postgres_bytes(empty_postgres_url))
    assert each < POSTGRES_BYTES_MAX


def test_a_connection_to_sqlite_keeps_half_a_megabyte_of_it(open_sqlite: OpenStore) -> None:
    with closing(open_sqlite()) as store, store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA cache_size").scalar() == -512


def _each(store: SqlStore, size: Callable[[], int]) -> float:
    _sleep(store, BATCH)  # pages that every database has
    empty = size()
    _sleep(store, RUNS)
    each = (size() - empty) / RUNS
    print(f"{each:.0f} B")
    return each


def _sleep(store: SqlStore, count: int) -> None:
    """As the platform does it: created in batches, claimed, asleep at a wait for an event."""
    for _ in range(0, count, BATCH):
        new = [_new() for _ in range(BATCH)]
        store.runs.create(new, notes=[_note(one.id) for one in new])
        for claim in store.runs.claim(WorkerId("host:0:worker-1"), limit=BATCH, lease_ms=30_000):
            _suspend(store, claim)


def _new() -> NewRun:
    new = replace(
        new_run(repository=REPOSITORY, pipeline="Bench"),
        id=RunId(new_id("run", NOW_MS)),
        commit="256012d39db8d93cfc6c5a58c8742615e2870d12",
        trigger="api",
        event={"before": None, "message": "", "actor": "bench", "payload": {"inputs": {}}},
        actor="bench",
        actor_id=TOKEN,
        timeout_ms=None,
    )
    dispatch = Dispatch(new.repository_id, new.pipeline, new.ref, new.commit, new.resume.value)
    return replace(new, payload=wrap(dispatch, {}))


def _note(run_id: str) -> AuditNote:
    detail = {"repository": "bench/waiting", "way": "api"}
    return AuditNote(NOW_MS, TOKEN, "run started", run_id, detail)


def _suspend(store: SqlStore, claim: Claim) -> None:
    until_ms = NOW_MS + MONTH_MS
    config = {"type": "go", "timeout_ms": MONTH_MS}
    started = Draft(EntryKind.STEP_STARTED, {"config": config, "until_ms": until_ms}, WAIT, 1)
    suspended = Draft(EntryKind.RUN_SUSPENDED, {"waits": ["go"]})
    waits = [Wait("wait", "go", "go", NOW_MS, until_ms)]
    to = update(claim.run, RunState.WAITING, ready_ms=until_ms, waits=waits)
    append(store, claim.run, started, suspended, to=to, fence=claim.run.fence)


def _sqlite_bytes(file: Path) -> int:
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.stat().st_size


def _postgres_bytes(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM")
        row = connection.execute(_POSTGRES_BYTES).fetchone()
    assert row is not None
    return int(row[0])
