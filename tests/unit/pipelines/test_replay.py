"""The replay: what is asked of the host, in which order, and what differs from the journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipelines import CommandFailed, Retry, Step, StepContext, StepFailed
from pipelines.testing import PipelineTest  # noqa: F401  # its import must not need a sandbox
from tests.unit.pipelines.replay_world import START_MS, Journal, World, key


async def three(step: Step) -> Any:
    a = await step.do("a", lambda: 1)
    b, c = await asyncio.gather(step.do("b", lambda: a + 1), step.sh("c", "true"))
    return [a, b, c.exit_code]


RESULT = {"exit_code": 0, "outputs": {}, "output_tail": "", "layer": None, "duration_ms": 5}


def test_a_first_activation_asks_runs_bodies_and_returns() -> None:
    world = World(
        None,
        lambda journal: journal.started("do:a"),
        lambda journal: journal.passed("do:a", 1).started("do:b").started("sh:c"),
        lambda journal: journal.passed("do:b", 2).passed("sh:c", RESULT),
    )
    assert world.run(three) == {"returned": [1, 2, 0]}
    assert world.said == [
        ["start do:a"],
        ["finish do:a = 1", "start do:b", "start sh:c"],
        ["finish do:b = 2"],
    ]


def test_a_whole_journal_replays_without_asking_anything() -> None:
    journal = Journal().started("do:a").passed("do:a", 1).started("do:b").started("sh:c")
    journal.passed("sh:c", RESULT).passed("do:b", 2)
    world = World(journal)
    assert world.run(three) == {"returned": [1, 2, 0]}
    assert world.said == []


def test_a_body_runs_only_if_the_journal_does_not_hold_how_its_attempt_ended() -> None:
    runs: list[str] = []

    async def code(step: Step) -> Any:
        def body(ctx: Any) -> str:
            runs.append(f"{ctx.name} {ctx.attempt}")
            return "done"

        return await step.do("x", body)

    lost = Journal().started("do:x").add("attempt_failed", "do:x", 1)
    World(lost).run(code)
    assert runs == []
    world = World(lost.add("attempt_started", "do:x", 2), obliging=True)
    assert world.run(code) == {"returned": "done"}
    assert runs == ["x 2"]
    assert world.commands[0]["attempt"] == 2


def test_completions_are_delivered_one_at_a_time() -> None:
    order: list[str] = []

    async def code(step: Step) -> Any:
        async def follow(name: str) -> None:
            await step.sleep(name, 1)
            order.append(f"{name} woke")
            await step.sleep(f"{name} again", 1)

        await asyncio.gather(follow("x"), follow("y"))

    def wake_both(journal: Journal) -> None:
        journal.passed("sleep:y").passed("sleep:x")

    world = World(None, lambda journal: journal.started("sleep:x").started("sleep:y"), wake_both)
    assert world.run(code) == {"suspended": True}
    assert order == ["y woke", "x woke"]
    assert world.said[-1] == ["start sleep:y again", "start sleep:x again"]


@pytest.mark.parametrize(
    ("journal", "difference"),
    [
        (Journal().started("do:other"), {"seq": 3, "expected": "do:other", "got": "do:a"}),
        (Journal().started("sh:a"), {"seq": 3, "expected": "sh:a", "got": "do:a"}),
        (
            Journal().started("do:a").passed("do:a", 1).started("sh:c").started("do:b"),
            {"seq": 5, "expected": "sh:c", "got": "do:b"},
        ),
        (
            Journal().started("do:a").started("do:a#2"),
            {"seq": 4, "expected": "do:a#2", "got": "nothing: it waits"},
        ),
    ],
)
def test_the_first_difference_is_a_mismatch(journal: Journal, difference: Any) -> None:
    world = World(journal)
    assert world.run(three) == {"mismatch": difference}
    assert world.said == []


def test_code_that_ends_before_its_journal_does_is_a_mismatch() -> None:
    async def shorter(step: Step) -> Any:
        return await step.do("a", lambda: 1)

    journal = Journal().started("do:a").passed("do:a", 1).started("do:b")
    assert World(journal).run(shorter) == {
        "mismatch": {"seq": 5, "expected": "do:b", "got": "the end of run()"}
    }


def test_a_start_that_the_code_asked_for_as_it_ended_is_no_mismatch() -> None:
    async def leaves_one_behind(step: Step) -> Any:
        task = asyncio.ensure_future(step.do("b", lambda: 2))
        await step.do("a", lambda: 1)
        return task.done()

    world = World(Journal().started("do:a").passed("do:a", 1).started("do:b"))
    assert world.run(leaves_one_behind) == {"returned": False}


def test_suspension_never_reaches_the_code() -> None:
    touched: list[str] = []

    async def code(step: Step) -> Any:
        try:
            await step.sleep("long", "3 days")
        except BaseException as error:
            touched.append(repr(error))
        finally:
            touched.append("finally")

    world = World(None, lambda journal: journal.started("sleep:long"))
    assert world.run(code) == {"suspended": True}
    assert touched == []


def test_a_host_that_gave_up_ends_the_activation() -> None:
    world = World()
    world.next = lambda commands: '{"fatal":"gone"}'  # type: ignore[method-assign]
    assert world.run(three) == {"suspended": True}


# --- giving up ---


async def impatient(step: Step) -> Any:
    try:
        async with asyncio.timeout(30):
            await step.wait_for_event("answer", type="answer")
    except TimeoutError:
        return await step.do("default", lambda: "none")


def test_a_timeout_is_a_durable_timer_and_gives_up_the_wait() -> None:
    world = World(
        None,
        lambda journal: journal.started("timer:$timer").started("wait:answer"),
        lambda journal: journal.passed("timer:$timer"),
        lambda journal: journal.add("step_cancelled", "wait:answer").started("do:default"),
        lambda journal: journal.passed("do:default", "none"),
    )
    assert world.run(impatient) == {"returned": "none"}
    assert world.said == [
        ["start timer:$timer", "start wait:answer"],
        [],
        ["abandon wait:answer", "start do:default"],
        ["finish do:default = none"],
    ]
    assert world.commands[0]["config"] == {"duration_ms": 30_000}
    again = World(world.journal)
    assert again.run(impatient) == {"returned": "none"}
    assert again.said == []


def test_a_step_given_up_before_the_host_knew_of_it_never_was() -> None:
    async def code(step: Step) -> Any:
        async with asyncio.timeout(30):
            pass
        async with asyncio.timeout(60):
            await step.sleep("nap", 1)

    world = World(None, lambda journal: journal.started("timer:$timer#2").started("sleep:nap"))
    world.run(code)
    assert world.said[0] == ["start timer:$timer#2", "start sleep:nap"]
    assert World(world.journal).run(code) == {"suspended": True}


def test_a_step_that_ended_while_it_was_given_up_is_not_given_up_again() -> None:
    """The wait ends in the same answer as the timer, one entry later."""
    journal = Journal().started("timer:$timer").started("wait:answer").passed("timer:$timer")
    journal.passed("wait:answer", {"payload": 1, "timestamp": "2030-01-01T00:00:00Z", "type": "a"})
    world = World(journal)
    world.run(impatient)
    assert world.said == [["start do:default"]]


def test_a_step_sent_and_then_given_up_before_its_start_came_back_replays() -> None:
    """An outside entry overtook the start: only the journal tells that the host knew of it."""

    async def code(step: Step) -> Any:
        first = asyncio.ensure_future(step.wait_for_event("w", type="w"))

        await step.sleep("s", 1)
        async with asyncio.timeout(50):
            await first
        await step.sleep("z", 1)

    value = {"payload": 1, "timestamp": "2030-01-01T00:00:00Z", "type": "w"}
    journal = Journal().started("sleep:s").started("wait:w").passed("sleep:s")
    world = World(journal.passed("wait:w", value).started("timer:$timer"))
    assert world.run(code) == {"suspended": True}
    assert world.said == [["abandon timer:$timer", "start sleep:z"]]


# --- not strict ---


def finished() -> Journal:
    return Journal().started("do:a").passed("do:a", 1).started("do:old").passed("do:old", 2)


def test_newer_code_keeps_results_by_key_and_notes_what_it_inserted() -> None:
    async def newer(step: Step) -> Any:
        new = await step.do("new", lambda: "new")
        a = await step.do("a", lambda: "never")
        old = await step.do("old", lambda: "never")
        return [new, a, old]

    world = World(finished(), obliging=True, strict=False)
    world._oblige = lambda commands: _oblige_without_divergence(world, commands)  # type: ignore[method-assign]
    assert world.run(newer) == {"returned": ["new", 1, 2]}
    assert world.said == [["diverge do:new inserted", "start do:new"], ["finish do:new = new"]]


def _oblige_without_divergence(world: World, commands: Any) -> None:
    for command in commands:
        if command["op"] == "diverge":
            kind, name, occurrence = command["key"]
            world.journal.add("diverged", f"{kind}:{name}#{occurrence}", change=command["change"])
    World._oblige(world, [each for each in commands if each["op"] != "diverge"])


def test_newer_code_that_skips_a_finished_step_says_so_once() -> None:
    async def newer(step: Step) -> Any:
        return await step.do("a", lambda: "never")

    world = World(finished(), strict=False)
    assert world.run(newer) == {"returned": 1}
    assert world.said == [["diverge do:old missing"]]
    told = World(finished().add("diverged", "do:old", change="missing"), strict=False)
    assert told.run(newer) == {"returned": 1}
    assert told.said == []


def test_newer_code_may_take_finished_steps_in_another_order() -> None:
    async def newer(step: Step) -> Any:
        old = await step.do("old", lambda: "never")
        return [old, await step.do("a", lambda: "never")]

    world = World(finished(), strict=False)
    assert world.run(newer) == {"returned": [2, 1]}
    assert world.said == []


def test_a_step_behind_all_history_is_ordinary_new_work() -> None:
    async def newer(step: Step) -> Any:
        await step.do("a", lambda: "never")
        await step.do("old", lambda: "never")
        return await step.do("next", lambda: 3)

    world = World(finished(), obliging=True, strict=False)
    assert world.run(newer) == {"returned": 3}
    assert world.said[0] == ["start do:next"]


# --- time ---


def test_outside_bodies_it_is_the_time_of_the_last_entry() -> None:
    seen: list[float] = []

    async def code(step: Step) -> Any:
        loop = asyncio.get_running_loop()
        seen.append(loop.time())
        await step.sleep("s", 1)
        seen.append(loop.time())

    journal = Journal().add("event_received").started("sleep:s").add("run_suspended")
    World(journal.passed("sleep:s")).run(code)
    assert seen == [(START_MS + 1000) / 1000, (START_MS + 5000) / 1000]


def test_the_code_begins_at_the_first_claim_even_without_one() -> None:
    async def code(step: Step) -> Any:
        return asyncio.get_running_loop().time()

    assert World(Journal(claimed=False)).run(code) == {"returned": START_MS / 1000}


def test_a_clock_that_goes_backwards_is_not_followed() -> None:
    async def code(step: Step) -> Any:
        before = asyncio.get_running_loop().time()
        await step.sleep("s", 1)
        return asyncio.get_running_loop().time() >= before

    journal = Journal().started("sleep:s").passed("sleep:s")
    journal.entries[-1] = {**journal.entries[-1], "at_ms": START_MS - 50_000}
    assert World(journal).run(code) == {"returned": True}


def test_bodies_sense_the_real_world_and_everything_else_the_journal() -> None:
    world = World(obliging=True)

    async def code(step: Step) -> Any:
        return await step.do("a", lambda: [world.senses[-1][0]])

    assert world.run(code) == {"returned": [True]}
    assert world.senses[-1] == (False, world.journal.entries[-1]["data"]["early_ms"])


# --- printing ---


def test_only_what_runs_for_the_first_time_is_live() -> None:
    live: list[bool] = []

    async def code(step: Step) -> Any:
        live.append(world.replay.live)
        await step.sleep("a", 1)
        live.append(world.replay.live)
        await step.sleep("b", 1)
        live.append(world.replay.live)

    world = World()
    world.run(code)
    assert live == [True]
    live.clear()
    journal = Journal().started("sleep:a").add("run_suspended").passed("sleep:a")
    world = World(journal.add("run_claimed"))
    world.run(code)
    assert live == [False, True]


# --- always hibernate ---


def test_hibernating_always_stops_at_every_await_but_runs_bodies() -> None:
    journal, activations, answer = Journal(), 0, {}

    async def code(step: Step) -> Any:
        await step.do("a", lambda: 1)
        return await step.do("b", lambda: 2)

    while "returned" not in answer:
        world = World(journal, obliging=True, always_hibernate=True)
        answer = world.run(code)
        activations += 1
        assert activations < 10
    assert (answer, activations) == ({"returned": 2}, 3)
    assert [entry["kind"] for entry in journal.entries[2:]] == ["step_started", "step_passed"] * 2


# --- mistakes ---


def test_waiting_for_nothing_is_an_error_that_says_where() -> None:
    async def code(step: Step) -> Any:
        await asyncio.Event().wait()

    error = World().run(code)["raised"]
    assert error["type"] == "NothingToWaitFor"
    assert "test_replay.py, line" in error["message"]


def test_a_step_that_was_never_awaited_fails_the_run() -> None:
    async def code(step: Step) -> Any:
        step.sh("build", "make")  # type: ignore[unused-coroutine]  # the mistake it is about

    error = World().run(code)["raised"]
    assert error["type"] == "NeverAwaited"
    assert "step.sh('build') on line" in error["message"]


def test_a_result_that_is_not_json_fails_the_run_whatever_is_caught() -> None:
    async def code(step: Step) -> Any:
        try:
            await step.do("bad", lambda: {"a": [1, {2}]})
        except BaseException:
            return "swallowed"

    world = World(obliging=True)
    answer = world.run(code)
    assert answer["raised"]["message"] == (
        "the result of do:bad is not JSON: at $.a[1] is {2} of type set"
    )
    assert world.said[-1] == ["finish do:bad ! NotJson"]
    assert world.commands[-1]["retryable"] is False
    assert World(world.journal).run(code)["raised"]["message"] == answer["raised"]["message"]


def test_results_are_what_json_makes_of_them_on_the_first_pass_too() -> None:
    async def code(step: Step) -> Any:
        return isinstance(await step.do("pair", lambda: (1, 2)), list)

    assert World(obliging=True).run(code) == {"returned": True}


def test_what_run_returns_must_be_json() -> None:
    async def code(step: Step) -> Any:
        return {"when": object}

    error = World().run(code)["raised"]
    assert "what run() returned is not JSON: at $.when is" in error["message"]


def test_steps_inside_a_body_are_refused() -> None:
    async def code(step: Step) -> Any:
        await step.do("outer", lambda: step.sleep("inner", 1), retries=0)

    error = World(obliging=True).run(code)["raised"]
    assert "step.sleep('inner') was called inside the body of a step" in error["message"]


# --- errors ---


class Custom(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "caught", "text"),
    [
        (ValueError("no"), ValueError, "no"),
        (KeyError("k"), KeyError, "'k'"),
        (Custom("mine"), Custom, "mine"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "bad"), StepFailed, "bad"),
        (ExceptionGroup("many", [ValueError("1"), KeyError("2")]), StepFailed, "ValueError: 1"),
        (CommandFailed("c", exit_code=7), CommandFailed, "c"),
    ],
)
def test_errors_of_bodies_are_the_same_live_and_in_replay(
    raised: Exception, caught: type[Exception], text: str
) -> None:
    async def code(step: Step) -> Any:
        def body() -> None:
            raise raised

        try:
            await step.do("x", body, retries=0)
        except caught as error:
            return [type(error).__name__, str(error)]

    world = World(obliging=True)
    live = world.run(code)
    assert live["returned"][0] == caught.__name__
    assert text in live["returned"][1]
    assert World(world.journal).run(code) == live


def test_a_traceback_has_the_await_and_the_line_of_the_body_and_no_platform_frames() -> None:
    async def code(step: Step) -> Any:
        def body() -> None:
            raise ValueError("deep")

        await step.do("x", body)

    text = World(obliging=True).run(code)["raised"]["traceback"]
    assert 'await step.do("x", body)' in text
    assert 'raise ValueError("deep")' in text
    assert "replay.py" not in text.replace("test_replay.py", "")
    assert "asyncio" not in text


def test_a_single_error_of_a_task_group_is_named_itself() -> None:
    async def code(step: Step) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(step.sh("lint", "ruff"))
            group.create_task(step.sleep("other", 5))

    journal = Journal().started("sh:lint").started("sleep:other")
    world = World(journal.failed("sh:lint", "CommandFailed", "lint exited with 1", exit_code=1))
    error = world.run(code)["raised"]
    assert (error["type"], error["message"]) == ("CommandFailed", "lint exited with 1")


# --- bodies ---


def test_a_body_may_wait_for_real_time() -> None:
    async def code(step: Step) -> Any:
        async def body() -> float:
            begun = asyncio.get_running_loop().time()
            await asyncio.sleep(5)
            return asyncio.get_running_loop().time() - begun

        return await step.do("slow", body)

    world = World(obliging=True)
    assert world.run(code) == {"returned": 5.0}
    assert world.said == [["start do:slow"], ["finish do:slow = 5.0"]]


def test_a_body_that_takes_too_long_is_cancelled_and_may_clean_up() -> None:
    cleaned: list[str] = []

    async def code(step: Step) -> Any:
        async def body() -> None:
            try:
                await asyncio.sleep(100)
            finally:
                cleaned.append("up")

        await step.do("slow", body, timeout=2, retries=0)

    world = World(obliging=True)
    error = world.run(code)["raised"]
    assert error["message"] == "attempt 1 of do:slow took longer than its timeout of 2 seconds"
    assert (error["type"], cleaned, world.slept) == ("StepTimeout", ["up"], 2.0)


def test_a_body_that_ignores_its_cancellation_is_left_behind() -> None:
    async def code(step: Step) -> Any:
        async def body() -> None:
            while True:
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    continue

        await step.do("deaf", body, timeout=2, retries=0)

    world = World(obliging=True)
    assert world.run(code)["raised"]["type"] == "StepTimeout"
    assert world.slept == 7.0


def test_a_sync_body_that_took_too_long_fails_when_it_ends() -> None:
    world = World(obliging=True)

    async def code(step: Step) -> Any:
        await step.do("slow", lambda: world.sleep(60), timeout=2, retries=0)

    assert world.run(code)["raised"]["type"] == "StepTimeout"


def test_tasks_that_a_body_leaves_behind_stop_with_it() -> None:
    ran: list[str] = []

    async def code(step: Step) -> Any:
        async def later() -> None:
            await asyncio.sleep(1)
            ran.append("later")

        async def body() -> None:
            code.task = asyncio.create_task(later())  # type: ignore[attr-defined]

        await step.do("spawns", body)
        await step.do("waits", lambda: asyncio.sleep(10))

    assert World(obliging=True).run(code) == {"returned": None}
    assert ran == []


def test_a_body_that_is_given_up_sends_no_result() -> None:
    async def code(step: Step) -> Any:
        task = asyncio.create_task(step.do("slow", lambda: asyncio.sleep(10)))
        await step.do("quick", lambda: 1)
        task.cancel()
        return await step.do("after", lambda: 2)

    world = World(obliging=True)
    assert world.run(code) == {"returned": 2}
    assert not any(each.startswith("finish do:slow") for said in world.said for each in said)
    assert any("abandon do:slow" in said for said in world.said)


def test_a_delay_function_is_asked_and_its_failure_ends_the_retries() -> None:
    def code(delay: Any) -> Any:
        async def main(step: Step) -> Any:
            def body() -> None:
                raise ValueError("no")

            await step.do("x", body, retries=Retry(limit=3, delay=delay))

        return main

    world = World(obliging=True)
    world.run(code(lambda ctx, error: f"{ctx.attempt * 7} s"))
    assert (world.commands[1]["delay_ms"], world.commands[1]["retryable"]) == (7_000, True)
    world = World(obliging=True)
    world.run(code(lambda ctx, error: "soon"))
    assert world.commands[1]["retryable"] is False
    assert world.commands[1]["error"]["type"] == "NonRetryableDelayError"
    assert "the delay function of x failed: ValueError" in world.commands[1]["error"]["message"]


def test_a_delay_function_has_five_seconds_of_its_own() -> None:
    def code(seconds: float) -> Any:
        async def delay(ctx: StepContext, error: Exception) -> float:
            await asyncio.sleep(seconds)
            return 3

        async def main(step: Step) -> Any:
            async def body() -> None:
                await asyncio.sleep(9)
                raise ValueError("no")

            await step.do("x", body, timeout=10, retries=Retry(limit=3, delay=delay))

        return main

    world = World(obliging=True)
    world.run(code(4))  # beyond the body's own timeout
    assert world.commands[1]["delay_ms"] == 3_000
    assert ("delay:do:x", 5.0) in world.allowed
    world = World(obliging=True)
    world.run(code(100))
    error = world.commands[1]["error"]
    assert (error["type"], world.slept) == ("NonRetryableDelayError", 14.0)
    assert "no answer within 5 seconds" in error["message"]


def test_the_host_is_told_for_how_long_a_body_may_run() -> None:
    async def code(step: Step) -> Any:
        async def deaf() -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                await asyncio.sleep(1)

        await step.do("deaf", deaf, timeout=2, retries=0)

    world = World(obliging=True)
    world.run(code)
    assert world.allowed == [("do:deaf", 2.0), ("do:deaf", 5.0)]


def test_sys_exit_in_a_body_fails_the_step_and_not_the_loop() -> None:
    async def code(step: Step) -> Any:
        def body() -> None:
            raise SystemExit(3)

        try:
            await step.do("x", body)
        except StepFailed as error:
            return str(error)

    answer = World(obliging=True).run(code)
    assert "sys.exit(3) was called" in answer["returned"]


# --- asyncio on this loop ---


def test_queues_locks_events_and_groups_work() -> None:
    async def code(step: Step) -> Any:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        lock, ready, seen = asyncio.Lock(), asyncio.Event(), []

        async def producer() -> None:
            for number in range(3):
                await queue.put(await step.do(f"make {number}", lambda number=number: number))
            ready.set()

        async def consumer() -> None:
            for _ in range(3):
                async with lock:
                    seen.append(await asyncio.wait_for(queue.get(), 60))
            await ready.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(producer())
            group.create_task(consumer())
        return seen

    world = World(obliging=True)
    answer = world.run(code)
    assert len(answer["returned"]) == 3
    assert World(world.journal).run(code) == answer


def test_an_error_in_a_callback_is_told_and_the_run_goes_on() -> None:
    async def code(step: Step) -> Any:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        return "went on"

    world = World()
    assert world.run(code) == {"returned": "went on"}
    assert "ZeroDivisionError" in world.printed[0][2]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: asyncio.to_thread(print), "has no threads"),
        (lambda: asyncio.create_subprocess_exec("ls"), "cannot start programs"),
        (lambda: asyncio.create_subprocess_shell("ls"), "cannot start programs"),
        (lambda: asyncio.open_connection("127.0.0.1", 80), "has no network"),
    ],
)
def test_what_a_sandbox_does_not_have_says_so(call: Any, said: str) -> None:
    async def code(step: Step) -> Any:
        await call()

    assert said in World().run(code)["raised"]["message"]


def rolled_back(journal: Journal, *steps: str, error: str = "it broke") -> Journal:
    described = {"type": "ValueError", "message": error, "traceback": "", "data": {}}
    listed = [key(step) for step in steps]
    return journal.add(
        "rollback_started", steps=listed, end="run_failed", data={"error": described}
    )


def test_handlers_run_in_the_order_of_the_journal_and_get_what_they_name() -> None:
    got: list[Any] = []

    async def code(step: Step) -> Any:
        await step.do("a", lambda: 1, rollback=lambda output, error: got.append([output, error]))
        await step.do("b", lambda: 2, rollback=lambda ctx: got.append(ctx.name))
        raise ValueError("it broke")

    journal = Journal().started("do:a").passed("do:a", 1).started("do:b").passed("do:b", 2)
    world = World(rolled_back(journal, "do:b", "do:a").add("run_claimed"), obliging=True)
    assert world.run(code) == {"returned": None}
    assert got[0] == "$rollback:do:b"
    assert (got[1][0], str(got[1][1])) == (1, "it broke")
    assert [words.split(" =")[0] for said in world.said for words in said] == [
        "start do:$rollback:do:b",
        "finish do:$rollback:do:b",
        "start do:$rollback:do:a",
        "finish do:$rollback:do:a",
    ]


def test_a_rollback_leaves_the_code_where_it_stands() -> None:
    seen: list[str] = []

    async def code(step: Step) -> Any:
        try:
            await step.do("a", lambda: 1, rollback=lambda: 1)
            await step.sleep("long", 1000)
        finally:
            seen.append("unwound")

    journal = Journal().started("do:a").passed("do:a", 1).started("sleep:long")
    rolled_back(journal, "do:a").add("step_cancelled", "sleep:long", reason="rollback")
    world = World(journal, obliging=True)
    assert world.run(code) == {"returned": None}
    assert seen == []


def test_a_step_that_the_code_does_not_reach_any_more_fails_the_rollback() -> None:
    async def code(step: Step) -> Any:
        return None

    journal = Journal().started("do:gone").passed("do:gone", 1)
    world = World(rolled_back(journal, "do:gone"), obliging=True, strict=False)
    error = world.run(code)["raised"]
    assert error["type"] == "RollbackFailed"
    assert "do:gone began with a rollback handler" in error["message"]


def test_a_rollback_goes_on_where_it_was_interrupted() -> None:
    async def code(step: Step) -> Any:
        await step.do("a", lambda: 1, rollback=lambda output: output)
        await step.do("b", lambda: 2, rollback=lambda output: output)
        raise SystemExit(3)

    journal = Journal().started("do:a").passed("do:a", 1).started("do:b").passed("do:b", 2)
    rolled_back(journal, "do:b", "do:a")
    journal.started("do:$rollback:do:b").passed("do:$rollback:do:b", 2)
    world = World(journal.add("run_claimed"), obliging=True)
    assert world.run(code) == {"returned": None}
    assert [words for said in world.said for words in said] == [
        "start do:$rollback:do:a",
        "finish do:$rollback:do:a = 1",
    ]
