"""Several processes on one database, and what happens when it fails them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from sqlite3 import Connection as SqliteConnection

import psycopg
import pytest
from sqlalchemy import Connection, event, text

from ci_platform.errors import InvalidRequest, StoreUnavailable
from ci_platform.model import LogLine, RepositoryId, RunId, RunState
from ci_platform.ports import RunFilter
from ci_platform.store import SqlStore, database, direct, open_store
from ci_platform.store.tables import SCHEMA_VERSION
from tests.contract.conftest import KEY, OpenStore
from tests.contract.store_values import (
    LEASE_MS,
    WORKER,
    FakeClock,
    append,
    claimed,
    created,
    end,
    new_run,
    note,
    operation,
    started,
)

ROOT = Path(__file__).parents[2]


def run_processes(duty: str, url: str, count: int) -> list[list[str]]:
    """What each of several processes that do the same at once has to say."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.contract.store_process", duty, url, f"worker-{number}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return [json.loads(output) for output in outputs]


def test_no_run_is_claimed_by_two_processes(open_sql_store: OpenStore, database_url: str) -> None:
    store = open_sql_store()
    store.runs.create([new_run(f"{n}", repository=f"repo_{n % 7}") for n in range(150)])
    found = run_processes("drain", database_url, 2)
    assert sorted(name for part in found for name in part) == sorted(f"run_{n}" for n in range(150))


def test_appends_of_two_processes_lose_nothing(
    open_sql_store: OpenStore, database_url: str
) -> None:
    store = open_sql_store()
    started(store)
    run_processes("append", database_url, 2)
    entries = store.runs.journal(RunId("run_one"), after=2)
    assert [entry.seq for entry in entries] == list(range(3, 103))
    for name in ("worker-0", "worker-1"):
        assert [e.data["n"] for e in entries if e.data["by"] == name] == list(range(50))


def test_processes_that_open_a_new_database_at_once_make_one_of_it(
    open_sql_store: OpenStore, sqlite_url: str
) -> None:
    found = run_processes("create", sqlite_url, 4)
    numbers = sorted(int(number) for part in found for number in part)
    assert numbers == list(range(1, 4 * 10 + 10 + 1))


def test_what_was_committed_is_there_after_reopening(open_sql_store: OpenStore) -> None:
    first = open_sql_store()
    run = end(first, started(first))
    first.close()
    second = open_sql_store()
    assert second.runs.get(run.id) == run
    assert len(second.runs.journal(run.id)) == run.last_seq


# --- schema ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["9999", None])
def test_another_schema_is_refused_by_name(
    open_sql_store: OpenStore, database_url: str, clock: FakeClock, version: str | None
) -> None:
    store = open_sql_store()
    store_version(store, version)
    try:
        with pytest.raises(StoreUnavailable, match="schema"):
            open_store(database_url, clock=clock, key=KEY)
    finally:
        store_version(store, SCHEMA_VERSION)


def store_version(store: SqlStore, version: str | None) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
        if version is not None:
            connection.execute(text("INSERT INTO alembic_version VALUES (:v)"), {"v": version})


def test_an_unknown_state_is_refused_by_the_database(sql_store: SqlStore) -> None:
    run = created(sql_store)
    with pytest.raises(Exception, match="run_state"), sql_store.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET state = 'done' WHERE id = :id"), {"id": run.id})


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://host/x", "mysql"),
        ("sqlite://", "no file"),
        ("sqlite:///:memory:", "no file"),
        ("nonsense", "not a URL"),
        ("postgresql+asyncpg://host/x", "asyncpg"),
    ],
)
def test_a_bad_url_is_refused_by_what_is_wrong(url: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        open_store(url, key=KEY)
    assert caught.value.field == "database_url"


def test_a_password_in_a_url_is_never_repeated() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        open_store("postgresql://ann:hunter2@127.0.0.1:1/none", key=KEY)
    assert "hunter2" not in str(caught.value)


def test_a_key_of_the_wrong_size_is_refused(sqlite_url: str) -> None:
    with pytest.raises(InvalidRequest, match="32"):
        open_store(sqlite_url, key=b"short")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="nowhere"):
        open_store(f"sqlite:///{tmp_path}/nowhere/x.db", key=KEY)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"#!/bin/sh\n" * 1000)
    with pytest.raises(StoreUnavailable, match="not a database"):
        open_store(f"sqlite:///{tmp_path}/x.db", key=KEY)


def test_a_database_that_stays_locked_is_an_error_and_then_works_again(
    open_sqlite: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    store = open_sqlite()
    run = started(store)
    with store.engine.connect() as blocker:
        blocker.execute(text("UPDATE runs SET ref = ref"))
        with pytest.raises(StoreUnavailable, match="locked"):
            append(store, run)
        blocker.rollback()
    assert append(store, run).applied


def test_a_full_disk_is_an_error_and_writes_nothing_until_there_is_room(
    open_sqlite: OpenStore,
) -> None:
    store = open_sqlite()
    run = started(store)
    store._database.read(partial(direct.execute, text="PRAGMA max_page_count = 60"))
    big = note({"text": random.Random(5).randbytes(250_000).hex()})
    with pytest.raises(StoreUnavailable, match="full"):
        append(store, run, big)
    assert store.runs.get(run.id) == run
    store._database.read(partial(direct.execute, text=f"PRAGMA max_page_count = {1 << 20}"))
    assert append(store, run, big).applied


def test_only_what_outlives_a_power_cut_waits_for_the_disk(open_sqlite: OpenStore) -> None:
    store = open_sqlite()
    statements: list[str] = []

    def listen(connection: Connection) -> None:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, SqliteConnection)
        assert driver.execute("PRAGMA synchronous").fetchone() == (2,), "FULL, unless it is set"
        driver.set_trace_callback(statements.append)

    store._database.read(listen)
    created(store, "1")
    (claim,) = store.runs.claim(WORKER, limit=1, lease_ms=1000)
    store.runs.renew(WORKER, lease_ms=1000)
    append(store, claim.run, fence=claim.run.fence)
    level, levels = "FULL", []
    for statement in statements:
        if statement.startswith("PRAGMA synchronous = "):
            level = statement.removeprefix("PRAGMA synchronous = ")
        elif statement == "COMMIT":
            levels.append(level)
    assert levels == ["FULL", "NORMAL", "NORMAL", "FULL"]


def cut_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'sluice%'"
        )


def test_cut_connections_are_replaced_without_a_word(
    open_postgres: OpenStore, empty_postgres_url: str
) -> None:
    store = open_postgres()
    bell = store.bell()
    run = started(store)
    cut_connections(empty_postgres_url)
    assert append(store, run).applied
    cut_connections(empty_postgres_url)
    assert store.runs.get(run.id).last_seq == 3
    other = open_postgres()
    while bell.wait(0.2):
        pass
    created(other, "2")
    assert bell.wait(20)


def test_batches_that_lock_the_same_rows_in_opposite_orders_both_finish(
    open_postgres: OpenStore,
) -> None:
    stores = [open_postgres() for _ in range(2)]
    runs = [created(stores[0], str(number)) for number in range(6)]

    def add(thread: int) -> int:
        store = stores[thread % 2]
        applied = 0
        for number in sorted(range(6), reverse=thread % 2 == 0):
            run = store.runs.get(runs[number].id)
            while not (appended := append(store, run)).applied:
                run = appended.run
            applied += 1
        return applied

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(add, range(8))) == [6] * 8


# --- costs ----------------------------------------------------------------------------------------


def explain(store: SqlStore, ask: Callable[[SqlStore], object]) -> list[tuple[str, str]]:
    """Each SELECT that a call makes, with its plan."""
    sqlite = store.engine.dialect.name == "sqlite"
    plans: list[tuple[str, str]] = []
    asking = True

    @event.listens_for(store.engine, "before_cursor_execute")
    def plan(connection, cursor, statement, parameters, context, many):  # type: ignore[no-untyped-def]
        nonlocal asking
        if not asking or many or "SELECT" not in statement or "RETURNING" in statement:
            return
        asking = False
        prefix = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        cursor.execute(prefix + statement, parameters)
        plans.append((statement, "\n".join(str(row[-1]) for row in cursor.fetchall())))
        asking = True

    ask(store)
    event.remove(store.engine, "before_cursor_execute", plan)
    return plans


# Scans in SQLite's plans that are no scans of a table: of what the statement itself made, and of
# partial indexes, which hold what is due, leased or open and nothing else.
HARMLESS = ("walked", "heads", "anon_", "CONSTANT ROW", "_due", "_leased", "approvals_open")
SEVEN = RunId("run_7")
REPO_3 = RepositoryId("repo_3")
ASKED: list[Callable[[SqlStore], object]] = [
    lambda store: claimed(store),
    lambda store: store.runs.next_ready_ms(),
    lambda store: store.runs.expire(),
    lambda store: store.runs.release(WORKER),
    lambda store: store.runs.renew(WORKER, lease_ms=5),
    lambda store: store.runs.get(SEVEN),
    lambda store: store.runs.by_number(REPO_3, 2),
    lambda store: store.runs.journal(SEVEN),
    lambda store: store.runs.counts(),
    lambda store: append(store, store.runs.get(SEVEN)),
    lambda store: store.runs.list(RunFilter()),
    lambda store: store.runs.list(RunFilter(repository_ids=[REPO_3])),
    lambda store: store.runs.list(RunFilter(states=(RunState.FAILED, RunState.QUEUED))),
    lambda store: store.runs.list(RunFilter(repository_ids=[REPO_3], states=(RunState.FAILED,))),
    lambda store: store.operations.claim(WORKER, limit=1, lease_ms=5),
    lambda store: store.approvals.open(),
    lambda store: store.approvals.open([REPO_3]),
    lambda store: store.approvals.of_run(SEVEN),
    lambda store: store.logs.append(SEVEN, "sh:a", [LogLine(1, 1, "stdout", "x")]),
    lambda store: store.logs.read(SEVEN, "sh:a"),
    lambda store: store.logs.tail(SEVEN, "sh:a"),
    lambda store: store.logs.last(SEVEN, "sh:a"),
    lambda store: store.logs.steps(SEVEN),
    lambda store: store.hooks.pending(5),
]


def test_no_hot_question_reads_a_whole_table(sql_store: SqlStore) -> None:
    for start in range(0, 3000, 1000):
        sql_store.runs.create(
            [new_run(f"{n}", repository=f"repo_{n % 40}") for n in range(start, start + 1000)]
        )
    if sql_store.engine.dialect.name == "postgresql":
        with sql_store.engine.begin() as connection:
            connection.execute(text("ANALYZE"))
            # Small tables are read whole for good reason; ours are to be judged as if large.
            connection.execute(text("ALTER ROLE postgres SET enable_seqscan = off"))
        sql_store.engine.dispose()
    try:
        for ask in ASKED:
            for statement, plan in explain(sql_store, ask):
                assert "Seq Scan" not in plan, f"{statement}\n{plan}"
                for line in plan.splitlines():
                    harmless = any(word in line for word in HARMLESS)
                    # Newest first and no condition: it ends after one page.
                    ends_soon = "FROM runs ORDER BY runs.n DESC" in statement
                    scans = line.startswith("SCAN") and not harmless and not ends_soon
                    assert not scans, f"{statement}\n{plan}"
    finally:
        if sql_store.engine.dialect.name == "postgresql":
            with sql_store.engine.begin() as connection:
                connection.execute(text("ALTER ROLE postgres RESET enable_seqscan"))


def test_a_lease_begins_when_the_claim_is_written_however_long_that_waited(
    open_sqlite: OpenStore, clock: FakeClock
) -> None:
    """Else it would be over early on a busy machine, and entries would not be in order of time."""
    mine, other = open_sqlite(), open_sqlite()
    created(mine)
    held, go_on = threading.Event(), threading.Event()

    def keep_the_turn(connection: Connection) -> None:
        held.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor(2) as threads:
        keeper = threads.submit(other._database.write, keep_the_turn)
        assert held.wait(30)
        claim = threads.submit(claimed, mine)
        while not claim.running():
            time.sleep(0.001)
        clock.advance(20_000)
        go_on.set()
        run = claim.result(30)
        keeper.result(30)
    assert run.lease_until_ms == clock.now_ms() + LEASE_MS
    assert mine.runs.journal(run.id)[-1].at_ms == clock.now_ms()


def test_a_commands_lease_begins_when_its_claim_is_written(
    open_sqlite: OpenStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = open_sqlite(), open_sqlite()
    append(mine, created(mine), effects=[operation()])
    held, go_on, looked = threading.Event(), threading.Event(), threading.Event()
    now_ms = clock.now_ms

    def keep_the_turn(connection: Connection) -> None:
        held.set()
        assert go_on.wait(30)

    def looking() -> int:
        looked.set()  # for what is due, which asks for no turn
        return now_ms()

    with ThreadPoolExecutor(2) as threads:
        keeper = threads.submit(other._database.write, keep_the_turn)
        assert held.wait(30)
        monkeypatch.setattr(clock, "now_ms", looking)
        claim = threads.submit(mine.operations.claim, WORKER, limit=1, lease_ms=LEASE_MS)
        assert looked.wait(30)
        clock.advance(20_000)
        go_on.set()
        (command,) = claim.result(30)
        keeper.result(30)
    assert command.lease_until_ms == now_ms() + LEASE_MS
