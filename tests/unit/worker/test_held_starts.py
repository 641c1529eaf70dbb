"""Steps that a pause kept from starting while their code goes on, since a command of it executes.

They belong into the journal where the code asked for them, or a replay would differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from ci_platform.engine import Child
from ci_platform.model import EntryKind, Json, RunId
from tests.unit.worker.world import EAGER, World, pipeline

Acts: TypeAlias = dict[str, Callable[[World, RunId], None]]

BRANCHES = """
async def one():
    try:
        await step.do("fails", lambda: 1 / 0, retries=0)
    except ZeroDivisionError:
        return await step.do("after", lambda: 1)

async def two():
    await step.wait_for_event("go", type="go")
    return await step.do("held", lambda: 2)

return (await asyncio.gather(one(), two(), step.sh("slow", "true")))[:2]
"""
GIVEN_UP = """
async def held():
    await step.wait_for_event("go", type="go")
    await step.do("held", lambda: 2)

async def group():
    async with asyncio.TaskGroup() as group:
        group.create_task(step.do("fails", lambda: 1 / 0, retries=0))
        group.create_task(held())

await asyncio.gather(group(), step.sh("slow", "true"), return_exceptions=True)
return [await step.do("after", lambda: 1), 2]
"""
LEFT = GIVEN_UP.replace(
    'await step.do("held", lambda: 2)',
    'async with step.service("held", "true"): await step.sh("inside", "true")',
)


def send(world: World, run_id: RunId) -> None:
    world.send(run_id, "go")


# The event is there when the wait begins, and so `held` is asked for in the breath in which `fails`
# fails: one append, before which the pause comes.
PAUSED: Acts = {
    "step_started do:fails": send,
    "step_failed do:fails": lambda world, run_id: world.pause(run_id),
}
RESUMED: Acts = PAUSED | {"run_suspended None": lambda world, run_id: world.resume(run_id)}


def meddled(code: str, acts: Acts) -> tuple[World, RunId]:
    """A run that has ended, whose worker was too late with some appends: with those that hold a
    certain entry, since people did something."""
    world = World(settings=EAGER)
    append, left = world.store.runs.append, dict(acts)

    def meddling(asked: Json) -> Json:
        for draft in asked.drafts:
            act = left.pop(f"{draft.kind} {draft.key}", None)
            if act is not None:
                act(world, asked.run_id)
        return append(asked)

    world.store.runs.append = meddling  # type: ignore[assignment, method-assign]
    run_id = world.start(pipeline(code))
    world.work(world.another("w2", start_child=lambda *asked: Child("run_child", 7)))
    assert not left
    return world, run_id


def started(world: World, run_id: RunId) -> list[str]:
    entries = world.journal(run_id)
    return [str(each.key) for each in entries if each.kind is EntryKind.STEP_STARTED]


@pytest.mark.parametrize("acts", [PAUSED, RESUMED], ids=["paused", "resumed at once"])
@pytest.mark.parametrize(
    ("code", "last"),
    [
        (BRANCHES, ["do:held", "do:after"]),
        (GIVEN_UP, ["wait:go", "do:after"]),
        (LEFT, ["wait:go", "service:held", "do:after"]),
    ],
    ids=["wanted", "given up", "left"],
)
def test_what_a_pause_held_back_starts_where_the_code_asked_for_it(
    code: str, last: list[str], acts: Acts
) -> None:
    world, run_id = meddled(code, acts)
    if acts is PAUSED:
        world.resume(run_id)
        world.work()
    run = world.run(run_id)
    assert (run.state, run.reason, run.output) == ("passed", None, [1, 2]), run.error
    assert started(world, run_id)[-len(last) :] == last


def test_a_pause_that_ends_just_before_a_child_begins_does_not_leave_its_step_without_one() -> None:
    code = BRANCHES.replace(
        'await step.do("after", lambda: 1)', '(await step.start("after", "CI", wait=False)).number'
    )
    world, run_id = meddled(code, RESUMED)
    run = world.run(run_id)
    assert (run.state, run.output) == ("passed", [7, 2]), run.error
