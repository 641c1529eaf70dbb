"""A platform whose store fails at one chosen call, and plays that must end as if it had not.

Every call of every part of the store is counted. At one of them the store fails before it does
anything, or does it and loses the answer, or answers so late that leases have run out and another
worker has taken over.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ci_platform.commands import Parts, StartRun
from ci_platform.commands.approvals import Approvals
from ci_platform.commands.family import Family
from ci_platform.commands.runs import Runs
from ci_platform.engine.fold import fold
from ci_platform.engine.summary import steps
from ci_platform.errors import StoreUnavailable
from ci_platform.model import Actor, EntryKind, Json, Run, RunId, WorkerId
from ci_platform.ports import RunFilter, Store
from ci_platform.ports.repositories import Repositories
from ci_platform.shell import CommandResult
from ci_platform.testing import DummyRunner, FakeClock, FakeSource, InProcessSandbox
from ci_platform.worker import Settings, Tools, Worker
from tests.model.platform import TwoRepositories
from tests.wakers import check_nobody_is_forgotten

LEASE_MS = 30_000
TURNS_MAX = 60  # of a worker until nothing is due
ROUNDS_MAX = 60  # of people and time until all runs have ended
DAY_MS = 86_400_000
ADA = Actor(kind="user", id="usr_ada", name="ada", admin=True)
BOB = Actor(kind="user", id="usr_bob", name="bob", admin=True)
COMMIT = "1" * 40
RUN = RunId("run_played")
ENDS = (EntryKind.STEP_PASSED, EntryKind.STEP_FAILED, EntryKind.STEP_CANCELLED)

TIMES = ("timestamp", "at")
FAILS, LOSES, LATE = "fails before", "does it and loses the answer", "answers late"
_PARTS = frozenset({"runs", "operations", "approvals", "logs", "family", "memos", "audit"})
_PARTS |= {"descriptions", "workers", "duties"}


@dataclass(slots=True)
class Fault:
    """What happens at the `at`-th call."""

    at: int = 0  # never
    how: str = FAILS
    meanwhile: Callable[[], None] = lambda: None  # while an answer is late
    calls: int = 0
    struck: str = ""  # the call that it happened to

    def through(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls += 1
        if self.calls != self.at:
            return call()
        self.struck = name
        if self.how == FAILS:
            raise StoreUnavailable(f"{name}: no connection")
        answer = call()
        if self.how == LOSES:
            raise StoreUnavailable(f"{name}: the connection is gone")
        self.meanwhile()
        return answer


class _Part:
    """One attribute of the store."""

    def __init__(self, name: str, part: Any, fault: Fault) -> None:
        self._name, self._part, self._fault = name, part, fault

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        called = f"{self._name}.{name}"
        return lambda *given, **named: self._fault.through(called, lambda: found(*given, **named))


class FaultyStore:
    def __init__(self, store: Store, fault: Fault) -> None:
        self._store, self._fault = store, fault

    def __getattr__(self, name: str) -> Any:
        part = getattr(self._store, name)
        return _Part(name, part, self._fault) if name in _PARTS else part


@dataclass(frozen=True, slots=True)
class Play:
    """A pipeline, and what people do for it besides answering what it waits for."""

    code: str
    results: Mapping[str, Sequence[CommandResult | Exception]] = field(default_factory=dict)
    runs: int = 1  # of the same code, started together


class Stage:
    """One store, one worker that meets the fault, and another that meets none."""

    def __init__(self, store: Store, clock: FakeClock, fault: Fault, play: Play) -> None:
        self.store, self.clock, self.fault = store, clock, fault
        self.source = FakeSource()
        self.source.put(COMMIT, play.code)
        self.sandbox = InProcessSandbox()
        self.runner = DummyRunner(play.results)
        self.people = self.parts(store)
        self.faulty = cast(Store, FaultyStore(store, fault))
        self.worker = self._worker("w1", self.faulty)
        self.rival = self._worker("w2", store)
        self._helped: set[tuple[str, str]] = set()
        fault.meanwhile = self._overtake

    def parts(self, store: Store) -> Parts:
        return Parts(
            store=store,
            source=self.source,
            repositories=cast(Repositories, TwoRepositories()),
            outbox=cast(Any, None),
            describe=self.sandbox.describe,
            clock=self.clock,
            base_url="http://sluice.test",
        )

    def _worker(self, name: str, store: Store) -> Worker:
        parts = self.parts(store)
        family = Family(parts)
        tools = Tools(
            id=WorkerId(name),
            store=store,
            sandbox=self.sandbox,
            runner=self.runner,
            source=self.source,
            clock=self.clock,
            settings=Settings(lease_ms=LEASE_MS),
            start_child=family.start,
            family_pending=family.pending,
            supersede_pending=Runs(parts).supersede_pending,
        )
        return Worker(tools)

    def _overtake(self) -> None:
        self.clock.advance(LEASE_MS / 1000 + 1)
        self.work(self.rival)

    def work(self, worker: Worker) -> None:
        for _ in range(TURNS_MAX):
            with contextlib.suppress(StoreUnavailable):
                if worker.run_once() == 0:
                    return
        raise AssertionError(f"still busy after {TURNS_MAX} turns")

    def start(self, run_id: str) -> Run:
        what = StartRun(pipeline="Main", id=run_id)
        return Runs(self.people).start(ADA, "acme", "app", what)

    def listed(self) -> list[Run]:
        """Oldest first."""
        return list(self.store.runs.list(RunFilter(), limit=500).runs)[::-1]

    def play(self) -> None:
        """Work, answer what runs wait for, and let time pass, until all have ended."""
        for _ in range(ROUNDS_MAX):
            self.work(self.worker)
            check_nobody_is_forgotten(self.store, self.clock.now_ms())
            live = [run for run in self.listed() if not run.state.terminal]
            if not live:
                return
            if any([self._help(run) for run in live]):
                continue
            due_ms = self.store.runs.next_ready_ms()
            later_ms = None if due_ms is None else max(0, due_ms - self.clock.now_ms())
            near = later_ms is not None and 0 < later_ms < DAY_MS
            self.clock.advance(later_ms / 1000 if near and later_ms else 1)
        raise AssertionError(f"these never end: {[run.id for run in live]}")

    def _help(self, run: Run) -> bool:
        """Do what it waits for people to do, once. True if there was anything."""
        todo = [wait for wait in run.waits if (run.id, wait.name) not in self._helped]
        done = False
        for wait in todo:
            if wait.type is not None:
                Runs(self.people).send_event(ADA, run.id, wait.type, wait.name)
            elif wait.kind == "approval":
                Approvals(self.people).decide(BOB, run.id, wait.name, decision="approve")
            else:
                continue
            self._helped.add((run.id, wait.name))
            done = True
        return done

    def outcome(self) -> Any:
        """How everything ended, without when and after how many attempts; and check what must
        hold in any case."""
        found = []
        for run in self.listed():
            journal = self.store.runs.journal(run.id)
            ends = Counter(str(entry.key) for entry in journal if entry.kind in ENDS)
            assert set(ends.values()) <= {1}, f"a step ended twice: {ends}"
            taken = Counter(entry.data["event"] for entry in journal if "event" in entry.data)
            assert set(taken.values()) <= {1}, f"an event was taken twice: {taken}"
            assert run.worker is None and not run.slot, f"{run.id} is still held"
            view = fold(run, journal)
            error = None if run.error is None else (run.error.type, run.error.message)
            shown = [(str(one.key), one.state.value, timeless(one.value)) for one in steps(view)]
            for one in steps(view):
                lines = self.store.logs.read(run.id, str(one.key))
                numbers = [line.number for line in lines]
                assert numbers == list(range(1, len(lines) + 1)), (
                    "a line is there twice, or missing"
                )
            found.append((run.pipeline, run.number, run.state.value, run.output, error, shown))
        return found

    def close(self) -> None:
        self.sandbox.close()
        self.store.close()


def timeless(value: Json) -> Json:
    """What a step came to, without when."""
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items() if name not in TIMES}
    return [timeless(one) for one in value] if isinstance(value, list) else value
