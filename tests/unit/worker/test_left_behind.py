"""What the code left behind when its run failed stays where it is while the run is undone."""

from __future__ import annotations

from tests.unit.worker.world import World

FAILING = """
def no():
    raise ValueError("no")
"""


def test_a_step_that_ended_with_the_failure_does_not_let_its_code_go_on_in_the_rollback() -> None:
    world = World()
    run = world.play(
        FAILING
        + """
async def beside():
    await step.do("b", lambda: 2, rollback=lambda output: output)
    await step.wait_for_event("more", type="more")

await asyncio.gather(step.do("a", no, retries=0), beside())
"""
    )
    assert run.state == "failed"
    assert world.journal(run.id)[-1].data["rollback"]["outcome"] == "complete"
    assert world.steps(run.id)["do:$rollback:do:b"] == "passed"


def test_a_timer_that_fired_with_the_failure_ends_no_wait_in_the_rollback() -> None:
    world = World()
    run = world.play(
        """
async def fails():
    await step.sleep("n", 60)
    raise ValueError("no")

async def beside():
    async with asyncio.timeout(60):
        await step.wait_for_event("more", type="more")

await step.do("a", lambda: 1, rollback=lambda output: output)
await asyncio.gather(fails(), beside())
"""
    )
    world.later(60)
    run = world.run(run.id)
    assert (run.state, run.error and run.error.type) == ("failed", "ValueError")
    assert world.journal(run.id)[-1].data["rollback"]["outcome"] == "complete"
