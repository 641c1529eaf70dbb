"""What asyncio keeps in sets: code that goes through them does so in one order, however often it is
replayed and wherever its objects lie in memory.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipelines import Event, Pipeline, Step
from pipelines.testing import PipelineTest

MANY = 9
REPEATS = 10
BLOCK_BYTES_MAX = 700
_HELD: list[bytearray] = []


async def tidy(step: Step, number: int) -> None:
    """Wait for what never comes, and clean up with a step."""
    _HELD.extend(bytearray(random.SystemRandom().randrange(BLOCK_BYTES_MAX)) for _ in range(9))
    try:
        await step.wait_for_event(f"wait {number}", type="never")
    finally:
        await step.do(f"tidy {number}", lambda: number)


async def in_a_group(step: Step) -> None:
    async def fail() -> None:
        await step.sleep("a while", 1)
        raise ZeroDivisionError

    async with asyncio.TaskGroup() as group:
        for number in range(MANY):
            group.create_task(tidy(step, number))
        group.create_task(fail())


async def as_late_ones(step: Step) -> None:
    tasks = [asyncio.create_task(tidy(step, number)) for number in range(MANY)]
    _, late = await asyncio.wait(tasks, timeout=1)
    for each in late:
        each.cancel()
        await asyncio.wait([each])


async def behind_shields(step: Step) -> None:
    shields = {asyncio.shield(tidy(step, number)): number for number in range(MANY)}
    _, late = await asyncio.wait(shields, timeout=1)
    for each in late:
        await step.do(f"late {shields[each]}", lambda: None)


async def as_completed(step: Step) -> None:
    for each in asyncio.as_completed([step.do(f"do {n}", lambda: None) for n in range(MANY)]):
        await each
        await step.sleep("between", 1)


@pytest.mark.parametrize("code", [in_a_group, as_late_ones, behind_shields, as_completed])
def test_what_lies_in_a_set_has_the_order_in_which_it_was_made(
    code: Callable[[Step], Awaitable[None]],
) -> None:
    class Careful(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            try:
                await code(step)
            except* ZeroDivisionError:
                await step.sleep("a while longer", 1)

    orders = set()
    for _ in range(REPEATS):
        run = PipelineTest(Careful, hibernate="always").run()
        assert run.state in ("passed", "waiting"), run.error
        orders.add(tuple(run.steps))
    assert len(orders) == 1
    numbers = [name.split()[-1] for name in next(iter(orders)) if name.startswith("do:")]
    assert numbers == sorted(numbers)
    _HELD.clear()
