"""A store that fails at any one call costs time, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from textwrap import dedent

import pytest

from ci_platform.commands import StartRun
from ci_platform.commands.approvals import Approvals
from ci_platform.commands.runs import Runs
from ci_platform.errors import Conflict, RunExists, RunNotFound, StoreUnavailable
from ci_platform.model import RunId
from ci_platform.ports import Store
from ci_platform.store import open_store
from ci_platform.testing import FakeClock, InMemoryStore, succeeded
from tests.contract.fault_stage import ADA, BOB, FAILS, LATE, LOSES, RUN, Fault, Play, Stage
from tests.wakers import check_nobody_is_forgotten

KEY = bytes(range(32))
MakeStore = Callable[[FakeClock], Store]


def pipeline(body: str, *, head: str = "") -> str:
    lines = dedent(body).strip("\n").replace("\n", "\n        ")
    return (
        "import asyncio\nfrom pipelines import *\n"
        f"{dedent(head)}\n\nclass Main(Pipeline):\n    async def run(self, event, step):\n"
        f"        {lines}\n"
    )


CHILD = """
class Child(Pipeline):
    async def run(self, event, step):
        await step.sleep("nap", "5 minutes")
        return await step.do("double", lambda: event.params * 2)
"""
GROUP = """
class Main(Pipeline):
    concurrency = Concurrency("deploy")

    async def run(self, event, step):
        await step.sleep("nap", "10 seconds")
        return await step.do("a", lambda: 1)
"""
PLAYS = {
    "steps": Play(
        pipeline(
            """
            a = await step.do("a", lambda: 1)
            b = await step.do("b", lambda: a + 1)
            await step.sleep("nap", "1 hour")
            return [a, b, await step.do("c", lambda: b + 1)]
            """
        )
    ),
    "commands": Play(
        pipeline(
            """
            one, two = await asyncio.gather(step.sh("one", "true"), step.sh("two", "true"))
            again = await step.sh("again", "flaky", retries=2)
            return [one.exit_code, two.exit_code, again.exit_code]
            """
        ),
        {"sh:again": (succeeded("no\n", exit_code=1), succeeded("yes\n"))},
    ),
    "waits": Play(
        pipeline(
            """
            first, second, gate = await asyncio.gather(
                step.wait_for_event("first", type="go", timeout="30 days"),
                step.wait_for_event("second", type="go", timeout="30 days"),
                step.approval("gate", timeout="30 days"),
            )
            third = await step.wait_for_event("third", type="stop", timeout="30 days")
            return [first.payload, second.payload, third.payload]
            """
        )
    ),
    "children": Play(
        pipeline(
            """
            one, two = await asyncio.gather(
                step.start("one", Child, 1), step.start("two", Child, 2)
            )
            return [one.output, two.output]
            """,
            head=CHILD,
        )
    ),
    "rollback": Play(
        pipeline(
            """
            a = await step.do("a", lambda: 1, rollback=lambda *given: None)
            await step.do("b", lambda: 2, rollback=lambda *given: None)
            await step.sh("ship", "false", retries=0)
            """
        ),
        {"sh:ship": (succeeded("broken\n", exit_code=2),)},
    ),
    "group": Play("from pipelines import *\n" + GROUP, runs=2),
}


def played(make: MakeStore, play: Play, fault: Fault) -> object:
    """How it ends with this fault."""
    clock = FakeClock()
    stage = Stage(make(clock), clock, fault, play)
    with closing(stage):
        for number in range(play.runs):
            stage.start(f"run_{number}")
        stage.play()
        return stage.outcome()


def compare(make: MakeStore, play: Play, how: str, *, step: int = 1) -> None:
    """Play it once without a fault, and once for each `step`-th call at which one may strike."""
    calm = Fault()
    expected = played(make, play, calm)
    assert calm.calls > 20
    for at in range(1, calm.calls + 1, step):
        fault = Fault(at, how)
        try:
            assert played(make, play, fault) == expected
        except Exception as error:
            error.add_note(f"the store {how} at call {at} of {calm.calls}: {fault.struck}")
            raise


@pytest.mark.parametrize("how", [FAILS, LOSES, LATE])
@pytest.mark.parametrize("play", PLAYS)
def test_a_fault_at_any_call_changes_nothing(play: str, how: str) -> None:
    compare(InMemoryStore, PLAYS[play], how)


# --- people's changes, asked for again until there is an answer --------------------------------

WAITING = """
await asyncio.gather(
    step.wait_for_event("first", type="go", timeout="30 days"),
    step.wait_for_event("second", type="go", timeout="30 days"),
    step.approval("gate", timeout="30 days"),
)
"""
NOT_AGAIN = (RunExists, RunNotFound, Conflict)  # how a repetition is told that it was done before
Act = Callable[[Runs, Approvals], object]
ACTS: dict[str, Act] = {
    "create": lambda runs, _: runs.start(ADA, "acme", "app", StartRun("Main", id="run_new")),
    "create many": lambda runs, _: runs.start_many(
        ADA, "acme", "app", [StartRun("Main", id=f"run_{n}") for n in "xyz"]
    ),
    "answer": lambda _, gates: gates.decide(BOB, RUN, "gate", decision="approve"),
    "pause": lambda runs, _: runs.pause(ADA, RUN),
    "resume": lambda runs, _: runs.resume(ADA, RunId("run_paused")),
    "cancel": lambda runs, _: runs.cancel(ADA, RUN),
    "delete": lambda runs, _: runs.delete(ADA, RunId("run_over")),
}


def asked(make: MakeStore, act: Act, fault: Fault) -> object:
    """What has become of three runs, one that waits, one paused and one that has ended."""
    clock = FakeClock()
    stage = Stage(make(clock), clock, fault, Play(pipeline(WAITING)))
    with closing(stage):
        for name in (RUN, "run_paused", "run_over"):
            stage.start(name)
        stage.work(stage.rival)
        people = Runs(stage.people)
        people.pause(ADA, RunId("run_paused"))
        people.cancel(ADA, RunId("run_over"))
        parts = stage.parts(stage.faulty)
        for turn in range(3):
            try:
                act(Runs(parts), Approvals(parts))
                break
            except StoreUnavailable:
                continue
            except NOT_AGAIN:
                assert turn > 0  # the first time was told an error
                break
        check_nobody_is_forgotten(stage.store, clock.now_ms())
        return [
            (
                run.id,
                run.state.value,
                [str(entry.kind) for entry in stage.store.runs.journal(run.id)],
            )
            for run in stage.listed()
        ]


@pytest.mark.parametrize("how", [FAILS, LOSES])
@pytest.mark.parametrize("what", ACTS)
def test_who_asks_again_after_a_fault_doubles_nothing(what: str, how: str) -> None:
    calm = Fault()
    expected = asked(InMemoryStore, ACTS[what], calm)
    assert calm.calls >= 2
    for at in range(1, calm.calls + 1):
        fault = Fault(at, how)
        assert asked(InMemoryStore, ACTS[what], fault) == expected, fault


# --- on a database -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [FAILS, LOSES, LATE])
def test_it_changes_nothing_on_sqlite_either(how: str, tmp_path: Path) -> None:
    with closing(open_store(f"sqlite:///{tmp_path / 'empty.db'}", key=KEY)):
        pass  # the tables, once
    directories = (tmp_path / f"{number}" for number in count())

    def make(clock: FakeClock) -> Store:
        directory = next(directories)
        directory.mkdir()
        shutil.copy(tmp_path / "empty.db", directory / "sluice.db")
        return open_store(f"sqlite:///{directory / 'sluice.db'}", clock=clock, key=KEY)

    for name in ("commands", "children"):
        compare(make, PLAYS[name], how, step=23)
