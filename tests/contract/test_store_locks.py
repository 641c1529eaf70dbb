"""Whoever writes locks in one order: a storm of everything at once never locks itself up."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from random import Random

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from ci_platform.effects import (
    CloseApproval,
    CloseOperation,
    Effect,
    RecordDecision,
    ReleaseChildren,
    StopOperations,
)
from ci_platform.errors import Conflict, LeaseLost, NotFound
from ci_platform.family import Kin
from ci_platform.model import (
    Draft,
    EntryKind,
    LogLine,
    Run,
    RunId,
    RunState,
    RunUpdate,
    StepKey,
    StepKind,
    WorkerId,
)
from ci_platform.ports import Append, RunFilter, Store
from ci_platform.ports.logs import Held
from ci_platform.scheduling import OnNew, Place, RunLimits
from ci_platform.store import open_store
from ci_platform.store.clock import SystemClock
from tests.contract.conftest import KEY
from tests.contract.store_values import (
    gate,
    new_run,
    operation,
    update,
)
from tests.postgres import PostgresServer

STORM_SECONDS = 3.0
THREADS = 8
PROCESSES = 3  # as many stores: group commit orders what one process does
KNOWN_MAX = 12  # runs looked at, so that they meet
LEASE_MS = 20


class Storm:
    """One thread's part: whatever comes to its mind, to runs that all the others see too."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = Random(seed)
        self.worker = WorkerId(f"w{seed}")
        self.made = 0
        self.done = 0
        self.acts: list[Callable[[], object]] = [
            *[self.create] * 2,
            *[self.work] * 4,
            *[self.command] * 3,
            *(self.event, self.gate, self.cancel, self.delete, self.family, self.supersede),
            *(self.renew, self.expire, self.release, self.log, self.restrict),
        ]

    def blow(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            try:
                self.random.choice(self.acts)()
                self.done += 1
            except (Conflict, LeaseLost, NotFound):
                continue  # somebody was faster

    def some(self) -> Run:
        runs = self.store.runs.list(RunFilter(), limit=KNOWN_MAX).runs
        if not runs:
            raise NotFound("there is none")
        return self.random.choice(runs)

    def create(self) -> None:
        new = []
        for _ in range(self.random.randint(1, 4)):
            self.made += 1
            one = new_run(
                f"{self.worker}_{self.made}", repository=self.random.choice(["repo_a", "repo_b"])
            )
            on_new = self.random.choice(list(OnNew))
            group = self.random.choice([None, "x", "y"])
            place = Place(group, self.random.randint(1, 2), on_new, self.random.choice([0, 0, 5]))
            new.append(replace(one, place=place))
        if self.random.random() < 0.5:
            kin = Kin(self.some().id, "run:child", True, 1)
            new[0] = replace(new[0], kin=kin)
        self.random.shuffle(new)
        self.store.runs.create(new, skip_existing=True)

    def work(self) -> None:
        for claim in self.store.runs.claim(self.worker, limit=3, lease_ms=LEASE_MS):
            run = claim.run
            self.made += 1
            key = StepKey(StepKind.SH, f"s{self.made}")
            opened = operation(f"op_{self.worker}_{self.made}", key=key)
            effects: list[Effect] = [opened, gate(StepKey(StepKind.APPROVAL, f"g{self.made}"))]
            run = self.append(run, Draft(EntryKind.EVENT_RECEIVED), update(run), *effects)
            if self.random.random() < 0.3:
                self.end(run, RunState.PASSED)
            else:
                to = update(run, RunState.WAITING, ready_ms=0)
                self.append(run, Draft(EntryKind.RUN_SUSPENDED), to)

    def command(self) -> None:
        for one in self.store.operations.claim(self.worker, limit=3, lease_ms=LEASE_MS):
            line = LogLine(1, 0, "stdout", "a")
            held = Held(one.id, one.fence)
            self.store.logs.append(one.run_id, str(one.key), [line], held=held)
            run = self.store.runs.get(one.run_id)
            self.change(run, CloseOperation(one.id, one.fence))

    def change(self, run: Run, *effects: Effect) -> None:
        """From outside: the run stays as it is."""
        to = update(run, run.state, hold=run.worker is not None, ready_ms=run.ready_ms)
        self.append(run, Draft(EntryKind.EVENT_RECEIVED), to, *effects)

    def append(self, run: Run, draft: Draft, to: RunUpdate, *effects: Effect) -> Run:
        """As the engine's `propose` does it."""
        given = Append(
            run_id=run.id,
            expected_seq=run.last_seq,
            drafts=[draft],
            update=to,
            fence=run.fence if run.worker == self.worker else None,
            effects=effects,
            identity=(run.repository_id, run.number),
            group=run.place.group,
        )
        return self.store.runs.append(given).run

    def end(self, run: Run, state: RunState) -> None:
        self.append(run, Draft(EntryKind.RUN_PASSED), update(run, state))

    def event(self) -> None:
        self.change(self.some())

    def gate(self) -> None:
        run = self.some()
        for one in self.store.approvals.of_run(run.id)[:1]:
            answer = RecordDecision(one.key, self.worker, "ann", "approve", "", "api", {})
            self.change(run, answer, CloseApproval(one.key, "approved"))

    def restrict(self) -> None:
        self.change(
            self.some(), StopOperations(), CloseApproval(None, "cancelled"), ReleaseChildren()
        )

    def cancel(self) -> None:
        self.end(self.some(), RunState.CANCELLED)

    def delete(self) -> None:
        ended = RunFilter(states=[RunState.PASSED, RunState.CANCELLED])
        for run in self.store.runs.list(ended, limit=2).runs:
            self.store.runs.delete(run.id)

    def family(self) -> None:
        for link in self.store.family.due(limit=5):
            self.store.family.settled(link)

    def supersede(self) -> None:
        for one in self.store.runs.superseded(limit=5):
            for run_id in one.runs:
                self.end(self.store.runs.get(RunId(run_id)), RunState.CANCELLED)
            self.store.runs.superseded_done(one.by)

    def renew(self) -> None:
        self.store.runs.renew(self.worker, lease_ms=LEASE_MS)

    def expire(self) -> None:
        self.store.runs.expire()

    def release(self) -> None:
        self.store.runs.release(self.worker)

    def log(self) -> None:
        run = self.some()
        last = self.store.logs.last(run.id, "$run")
        self.store.logs.append(run.id, "$run", [LogLine(last + 1, 0, "stdout", "a")])


def storm(url: str, limits: RunLimits, seconds: float) -> int:
    """Several processes' worth of threads at once. Returns how much they did."""
    with ExitStack() as stack:
        clock = SystemClock()
        stores = [
            stack.enter_context(closing(open_store(url, clock=clock, key=KEY, limits=limits)))
            for _ in range(PROCESSES)
        ]
        parts = [Storm(stores[n % PROCESSES], n) for n in range(THREADS)]
        until_s = time.monotonic() + seconds
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda part: part.blow(until_s), parts))
    return sum(part.done for part in parts)


@pytest.mark.parametrize("limits", [RunLimits(), RunLimits(2, 3)], ids=["free", "limited"])
def test_a_storm_of_writers_never_deadlocks_on_postgresql(
    postgres: PostgresServer, limits: RunLimits
) -> None:
    with postgres.database() as url, psycopg.connect(url, autocommit=True) as admin:
        name = admin.info.dbname
        admin.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '20ms'")
        assert storm(url, limits, STORM_SECONDS) > 100
        admin.execute("SELECT pg_stat_clear_snapshot()")
        found = admin.execute(
            "SELECT deadlocks, xact_commit FROM pg_stat_database WHERE datname = %s", [name]
        ).fetchone()
        assert found is not None
        assert found[1] > 100, "the statistics are there"
        assert found[0] == 0, "deadlocks"


def test_every_write_on_sqlite_takes_the_write_lock_first(sqlite_url: str) -> None:
    """A transaction that reads first, and then finds that somebody else has written, must fail."""
    begun: dict[int, str] = {}
    wrong: set[str] = set()

    def watch(connection: sqlite3.Connection, _: object) -> None:
        me = id(connection)

        def said(statement: str) -> None:
            verb = statement.split(None, 1)[0].upper()
            if verb in ("BEGIN", "COMMIT", "ROLLBACK"):
                begun[me] = statement
            elif verb in ("INSERT", "UPDATE", "DELETE") and begun.get(me) != "BEGIN IMMEDIATE":
                wrong.add(statement)

        connection.set_trace_callback(said)

    with closing(open_store(sqlite_url, key=KEY)):
        pass  # the tables
    event.listen(Pool, "connect", watch)
    try:
        assert storm(sqlite_url, RunLimits(2, 3), 1.5) > 20
    finally:
        event.remove(Pool, "connect", watch)
    assert begun
    assert not wrong
