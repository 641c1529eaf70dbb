"""Whole runs in memory: the real engine, the real guest code, a worker driven by hand."""

from __future__ import annotations

from ci_platform.model import StepKey
from tests.unit.worker.world import COMMIT, EAGER, MAIN, NEWER, World, pipeline


def test_three_steps_pass_in_one_activation_and_their_values_are_kept() -> None:
    world = World(settings=EAGER)
    run = world.play(
        """
        a = await step.do("a", lambda: event.params["n"])
        b = await step.do("b", lambda: a * 2)
        return [a, b, await step.do("c", lambda: None)]
        """,
        params={"n": 21},
    )
    assert (run.state, run.output) == ("passed", [21, 42, None])
    assert world.steps(run.id) == {"do:a": "passed", "do:b": "passed", "do:c": "passed"}
    assert world.kinds(run.id).count("run_claimed") == 1
    assert run.worker is None and run.ready_ms is None


def test_a_sleep_suspends_the_run_and_its_timer_wakes_it() -> None:
    world = World()
    run = world.play(
        """
        before = await step.do("before", lambda: 1)
        await step.sleep("nap", "3 days")
        return before
        """
    )
    assert run.state == "waiting"
    assert [(wait.kind, wait.name) for wait in run.waits] == [("sleep", "nap")]
    world.later(3 * 86_400 - 1)
    assert world.state(run.id) == "waiting"
    world.later(1)
    assert world.run(run.id).output == 1
    assert world.kinds(run.id).count("step_started") == 2


def test_the_author_gets_the_event_of_the_trigger() -> None:
    world = World()
    run = world.play(
        """
        e = event
        return [e.params, e.trigger, e.ref, e.branch, e.tag, e.commit, e.actor, e.number,
                e.run_id, e.timestamp.isoformat() if hasattr(e.timestamp, "isoformat")
                else e.timestamp]
        """,
        params={"__dispatch": 1},
    )
    assert run.output[:8] == [
        {"__dispatch": 1},
        "push",
        MAIN,
        "main",
        None,
        COMMIT,
        "ada",
        run.number,
    ]
    assert run.output[8] == run.id
    assert str(run.output[9]).startswith("2023-11-14T22:13:20")


def test_prints_go_to_the_log_of_the_run_or_of_the_step_and_only_once() -> None:
    world = World()
    run = world.play(
        """
        print("one")
        await step.do("build", lambda: print("inside"))
        await step.sleep("nap", 60)
        print("two")
        """
    )
    world.later(60)
    assert world.state(run.id) == "passed"
    assert world.log(run.id) == ["one", "two"]
    assert world.log(run.id, "do:build") == ["inside"]


def test_concurrent_steps_finish_in_whatever_order_and_replay_as_they_were() -> None:
    world = World(settings=EAGER)
    run = world.play(
        """
        async def part(n):
            await step.sleep(f"nap {n}", n)
            return await step.do(f"do {n}", lambda: n * n)
        squares = await asyncio.gather(part(30), part(10), part(20))
        return squares
        """
    )
    for _ in range(3):
        world.later(10)
    assert world.run(run.id).output == [900, 100, 400]
    assert world.kinds(run.id).count("run_claimed") == 4


def test_a_flaky_step_waits_longer_each_time_and_passes_in_the_end() -> None:
    world = World()
    run = world.play(
        """
        def flaky(ctx):
            if ctx.attempt < 3:
                raise OSError("not yet")
            return ctx.attempt
        return await step.do("flaky", flaky)
        """
    )
    assert [(wait.kind, wait.name) for wait in run.waits] == [("retry", "flaky")]
    world.later(10)
    assert world.state(run.id) == "waiting"
    world.later(20)
    assert world.run(run.id).output == 3


def test_an_uncaught_error_fails_the_run_with_the_author_s_lines() -> None:
    run = World().play('raise LookupError("no such thing")')
    assert (run.state, run.reason) == ("failed", None)
    assert run.error is not None and run.error.type == "LookupError"
    assert 'raise LookupError("no such thing")' in run.error.traceback
    assert "replay.py" not in run.error.traceback


def test_used_up_retries_are_the_reason_of_a_failed_run() -> None:
    world = World()
    run = world.play(
        """
        def doomed():
            raise OSError("down")
        await step.do("doomed", doomed, retries=1)
        """
    )
    world.later(10)
    run = world.run(run.id)
    assert (run.state, run.reason) == ("failed", "retries_exhausted")
    assert world.view(run.id).steps[StepKey.parse("do:doomed")].attempt == 2


def test_an_event_before_and_an_event_after_the_wait_are_each_taken_once() -> None:
    world = World()
    run_id = world.start(
        pipeline(
            """
            first = await step.wait_for_event("a", type="go")
            second = await step.wait_for_event("b", type="go")
            return [first.payload, second.payload]
            """
        )
    )
    world.send(run_id, "go", 1)
    world.work()
    assert [(w.kind, w.name, w.type) for w in world.run(run_id).waits] == [("wait", "b", "go")]
    world.send(run_id, "go", 2)
    world.send(run_id, "go", 3)
    world.work()
    assert world.run(run_id).output == [1, 2]


def test_a_wait_that_timed_out_leaves_the_event_to_the_next_one() -> None:
    world = World()
    run = world.play(
        """
        try:
            await step.wait_for_event("early", type="go", timeout=60)
        except WaitTimeout:
            return (await step.wait_for_event("late", type="go")).payload
        """
    )
    world.clock.advance(61)
    world.send(run.id, "go", "x")
    world.work()
    assert world.run(run.id).output == "x"


def test_an_approval_needs_as_many_people_as_it_says() -> None:
    world = World()
    run = world.play(
        """
        decision = await step.approval("ship", required=2)
        return [each["user"] for each in decision["decisions"]] if isinstance(decision, dict) \\
            else [each.user for each in decision.decisions]
        """
    )
    assert [gate.key.name for gate in world.store.approvals.open()] == ["ship"]
    world.answer(run.id, "ship", "ada")
    world.work()
    assert world.state(run.id) == "waiting"
    world.answer(run.id, "ship", "bob")
    world.work()
    assert world.run(run.id).output == ["ada", "bob"]
    assert world.store.approvals.open() == []


def test_a_rejection_that_is_let_through_is_the_reason_of_the_run() -> None:
    world = World()
    run = world.play('await step.approval("ship")')
    world.answer(run.id, "ship", "ada", "reject")
    world.work()
    found = world.run(run.id)
    assert (found.state, found.reason) == ("failed", "rejected")
    assert found.error is not None and found.error.type == "Rejected"


def test_an_expired_wait_that_is_let_through_is_the_reason_of_the_run() -> None:
    world = World()
    run = world.play('await step.approval("ship", timeout="7 days")')
    world.later(7 * 86_400)
    assert (world.state(run.id), world.run(run.id).reason) == ("failed", "expired")


def test_a_timeout_around_a_wait_gives_the_wait_up() -> None:
    world = World()
    run = world.play(
        """
        try:
            async with asyncio.timeout(30):
                await step.wait_for_event("answer", type="answer")
        except TimeoutError:
            return await step.do("give up", lambda: "nobody answered")
        """
    )
    world.later(30)
    assert world.run(run.id).output == "nobody answered"
    assert world.steps(run.id)["wait:answer"] == "cancelled"


def test_steps_that_are_left_open_when_the_code_returns_are_cancelled() -> None:
    world = World()
    run = world.play(
        """
        task = asyncio.ensure_future(step.wait_for_event("never", type="never"))
        await step.do("work", lambda: 1)
        return 1
        """
    )
    assert run.state == "passed"
    assert world.steps(run.id) == {"wait:never": "cancelled", "do:work": "passed"}


def test_a_pause_holds_a_sleeping_run_and_a_resume_shifts_its_timer() -> None:
    world = World()
    run = world.play('await step.sleep("nap", 100)')
    world.later(40)
    world.pause(run.id)
    world.later(1_000)
    assert world.state(run.id) == "paused"
    world.resume(run.id)
    world.later(59)
    assert world.state(run.id) == "waiting"
    world.later(1)
    assert world.state(run.id) == "passed"


def test_a_cancelled_run_is_not_claimed_again() -> None:
    world = World()
    run = world.play('await step.sleep("nap", 100)')
    world.cancel(run.id)
    before = world.kinds(run.id)
    world.later(1_000)
    assert world.kinds(run.id) == before


def test_a_run_that_takes_longer_than_its_timeout_fails() -> None:
    world = World()
    run = world.play('await step.sleep("nap", "3 hours")', timeout_ms=7_200_000)
    world.later(7_199)
    assert world.state(run.id) == "waiting"
    world.later(1)
    assert (world.state(run.id), world.run(run.id).reason) == ("failed", "timeout")


def test_code_that_does_not_load_fails_its_run_only() -> None:
    world = World()
    broken = world.start("import nothing_like_this\n")
    other = world.start(pipeline("return 1"), commit=NEWER)
    world.work()
    run = world.run(broken)
    assert (run.state, run.error and run.error.type) == ("failed", "ModuleNotFoundError")
    assert world.state(other) == "passed"


def test_a_commit_without_a_pipeline_file_fails_its_run() -> None:
    world = World()
    run_id = world.start()
    world.work()
    run = world.run(run_id)
    assert (run.state, run.error and run.error.type) == ("failed", "SourceError")


def test_a_result_that_is_not_json_fails_the_run_and_says_where() -> None:
    world = World()
    run = world.play('await step.do("bad", lambda: {"rows": [{1, 2}]})')
    assert run.state == "failed"
    assert run.error is not None and "rows" in run.error.message
    assert world.steps(run.id) == {"do:bad": "failed"}
