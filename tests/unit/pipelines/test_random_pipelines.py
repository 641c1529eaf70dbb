"""Random pipelines: every prefix of the journal they wrote replays, strictly, to the same end."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import Event, Pipeline, Step
from pipelines.replay import Replay
from pipelines.testing import PipelineTest
from tests.unit.pipelines.replay_world import Journal, World

# A plan is a tree: leaves are steps, nodes run their parts in sequence, together, or with a limit.
LEAF = st.sampled_from(["do", "fail", "sh", "sleep", "pause", "event"])
PLAN = st.recursive(
    LEAF,
    lambda inner: st.tuples(
        st.sampled_from(["sequence", "gather", "group", "timeout", "race"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


async def perform(plan: Any, step: Step, trail: list[str]) -> None:
    if isinstance(plan, str):
        await leaf(plan, step)
        trail.append(plan)
        return
    how, parts = plan
    if how == "sequence":
        for part in parts:
            await perform(part, step, trail)
    elif how == "gather":
        await asyncio.gather(*(perform(part, step, trail) for part in parts))
    elif how == "group":
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(perform(part, step, trail))
    elif how == "timeout":
        try:
            async with asyncio.timeout(5):
                for part in parts:
                    await perform(part, step, trail)
        except TimeoutError:
            trail.append("too late")
    else:
        tasks = [asyncio.ensure_future(perform(part, step, trail)) for part in parts]
        _, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        await asyncio.wait(tasks)


async def leaf(plan: str, step: Step) -> None:
    if plan == "do":
        await step.do("do", lambda: 1)
    elif plan == "fail":
        try:
            await step.do("fail", lambda: 1 / 0, retries=1)
        except ZeroDivisionError:
            return
    elif plan == "sh":
        await step.sh("sh", "true")
    elif plan == "sleep":
        await step.sleep("sleep", 3)
    elif plan == "pause":
        await asyncio.sleep(2)
    else:
        await step.wait_for_event("event", type="go")


def pipeline_of(plan: Any) -> type[Pipeline]:
    class Planned(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            trail: list[str] = []
            await perform(plan, step, trail)
            return trail

    return Planned


def planned(plan: Any, hibernate: str) -> PipelineTest:
    test = PipelineTest(pipeline_of(plan), hibernate=hibernate)
    test.mock_command("sh", duration=1)
    for _ in range(8):
        test.send_event("go")
    return test


@settings(max_examples=150, deadline=None)
@example(("race", ["do", ("sequence", ["event", "do"])]))
@given(PLAN)
def test_both_ways_of_hibernating_come_to_the_same_end(plan: Any) -> None:
    run, always = planned(plan, "auto").run(), planned(plan, "always").run()
    assert run.state == always.state == "passed", (run.error, always.error)
    assert run.output == always.output
    # What is asked for and given up before the host hears of it never was. With every sandbox
    # dropped at an await, the host hears of more.
    assert list(run.steps) == [name for name in always.steps if name in run.steps]
    more = [step.state for name, step in always.steps.items() if name not in run.steps]
    assert set(more) <= {"cancelled"}


@settings(max_examples=100, deadline=None)
@given(PLAN)
def test_every_prefix_of_a_journal_replays(plan: Any) -> None:
    run = planned(plan, "auto").run()
    journal = list(run.journal)
    for length in range(2, len(journal) + 1):
        written = Journal()
        written.entries = journal[:length]
        world = World(written)

        async def code(step: Step) -> Any:
            trail: list[str] = []
            await perform(plan, step, trail)
            return trail

        answer = world.run(code)
        assert "mismatch" not in answer, (length, answer)
        if length == len(journal):
            assert answer == {"returned": run.output}


def test_a_replay_of_nothing_but_its_creation_begins_the_code() -> None:
    world = World(Journal(claimed=False))

    async def code(step: Step) -> str:
        return "begun"

    assert world.run(code) == {"returned": "begun"}
    assert isinstance(world.replay, Replay)
