"""A platform that things happen to: real store, engine, commands and workers, and faults at will.

Each worker has its own door to the store. A plan (`Moment`s) says what happens right before or
after a certain call through that door: the process dies, the answer is lost, people act, time
passes, or the process stands still while others take over, as after a SIGSTOP.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ci_platform.commands import Parts
from ci_platform.commands.approvals import Approvals
from ci_platform.commands.family import Family
from ci_platform.commands.runs import Runs, StartRun
from ci_platform.errors import RepositoryNotFound, RequestError, SluiceError, StoreUnavailable
from ci_platform.model import Actor, Repository, RepositoryId, Run, RunId, StepKey, WorkerId
from ci_platform.ports import RunFilter, Store
from ci_platform.ports.repositories import Repositories
from ci_platform.scheduling import RunLimits
from ci_platform.shell import CommandResult, CommandSpec
from ci_platform.store import SqlStore
from ci_platform.testing import FakeClock, FakeSource, InProcessSandbox, succeeded
from ci_platform.worker import Settings, Tools, Worker
from tests.model import trace
from tests.model.reference import Broken, Told, holds

LEASE_MS = 30_000
TURNS_MAX = 300  # of a worker until nothing is due
RUNS_MAX = 100  # that one example has at once
ADA = Actor(kind="user", id="usr_ada", name="ada", admin=True)
BOB = Actor(kind="user", id="usr_bob", name="bob", admin=True)
NAMES = ("app", "lib")
IDS = ("repo_app", "repo_lib")


class Killed(BaseException):
    """The process is gone: nothing after this is executed."""


@dataclass(frozen=True)
class Moment:
    """At the `at`-th call through a worker's door, `what` happens, before it or after."""

    at: int
    what: str
    after: bool


class Door:
    """One of the store's parts, as one worker sees it."""

    CALLS = frozenset(
        {"append", "claim", "create", "expire", "renew", "close", "settled", "superseded_done"}
    )

    def __init__(self, part: str, inner: Any, pass_through: Callable[..., Any]) -> None:
        self._part = part
        self._inner = inner
        self._pass = pass_through

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self.CALLS:
            return found
        called = f"{self._part}.{name}"
        return lambda *given, **named: self._pass(called, lambda: found(*given, **named), given)


class Storefront:
    """The whole store, as one worker sees it."""

    DOORS = frozenset({"runs", "operations", "family"})

    def __init__(self, store: Store, pass_through: Callable[..., Any]) -> None:
        self._store = store
        self._pass = pass_through

    def __getattr__(self, name: str) -> Any:
        part = getattr(self._store, name)
        return Door(name, part, self._pass) if name in self.DOORS else part


class TwoRepositories:
    """As much of a git store as commands ask for."""

    def __init__(self) -> None:
        self._known = {
            name: Repository(RepositoryId(f"repo_{name}"), "acme", name, "main", "", 0)
            for name in NAMES
        }

    def get(self, owner: str, name: str) -> Repository:
        if name not in self._known:
            raise RepositoryNotFound()
        return self._known[name]

    def by_id(self, repository_id: RepositoryId) -> Repository:
        return self._known[repository_id.removeprefix("repo_")]


class Runner:
    """Commands: each has its effect, and fails as often as its script says."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        if stop():
            return succeeded(ended="cancelled")
        script, attempt = json.loads(spec.script), int(spec.env["CI_STEP_ATTEMPT"])
        value = self._platform.executed(spec.run_id, spec.step, attempt, script["seen"])
        failed = attempt <= script["fails"]
        result = succeeded(exit_code=int(failed), layer=None if failed else f"layer-{value[-1]}")
        return CommandResult(**{**_fields(result), "outputs": {"value": json.dumps(value)}})

    def fingerprint(self, spec: CommandSpec) -> str:
        return spec.script

    def obstacle(self) -> str | None:
        return None

    def collision(self, layer: str, other: str) -> str | None:
        return None


def identity(run: Run) -> tuple[str, int]:
    """Of a run: its id may be used again once it is deleted."""
    return run.repository_id, run.number


def _fields(result: CommandResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__dataclass_fields__}


@dataclass
class Process:
    """A worker process, and which of its leases it believes in."""

    name: str
    worker: Worker = field(init=False)
    calls: int = 0
    moments: list[Moment] = field(default_factory=list)


class Platform:
    def __init__(
        self, make_store: Callable[[FakeClock], Store], *, limits: RunLimits, hibernate: bool
    ) -> None:
        self.limits = limits
        self.clock = FakeClock()
        self.store = make_store(self.clock)
        self.source = FakeSource()
        self.sandbox = InProcessSandbox()
        self.settings = Settings(
            lease_ms=LEASE_MS, activations_max=2, operations_max=2, always_hibernate=hibernate
        )
        self._repositories = TwoRepositories()
        parts = self._parts(self.store)
        self.runs = Runs(parts)
        self.approvals = Approvals(parts)
        self.returned: dict[tuple[str, int, str, int], Any] = {}  # by run, step and attempt
        self.broken: list[Broken] = []
        self._nonce = 0
        self._depth = 0
        self._started = 0
        self._people: Callable[[str, RunId | None], None] = lambda what, run_id: None
        self.processes = [self.process() for _ in range(3)]
        trace.listen(self.executed)

    def _parts(self, store: Store) -> Parts:
        return Parts(
            store=store,
            source=self.source,
            repositories=cast(Repositories, self._repositories),
            outbox=cast(Any, None),
            describe=self.sandbox.describe,
            clock=self.clock,
            base_url="http://sluice.test",
        )

    def close(self) -> None:
        self.sandbox.close()
        if isinstance(self.store, SqlStore):
            gc.collect()  # code that was dropped while it waited complains to its log
        self.store.close()

    # --- processes ---

    def process(self) -> Process:
        self._started += 1
        made = Process(f"w{self._started}")
        front = Storefront(self.store, lambda *call: self._through(made, *call))
        store = cast(Store, front)
        parts = self._parts(store)
        family = Family(parts)
        made.worker = Worker(
            Tools(
                id=WorkerId(made.name),
                store=store,
                sandbox=self.sandbox,
                runner=Runner(self),
                source=self.source,
                clock=self.clock,
                settings=self.settings,
                start_child=family.start,
                family_pending=family.pending,
                supersede_pending=Runs(parts).supersede_pending,
            )
        )
        return made

    def _through(
        self, process: Process, name: str, call: Callable[[], Any], given: Sequence[Any]
    ) -> Any:
        process.calls += 1
        run_id = getattr(given[0], "run_id", None) if given else None
        now = [one for one in process.moments if one.at == process.calls]
        for moment in now:
            if not moment.after:
                self._happens(moment.what, run_id)
        if name == "runs.claim":
            due = self._due()
            answer = call()
            run_id = answer[0].run.id if answer else None
            self._judge([claim.run for claim in answer], due)
        else:
            answer = call()
        for moment in now:
            if moment.after:
                self._happens(moment.what, run_id)
        return answer

    def _due(self) -> list[Run]:
        now_ms = self.clock.now_ms()
        return [run for run in self.listed() if run.ready_ms is not None and run.ready_ms <= now_ms]

    def _judge(self, claimed: list[Run], due: list[Run]) -> None:
        """A claim takes turns between repositories; within one, it takes the first."""
        if self.limits:
            return
        try:
            holds(
                {run.id for run in claimed} <= {run.id for run in due}, "only due runs are claimed"
            )
            full = len(claimed) == min(len(due), self.settings.activations_max)
            holds(full, "a claim takes what it can")
            taken = {id: [run.id for run in claimed if run.repository_id == id] for id in IDS}
            for id in IDS:
                own = [run for run in due if run.repository_id == id]
                own.sort(key=lambda run: (-run.place.priority, run.ready_ms or 0, run.number))
                holds(taken[id] == [run.id for run in own[: len(taken[id])]], "the first of each")
                starved = len(taken[id]) < len(own)
                most = max(map(len, taken.values()))
                holds(not starved or most - len(taken[id]) <= 1, "repositories take turns")
        except Broken as broken:
            self.broken.append(broken)

    def _happens(self, what: str, run_id: RunId | None) -> None:
        if what == "die":
            raise Killed
        if what == "lose":
            raise StoreUnavailable("the connection is gone")
        if self._depth:
            return
        self._depth += 1
        try:
            # Other threads, so to say: nothing of the activation that waits is seen there.
            contextvars.Context().run(self._meanwhile, what, run_id)
        finally:
            self._depth -= 1

    def _meanwhile(self, what: str, run_id: RunId | None) -> None:
        if what == "freeze":
            self.clock.advance(LEASE_MS / 1000 + 1)
            self.work(self.process())
        elif what == "tick":
            self.clock.advance(3)
        else:
            self._people(what, run_id)

    def listen(self, people: Callable[[str, RunId | None], None]) -> None:
        """Who acts at a moment of a plan."""
        self._people = people

    def work(self, process: Process, moments: Sequence[Moment] = ()) -> bool:
        """Let a worker do all that is due. False: it died of it."""
        process.calls, process.moments = 0, list(moments)
        try:
            for _ in range(TURNS_MAX):
                with contextlib.suppress(StoreUnavailable):
                    if process.worker.run_once() == 0:
                        return True
        except Killed:
            return False
        finally:
            process.moments = []
        raise AssertionError(f"still busy after {TURNS_MAX} turns")

    # --- what steps do to the world ---

    def executed(self, run_id: str, key: str, attempt: int, known: Any) -> Any:
        """A step has its effect. What is wrong with that is kept: who asks is the author's code,
        which may catch anything."""
        try:
            return self._executed(RunId(run_id), key, attempt, known)
        except Broken as broken:
            self.broken.append(broken)
            raise

    def _executed(self, id: RunId, key: str, attempt: int, known: Any) -> Any:
        """What the code was given before must be journaled by now."""
        run = self.store.runs.get(id)
        told = Told(run)
        told.hear(self.store.runs.journal(id))
        step = told.steps.get(key)
        holds(step is not None and attempt <= step.attempt, f"{key} is journaled before it begins")
        if not key.partition(":")[2].startswith("$rollback:"):
            for given, value in known:
                before = told.steps.get(given)
                if before is not None:
                    self._check_given(before.kind, before.result, value)
                    holds(before.state == "passed", f"{given} is journaled before {key} begins")
        self._nonce += 1
        value = [key, attempt, self._nonce]
        before_now = self.returned.setdefault((*identity(run), key, attempt), value)
        holds(before_now is value, f"attempt {attempt} of {key} executes once")
        return value

    @staticmethod
    def _check_given(kind: str, result: Any, value: Any) -> None:
        if kind == "do":
            holds(result == value, "the code is given what is journaled")

    # --- people ---

    def start(self, name: str, **what: Any) -> Run:
        return self.runs.start(ADA, "acme", name, StartRun(pipeline="Main", **what))

    def listed(self) -> list[Run]:
        """All runs, oldest first."""
        page = self.store.runs.list(RunFilter(), limit=RUNS_MAX)
        assert page.cursor is None
        return list(page.runs)[::-1]

    def find(self, id: str) -> Run | None:
        return next((run for run in self.listed() if run.id == id), None)

    def gate(self, run: Run, name: str, decision: str) -> None:
        self.approvals.decide(BOB, run.id, name, decision=decision)

    def restart_from(self, run: Run, key: str) -> Run:
        return self.runs.restart(ADA, run.id, from_step=StepKey.parse(key))

    def refused(self, act: Callable[[], object]) -> SluiceError | None:
        """What somebody is told who asks for this; None: it is done."""
        try:
            act()
        except RequestError as error:
            return error
        return None
