"""Steps that complete before the journal holds their end: when they may, and what the code sees."""

from __future__ import annotations

import asyncio
from typing import Any

from pipelines import Step
from tests.unit.pipelines.replay_world import START_MS, Journal, World


def now_ms() -> int:
    return round(asyncio.get_running_loop().time() * 1000)


def test_the_end_of_a_step_travels_with_the_start_of_the_next() -> None:
    async def code(step: Step) -> Any:
        a = await step.do("a", lambda: 1)
        b = await step.do("b", lambda: a + 1)
        return await step.do("c", lambda: b + 1)

    world = World(obliging=True)
    assert world.run(code) == {"returned": 3}
    assert world.said == [
        ["start do:a"],
        ["finish do:a = 1", "start do:b"],
        ["finish do:b = 2", "start do:c"],
        ["finish do:c = 3"],
    ]


def test_a_body_runs_only_once_the_journal_holds_what_came_before() -> None:
    held: list[list[str]] = []

    async def code(step: Step) -> Any:
        def look() -> None:
            held.append([entry["kind"] for entry in world.journal.entries[2:]])

        await step.do("a", look)
        await step.do("b", look)

    world = World(obliging=True)
    world.run(code)
    assert held == [["step_started"], ["step_started", "step_passed", "step_started"]]


def test_steps_that_end_together_complete_early_in_the_order_of_the_journal() -> None:
    order: list[str] = []

    async def one(step: Step, name: str) -> None:
        await step.do(name, lambda: 1)
        order.append(name)
        await step.do(f"after {name}", lambda: 1)

    async def code(step: Step) -> Any:
        await asyncio.gather(one(step, "a"), one(step, "b"))

    world = World(obliging=True)
    world.run(code)
    live, order[:] = list(order), []
    assert world.said[1] == [
        "finish do:a = 1",
        "finish do:b = 1",
        "start do:after a",
        "start do:after b",
    ]
    assert World(world.journal).run(code) == {"returned": None}
    assert order == live == ["a", "b"]


def test_nothing_completes_early_beside_a_step_that_may_end_at_any_moment() -> None:
    async def code(step: Step) -> Any:
        await asyncio.gather(step.wait_for_event("go", type="go"), step.do("a", lambda: 1))

    world = World(obliging=True)
    world.run(code)
    assert world.said[1] == ["finish do:a = 1"]
    assert "early_ms" not in world.commands[-1]


def test_nothing_completes_early_behind_what_is_asked_for_before_it() -> None:
    """The start would come first in the journal, and might complete there at once."""

    async def code(step: Step) -> Any:
        async def wait() -> None:
            await asyncio.sleep(0)
            await step.wait_for_event("go", type="go")

        async def body() -> int:
            started.set()
            for _ in range(3):
                await asyncio.sleep(0)
            return 1

        async def beside() -> None:
            await started.wait()
            await step.wait_for_event("go", type="go")

        started = asyncio.Event()
        await asyncio.gather(step.do("a", body), beside())

    world = World(obliging=True)
    world.run(code)
    assert world.said[1] == ["start wait:go", "finish do:a = 1"]
    assert "early_ms" not in world.commands[-1]


def test_an_error_does_not_complete_early_for_the_host_decides_on_retries() -> None:
    async def code(step: Step) -> Any:
        try:
            await step.do("a", lambda: 1 / 0)
        except ZeroDivisionError:
            return "caught"

    world = World(obliging=True)
    assert world.run(code) == {"returned": "caught"}
    assert world.said[1] == ["finish do:a ! ZeroDivisionError"]


def test_the_clock_tells_a_replay_what_it_told_the_code_live() -> None:
    seen: list[int] = []

    async def code(step: Step) -> Any:
        seen.append(now_ms())
        await step.do("slow", lambda: asyncio.sleep(7))
        seen.append(now_ms())
        await step.do("next", lambda: 1)
        seen.append(now_ms())

    def event_first(journal: Journal) -> None:
        """Somebody else writes before the step's end is journaled."""
        journal.add("event_received", type="go")
        finish = world.commands[-2]
        journal.add("step_passed", "do:slow", 1, value=None, early_ms=finish["early_ms"])
        journal.started("do:next")

    world = World(
        None,
        lambda journal: journal.started("do:slow"),
        event_first,
        lambda journal: journal.add("step_passed", "do:next", 1, value=1),
    )
    assert world.run(code) == {"returned": None}
    live, seen[:] = list(seen), []
    assert live[0] == START_MS + 1000
    assert live[1] == START_MS + 2000 + 7000, "the start of the attempt, and what it took"
    world.journal.entries[-1]["data"]["early_ms"] = live[2]
    assert World(world.journal).run(code) == {"returned": None}
    assert seen == live


def test_code_that_then_waits_for_nothing_fails_and_tells_how_its_steps_ended() -> None:
    async def code(step: Step) -> Any:
        await step.do("a", lambda: 1)
        await asyncio.Event().wait()

    world = World(obliging=True)
    assert world.run(code)["raised"]["type"] == "NothingToWaitFor"
    assert world.said == [["start do:a"], ["finish do:a = 1"]]


def test_an_error_of_the_code_comes_with_how_its_steps_ended() -> None:
    async def code(step: Step) -> Any:
        await step.do("a", lambda: 1)
        raise SystemExit("enough")

    world = World(obliging=True)
    assert world.run(code)["raised"]["type"] == "SystemExit"
    assert world.said[-1] == ["finish do:a = 1"]


def test_hibernating_at_every_await_completes_nothing_early() -> None:
    async def code(step: Step) -> Any:
        await step.do("a", lambda: 1)
        await step.do("b", lambda: 1)

    world = World(obliging=True, always_hibernate=True)
    assert world.run(code) == {"suspended": True}
    assert world.said == [["start do:a"], ["finish do:a = 1"]]


def test_newer_code_completes_nothing_early_while_steps_of_the_journal_are_left() -> None:
    async def code(step: Step) -> Any:
        await step.do("new", lambda: 1)
        await step.do("old", lambda: 2)

    journal = Journal().started("do:old").passed("do:old", 2)
    world = World(
        journal,
        lambda journal: journal.started("do:new"),
        lambda journal: journal.passed("do:new", 1),
        strict=False,
    )
    assert world.run(code) == {"returned": None}
    assert world.said == [["diverge do:new inserted", "start do:new"], ["finish do:new = 1"]]


def test_what_was_printed_behind_an_early_completion_is_not_printed_again() -> None:
    async def code(step: Step) -> Any:
        await step.do("a", lambda: 1)
        live.append(step._replay.live)
        await step.do("b", lambda: 1)
        live.append(step._replay.live)

    live: list[bool] = []
    journal = Journal().started("do:a")
    journal.add("step_passed", "do:a", 1, value=1, early_ms=START_MS + 2000)
    journal.add("run_paused").add("run_resumed").add("run_claimed")
    World(journal, obliging=True).run(code)
    assert live == [False, True]
