"""Random people, code, crashes and time against the reference: thousands of steps each time.

`--hypothesis-profile=long` plays twenty times as many. A failure prints its steps, shrunk, and a
blob that plays them again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ci_platform.commands import StartRun
from ci_platform.errors import (
    Conflict,
    InvalidRequest,
    RequestError,
    RunExists,
    RunNotFound,
    SluiceError,
    StepNotFound,
)
from ci_platform.model import Run, RunId, RunState
from ci_platform.ports import Store
from ci_platform.scheduling import Hold, OnNew, RunLimits
from ci_platform.store import open_store
from ci_platform.store.tables import METADATA
from ci_platform.testing import FakeClock, InMemoryStore
from tests.model import plans
from tests.model.platform import ADA, NAMES, RUNS_MAX, Moment, Platform, identity
from tests.model.reference import Told, holds
from tests.postgres import PostgresServer
from tests.wakers import check_nobody_is_forgotten

SCALE = settings().max_examples / 100  # 1 in the default profile
LIVE_MAX = 12  # runs that have not ended, until no more are started
ROUNDS_MAX = 200  # of a platform that is let alone, until all runs have ended
DAY_MS = 86_400_000
MAIN = "refs/heads/main"

KEY = bytes(range(32))
WHICH = st.integers(0, 30)
REPOSITORY = st.sampled_from(NAMES)
TYPE = st.sampled_from(plans.TYPES)
GATE = st.sampled_from(plans.GATES)
ANSWER = st.sampled_from(["approve", "approve", "reject"])
PEOPLE = ["event", "pause", "resume", "cancel", "undo", "approve", "start", "replace"]
MOMENT = st.builds(
    Moment,
    st.integers(1, 9),
    st.sampled_from(["die", "die", "lose", "freeze", "freeze", "tick", *PEOPLE]),
    st.booleans(),
)
LIMITS = st.sampled_from([RunLimits(), RunLimits(), RunLimits(repository=2), RunLimits(1, 1)])


class PlatformMachine(RuleBasedStateMachine):
    """What people do, what machines do, and what must hold after each of it."""

    limits = RunLimits()
    platform: Platform

    def make_store(self, clock: FakeClock) -> Store:
        return InMemoryStore(clock, self.limits)

    @initialize(code=plans.CODE, limits=LIMITS, hibernate=st.sampled_from([False, False, True]))
    def it_begins(self, code: dict[str, Any], limits: RunLimits, hibernate: bool) -> None:
        self.limits = limits
        self.platform = Platform(self.make_store, limits=limits, hibernate=hibernate)
        self.platform.listen(self.meanwhile)
        self.told: dict[str, Told] = {}
        self.waiting: dict[str, int] = {}  # for their turn: id -> the last entry
        self.commits = 0
        self.sent = 0
        self.push(code)
        self.start("app")

    # --- helpers ---

    def push(self, code: dict[str, Any]) -> None:
        self.commits += 1
        self.platform.source.put(f"{self.commits:040x}", plans.source(code), ref=MAIN)

    def start(self, name: str, **what: Any) -> Run:
        return self.platform.start(name, **what)

    def pick(self, which: int) -> Run:
        runs = self.platform.listed()
        return runs[-1 - which % len(runs)]

    def asked(self, act: Callable[[], object], refusal: type[SluiceError] | None) -> None:
        """Somebody asks for something, and is told what the model says."""
        error = self.platform.refused(act)
        if refusal is None:
            holds(error is None, f"it was refused: {error!r}")
        else:
            holds(isinstance(error, refusal), f"{refusal.__name__} was due, not {error!r}")

    def model(self, run: Run) -> Told:
        told = self.told.setdefault(run.id, Told(run))
        told.hear(self.platform.store.runs.journal(run.id))
        return told

    def meanwhile(self, what: str, run_id: RunId | None) -> None:
        """What people do while a worker is in the middle of something. They look first."""
        if what == "start":
            if self.room:
                self.start(NAMES[self.sent % 2])
            return
        if run_id is None:
            return
        runs = self.platform.runs
        if what == "replace" and not run_id.startswith("run_"):
            self.replace(run_id)
            return
        acts: dict[str, Callable[[], object]] = {
            "event": lambda: runs.send_event(ADA, run_id, "go", self.payload()),
            "pause": lambda: runs.pause(ADA, run_id),
            "resume": lambda: runs.resume(ADA, run_id),
            "cancel": lambda: runs.cancel(ADA, run_id),
            "undo": lambda: runs.cancel(ADA, run_id, rollback=True),
            "approve": lambda: self.platform.gate(runs.parts.store.runs.get(run_id), "ship", what),
        }
        if what in acts:
            self.platform.refused(acts[what])

    def replace(self, run_id: RunId) -> None:
        """Give the id of a run that is being executed to a new one, which executes too."""
        platform = self.platform
        platform.refused(lambda: platform.runs.cancel(ADA, run_id))
        if platform.refused(lambda: platform.runs.delete(ADA, run_id)) is None:
            self.told.pop(run_id, None)
            self.start("app", id=run_id)
            platform.work(platform.process(), [Moment(4, "die", False)])

    def payload(self) -> dict[str, int]:
        self.sent += 1
        return {"n": self.sent}

    @property
    def room(self) -> bool:
        runs = self.platform.listed()
        live = sum(not run.state.terminal for run in runs)
        return live < LIVE_MAX and len(runs) < RUNS_MAX - 20

    # --- people ---

    @rule(code=plans.CODE)
    def somebody_pushes(self, code: dict[str, Any]) -> None:
        self.push(code)

    @precondition(lambda self: self.room)
    @rule(name=REPOSITORY, priority=st.sampled_from([0, 0, 0, 7]))
    def somebody_starts_a_run(self, name: str, priority: int) -> None:
        self.start(name, priority=priority)

    @precondition(lambda self: self.room)
    @rule(name=REPOSITORY, id=st.sampled_from(["one", "two"]))
    def somebody_starts_a_run_of_an_id(self, name: str, id: str) -> None:
        known = any(run.id == id for run in self.platform.listed())
        self.asked(lambda: self.start(name, id=id), RunExists if known else None)

    @precondition(lambda self: self.room)
    @rule(
        name=REPOSITORY,
        ids=st.lists(st.sampled_from(["one", "two", "six"]), min_size=1, max_size=4),
    )
    def somebody_starts_a_batch(self, name: str, ids: list[str]) -> None:
        known = {run.id for run in self.platform.listed()}
        what = [StartRun(pipeline="Main", id=id) for id in ids]
        made = self.platform.runs.start_many(ADA, "acme", name, what)
        holds(
            [run.id for run in made] == [id for id in dict.fromkeys(ids) if id not in known],
            "a batch starts what is new",
        )

    @rule(which=WHICH, type=TYPE)
    def somebody_sends_an_event(self, which: int, type: str) -> None:
        run = self.pick(which)
        refusal = Conflict if run.state.terminal else None
        self.asked(
            lambda: self.platform.runs.send_event(ADA, run.id, type, self.payload()), refusal
        )

    @rule(which=WHICH)
    def somebody_pauses(self, which: int) -> None:
        run = self.pick(which)
        refusal = Conflict if run.state.terminal else None
        self.asked(lambda: self.platform.runs.pause(ADA, run.id), refusal)

    @rule(which=WHICH)
    def somebody_resumes(self, which: int) -> None:
        run = self.pick(which)
        refusal = None if self.model(run).held and not run.state.terminal else Conflict
        self.asked(lambda: self.platform.runs.resume(ADA, run.id), refusal)

    @rule(which=WHICH, rollback=st.booleans())
    def somebody_cancels(self, which: int, rollback: bool) -> None:
        run = self.pick(which)
        refusal = Conflict if run.state.terminal else None
        self.asked(lambda: self.platform.runs.cancel(ADA, run.id, rollback=rollback), refusal)

    @rule(which=WHICH, name=GATE, answer=ANSWER)
    def somebody_answers_a_gate(self, which: int, name: str, answer: str) -> None:
        run = self.pick(which)
        step = self.model(run).steps.get(f"approval:{name}")
        refusal: type[SluiceError] | None = None
        shared = "shared" in self.model(run).entries[0].data
        if step is None:
            refusal = StepNotFound
        elif step.decisions or shared:
            return  # the first answer counts
        elif run.state.terminal or step.state != "open":
            refusal = Conflict
        elif run.state == "paused":
            return  # the time paused does not count
        elif step.due_ms is not None and step.due_ms <= self.platform.clock.now_ms():
            refusal = Conflict
        self.asked(lambda: self.platform.gate(run, name, answer), refusal)

    @precondition(lambda self: self.room)
    @rule(which=WHICH)
    def somebody_restarts(self, which: int) -> None:
        run = self.pick(which)
        if run.pipeline == "Main":
            refusal = None if run.state.terminal else Conflict
            self.asked(lambda: self.platform.runs.restart(ADA, run.id), refusal)

    @precondition(lambda self: self.room)
    @rule(which=WHICH, place=WHICH, newest=st.booleans())
    def somebody_restarts_from_a_step(self, which: int, place: int, newest: bool) -> None:
        run = self.pick(which)
        steps = [key for key in self.model(run).steps if "$" not in key]
        if run.pipeline != "Main" or not steps:
            return
        key = steps[place % len(steps)]
        refusal = None if run.state.terminal else Conflict
        self.asked(lambda: self.platform.restart_from(run, key), refusal)

    @rule(which=WHICH)
    def somebody_deletes(self, which: int) -> None:
        run = self.pick(which)
        self.asked(
            lambda: self.platform.runs.delete(ADA, run.id),
            None if self.is_over(run) else Conflict,
        )
        self.forget()

    def is_over(self, run: Run) -> bool:
        """Whether a run has ended, and nobody is about to wait for it."""
        link = self.platform.store.family.parent(run.id)
        parent = None if link is None else self.platform.find(link.kin.parent_id)
        if not run.state.terminal or link is None or parent is None or not link.kin.waits:
            return run.state.terminal
        return parent.state.terminal or link.kin.step in self.model(parent).steps

    @rule(which=st.lists(WHICH, min_size=1, max_size=4), name=REPOSITORY)
    def somebody_deletes_a_batch(self, which: list[int], name: str) -> None:
        runs = [self.pick(each) for each in which]
        gone: set[str] = set()
        wanted: list[type[RequestError] | None] = []
        for run in runs:
            if run.id in gone or run.repository_id != f"repo_{name}":
                wanted.append(RunNotFound)
            elif not self.is_over(run):
                wanted.append(Conflict)
            else:
                wanted.append(None)
                gone.add(run.id)
        found = self.platform.runs.delete_many(ADA, "acme", name, [*(run.id for run in runs), "!"])
        told = [None if one.problem is None else type(one.problem) for one in found]
        holds(told == [*wanted, InvalidRequest], f"each is told of: {told}, not {wanted}")
        self.forget()

    def forget(self) -> None:
        """The runs that have been deleted."""
        there = {run.id for run in self.platform.listed()}
        self.told = {id: told for id, told in self.told.items() if id in there}
        if not there:
            self.start("app")

    # --- machines ---

    @rule(which=st.integers(0, 2), moments=st.lists(MOMENT, max_size=3))
    def a_worker_works(self, which: int, moments: list[Moment]) -> None:
        platform = self.platform
        if not platform.work(platform.processes[which], moments):
            platform.processes[which] = platform.process()

    @rule()
    def a_worker_works_in_peace(self) -> None:
        self.platform.work(self.platform.processes[0])

    @rule(seconds=st.sampled_from([1, 6, 31, 65, 4000, 100_000]))
    def time_passes(self, seconds: int) -> None:
        self.platform.clock.advance(seconds)

    # --- what must hold ---

    @invariant()
    def every_journal_keeps_its_promises(self) -> None:
        if self.platform.broken:
            raise self.platform.broken[0]
        for run in self.platform.listed():
            told = self.model(run)
            told.check_row(run, self.platform.clock.now_ms())
            self.check_results(run, told)

    def check_results(self, run: Run, told: Told) -> None:
        """What is journaled was returned by that attempt of that step."""
        shared = told.entries[0].data.get("shared")
        for entry in told.entries:
            if entry.kind == "step_passed" and entry.key is not None and shared is None:
                key = str(entry.key)
                if key.startswith("do:") and "$" not in key:
                    returned = self.platform.returned[*identity(run), key, entry.attempt or 1]
                    holds(entry.data["value"] == returned, f"{key} returned what is journaled")

    @invariant()
    def groups_keep_their_limit_and_order(self) -> None:
        runs = [run for run in self.platform.listed() if run.place.group is not None]
        for name in NAMES:
            group = [run for run in runs if run.repository_id == f"repo_{name}"]
            live = [run for run in group if not run.state.terminal]
            begun = [run for run in live if run.started_ms is not None]
            holds(len(begun) <= max((run.place.limit for run in begun), default=0), "too many")
            for run in live:
                newer = {one.place.on_new for one in group if one.number > run.number}
                holds(OnNew.CANCEL_RUNNING not in newer, "a newer run replaces all")
                if run not in begun and not self.model(run).was_held:  # that one is set aside
                    holds(OnNew.CANCEL_QUEUED not in newer, "a newer run replaces the queued")
            self.check_turns(live)

    def check_turns(self, live: list[Run]) -> None:
        """Of those that waited for their turn, the first has got it."""
        waited = [run for run in live if self.waiting.get(run.id) == run.last_seq]
        for run in waited if self.waiting else ():
            ahead = [
                one
                for one in live
                if one.id in self.waiting
                and one.started_ms is not None
                and (-one.place.priority, one.number) > (-run.place.priority, run.number)
            ]
            holds(run.hold is not Hold.GROUP or not ahead, f"{ahead} went ahead of {run.id}")
        of = {run.repository_id for run in live}
        mine = {
            run.id: run.last_seq
            for run in live
            if run.hold is Hold.GROUP and run.state is RunState.QUEUED and not run.pause_requested
        }
        gone = {run.id for run in self.platform.listed() if run.repository_id in of}
        self.waiting = {id: n for id, n in self.waiting.items() if id not in gone} | mine

    @invariant()
    def no_more_runs_execute_than_may(self) -> None:
        slots = [run.repository_id for run in self.platform.listed() if run.slot]
        if self.limits.every:
            holds(len(slots) <= self.limits.every, "the limit of all repositories")
        for name in set(slots) if self.limits.repository else ():
            holds(slots.count(name) <= self.limits.repository, "the limit of a repository")

    # --- the end ---

    def teardown(self) -> None:
        if not hasattr(self, "platform"):
            return
        try:
            check_nobody_is_forgotten(self.platform.store, self.platform.clock.now_ms())
            self.let_alone()
            self.every_journal_keeps_its_promises()
        finally:
            self.platform.close()

    def let_alone(self) -> None:
        """Nothing fails any more, and people do what runs wait for: every one must end."""
        platform = self.platform
        last = platform.process()
        for _ in range(ROUNDS_MAX):
            platform.work(last)
            live = [run for run in platform.listed() if not run.state.terminal]
            if not live:
                return
            for run in live:
                self.help(run)
            due_ms = platform.store.runs.next_ready_ms()
            later_ms = 0 if due_ms is None else due_ms - platform.clock.now_ms()
            platform.clock.advance(max(1, later_ms / 1000 if later_ms < DAY_MS else 60))
        raise AssertionError(f"these never end: {[self.show(run) for run in live]}")

    def help(self, run: Run) -> None:
        runs = self.platform.runs
        if run.state == "paused" or run.pause_requested:
            self.platform.refused(lambda: runs.resume(ADA, run.id))
        for wait in run.waits:
            if wait.type is not None:
                self.platform.refused(partial(runs.send_event, ADA, run.id, wait.type, {"n": 0}))
            elif wait.kind == "approval":
                self.platform.refused(partial(self.platform.gate, run, wait.name, "approve"))

    def show(self, run: Run) -> Any:
        entries = self.platform.store.runs.journal(run.id)
        return (
            run.id,
            run.state,
            len(entries),
            [(e.kind.value, str(e.key or "")) for e in entries[-20:]],
        )


def empty(url: str) -> None:
    """Take all rows away."""
    names = sorted(set(METADATA.tables) - {"alembic_version"})
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE")


def played(examples: int, steps: int) -> settings:
    return settings(
        max_examples=round(examples * SCALE),
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def test_the_platform_keeps_its_promises() -> None:
    run_state_machine_as_test(PlatformMachine, settings=played(200, 50))


@pytest.mark.slow
def test_on_sqlite_too(tmp_path: Path) -> None:
    with closing(open_store(f"sqlite:///{tmp_path / 'empty.db'}", key=KEY)):
        pass  # the tables, once
    directories = (tmp_path / f"{number}" for number in count())

    class OnSqlite(PlatformMachine):
        def make_store(self, clock: FakeClock) -> Store:
            directory = next(directories)
            directory.mkdir()
            shutil.copy(tmp_path / "empty.db", directory / "sluice.db")
            url = f"sqlite:///{directory / 'sluice.db'}"
            return open_store(url, clock=clock, key=KEY, limits=self.limits)

    run_state_machine_as_test(OnSqlite, settings=played(8, 30))


@pytest.mark.slow
def test_on_postgresql_too(postgres: PostgresServer) -> None:
    with postgres.database() as url:

        class OnPostgres(PlatformMachine):
            def make_store(self, clock: FakeClock) -> Store:
                store = open_store(url, clock=clock, key=KEY, limits=self.limits)
                empty(url)
                return store

        run_state_machine_as_test(OnPostgres, settings=played(8, 30))
