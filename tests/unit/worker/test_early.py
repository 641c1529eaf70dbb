"""Whole runs whose steps complete early, while others write: live and in replay the code sees one
and the same order and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ci_platform.engine import Limits
from ci_platform.model import EntryKind, Json, RunId, RunState
from ci_platform.ports import Append, Appended, RunStore
from ci_platform.sandbox.wiring import entries_json
from ci_platform.testing import FakeClock, InMemoryStore
from ci_platform.worker import Settings
from pipelines import Step
from pipelines import guest as guest_module
from tests.unit.pipelines import replay_world
from tests.unit.pipelines.test_random_pipelines import PLAN, perform
from tests.unit.worker.world import EAGER, World, pipeline

TURNS_MAX = 200
Trail = list[tuple[str, int]]


class Observer(Trail):
    """A trail that notes the time with each word. One for each activation."""

    def append(self, word: Any) -> None:
        super().append((word, round(asyncio.get_running_loop().time() * 1000)))


TRAILS: list[Observer] = []
PLANNED = pipeline(
    """
    trail = Observer()
    TRAILS.append(trail)
    await perform(event.params, step, trail)
    trail.append("end")
    """,
    head="from tests.unit.worker.test_early import TRAILS, Observer, perform",
)


class Meddled:
    """Runs, whose every append by a worker somebody else comes before."""

    def __init__(self, inner: RunStore, meddle: Callable[[], None]) -> None:
        self._inner = inner
        self._meddle = meddle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def append(self, append: Append) -> Appended:
        if append.fence is not None:
            self._meddle()
        return self._inner.append(append)


class MeddledStore(InMemoryStore):
    meddle: Callable[[], None] = staticmethod(lambda: None)

    @property
    def runs(self) -> Any:
        return Meddled(super().runs, lambda: self.meddle())


def meddled(world: World, meddle: Callable[[], None]) -> None:
    assert isinstance(world.store, MeddledStore)
    world.store.meddle = meddle


def planned(
    plan: Json, words: Sequence[str], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[World, RunId]:
    """Run a plan to its end. `words`: what others do before each append of the worker."""
    TRAILS.clear()
    clock = FakeClock()
    monkeypatch.setattr(guest_module, "real_monotonic", lambda: clock.now_ms() / 1000)
    given = Settings(lease_ms=10_000_000, **options)
    world = World(clock=clock, settings=given, make_store=MeddledStore)
    left = list(words)

    def meddle() -> None:
        word = left.pop(0) if left else ""
        if word in ("go", "noise"):
            clock.advance(0.5)
            world.send(run_id, word)
        elif word == "pause" and world.state(run_id) is RunState.RUNNING:
            world.pause(run_id)
        elif word == "time":
            clock.advance(1)

    run_id = world.start(PLANNED, params=plan)
    meddled(world, meddle)
    end(world, run_id)
    return world, run_id


def end(world: World, run_id: RunId) -> None:
    for _ in range(TURNS_MAX):
        world.work()
        state = world.state(run_id)
        if state.terminal:
            return
        if state is RunState.PAUSED:
            world.resume(run_id)
        else:
            world.clock.advance(1)
            world.send(run_id, "go")
    raise AssertionError(f"the run is {world.run(run_id)}")


def replayed(world: World, run_id: RunId, plan: Json) -> Trail:
    """What the code sees when the whole journal is replayed once more."""
    journal = replay_world.Journal()
    journal.entries = json.loads(entries_json(world.journal(run_id)))
    trail = Observer()

    async def code(step: Step) -> None:
        await perform(plan, step, trail)  # type: ignore[arg-type]
        trail.append("end")

    assert replay_world.World(journal).run(code) == {"returned": None}
    return list(trail)


WORDS = st.lists(st.sampled_from(["", "", "go", "noise", "pause", "time"]), max_size=30)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(plan=("gather", ["event", "do"]), words=["", "go"])
@given(plan=PLAN, words=WORDS)
def test_replays_see_what_was_seen_live(
    plan: Json, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({}, {"always_hibernate": True}):
        world, run_id = planned(plan, words, monkeypatch, **options)
        assert world.state(run_id) == "passed", world.run(run_id).error
        whole = replayed(world, run_id, plan)
        for trail in TRAILS:
            assert list(trail) == whole[: len(trail)]


BODIES = st.recursive(
    st.just("do"),
    lambda inner: st.tuples(
        st.sampled_from(["sequence", "gather", "group"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=BODIES)
def test_the_order_is_the_same_with_and_without_early_completions(
    plan: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for options in ({}, {"always_hibernate": True}):
        world, run_id = planned(plan, (), monkeypatch, **options)
        seen.append(replayed(world, run_id, plan))
    assert seen[0] == seen[1]


def test_three_steps_take_four_appends() -> None:
    world = World(make_store=MeddledStore, settings=EAGER)
    appends: list[int] = []
    meddled(world, lambda: appends.append(1))
    world.play(
        """
        a = await step.do("a", lambda: 1)
        b = await step.do("b", lambda: a + 1)
        return await step.do("c", lambda: b + 1)
        """
    )
    assert len(appends) == 4


def test_a_step_and_a_sleep_behind_it_suspend_in_one_append() -> None:
    world = World(make_store=MeddledStore, settings=EAGER)
    appends: list[int] = []
    meddled(world, lambda: appends.append(1))
    run = world.play('await step.do("a", lambda: 1)\nawait step.sleep("nap", 60)')
    assert len(appends) == 2
    assert world.kinds(run.id)[-3:] == ["step_passed", "step_started", "run_suspended"]


def test_a_pause_during_a_body_keeps_its_end_and_starts_nothing() -> None:
    world = World(make_store=MeddledStore)
    paused: list[bool] = []

    def pause() -> None:
        if not paused and "do:a" in world.steps(run_id):
            paused.append(True)
            world.pause(run_id)

    run_id = world.start(
        pipeline('await step.do("a", lambda: 1)\nreturn await step.do("b", lambda: 2)')
    )
    meddled(world, pause)
    world.work()
    assert world.state(run_id) == "paused"
    assert world.steps(run_id) == {"do:a": "passed"}
    world.resume(run_id)
    world.work()
    assert world.run(run_id).output == 2


def test_a_pause_during_the_last_body_takes_hold_before_the_end() -> None:
    world = World(make_store=MeddledStore)
    paused: list[bool] = []

    def pause() -> None:
        if not paused and "do:a" in world.steps(run_id):
            paused.append(True)
            world.pause(run_id)

    run_id = world.start(pipeline('return await step.do("a", lambda: 1)'))
    meddled(world, pause)
    world.work()
    assert world.state(run_id) == "paused"
    assert world.steps(run_id) == {"do:a": "passed"}
    world.resume(run_id)
    world.work()
    assert world.run(run_id).output == 1


def test_a_step_that_cannot_start_does_not_take_back_the_end_of_the_one_before() -> None:
    world = World()
    run = world.play(
        """
        await step.do("a", lambda: 1)
        await step.sleep_until("far", 32503680000)
        """
    )
    assert (run.state, run.reason) == ("failed", "limit")
    assert world.steps(run.id) == {"do:a": "passed"}


def test_a_result_that_the_host_refuses_fails_the_run_that_went_on_with_it() -> None:
    world = World(settings=Settings(limits=Limits(value_bytes=500)))
    run = world.play('await step.do("a", lambda: "x" * 600)\nawait step.do("b", lambda: 1)')
    assert (run.state, run.reason) == ("failed", "limit")
    assert world.steps(run.id) == {"do:a": "cancelled"}
    assert EntryKind.STEP_FAILED not in world.kinds(run.id)


def test_an_error_behind_a_step_is_journaled_with_its_end() -> None:
    world = World(settings=EAGER)
    run = world.play('await step.do("a", lambda: 1)\nraise ValueError("no")')
    assert run.state == "failed"
    assert world.kinds(run.id)[-2:] == ["step_passed", "run_failed"]
