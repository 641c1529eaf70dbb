"""The work for a step does not grow with the steps before it. Counted in calls, so that it comes
out the same on every machine; `python -m bench growth` measures it on real parts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests.unit.worker.world import EAGER, World, pipeline

FEW, MANY = 60, 480
SLACK = 1.2  # what may be more for each

ONE_BY_ONE = """
for n in range(event.params):
    await step.do("one", lambda: n)
await step.wait_for_event("go", type="go")
await step.do("after", lambda: 1)
"""
TOGETHER = """
await asyncio.gather(*(step.do("one", lambda: n) for n in range(event.params)))
await step.wait_for_event("go", type="go")
await step.do("after", lambda: 1)
"""
SLEEPS = """
await asyncio.gather(*(step.sleep(f"one {n}", 3600) for n in range(event.params)))
await step.wait_for_event("go", type="go")
await step.do("after", lambda: 1)
"""


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, ours and others', those in C too."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def work_of(code: str, steps: int) -> tuple[int, int]:
    """Calls until a run with so many steps sleeps, and those to bring it to its end."""
    world = World(settings=EAGER)
    run_id = world.start(pipeline(code), params=steps)

    def until_it_waits() -> None:
        world.work()
        world.later(3600)

    first = calls(until_it_waits)
    assert world.state(run_id) == "waiting"
    world.send(run_id, "go")
    resumed = calls(world.work)
    assert world.state(run_id) == "passed"
    return first, resumed


@pytest.mark.parametrize("code", [ONE_BY_ONE, TOGETHER, SLEEPS], ids=["row", "together", "sleeps"])
def test_a_step_costs_the_same_however_many_there_are(code: str) -> None:
    work_of(code, 2)  # what is imported and cached only once
    few, many = work_of(code, FEW), work_of(code, MANY)
    for fewer, more in zip(few, many, strict=True):
        assert more <= fewer * (MANY / FEW) * SLACK, (few, many)
