"""pipelines.testing, used as authors use it; each pipeline also with a replay at every await."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pipelines import (
    Approval,
    CapabilityError,
    CommandFailed,
    Event,
    NonRetryable,
    Pipeline,
    Rejected,
    Response,
    Retry,
    Step,
    StepFailed,
    WaitTimeout,
)
from pipelines.env import Env
from pipelines.fetching import Request
from pipelines.testing import PipelineTest, TestedEnv, call_fetch


@pytest.fixture(params=["auto", "always"])
def hibernate(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Deploy(Pipeline):
    async def run(self, event: Event, step: Step) -> Any:
        lint, unit = await asyncio.gather(
            step.sh("lint", "ruff check ."), step.sh("unit", "pytest -q")
        )
        wheel = await step.sh("build", "python -m build")
        if event.branch == "main":
            await step.approval("deploy", approvers=["role:maintainer"])
            await step.sh("ship", "./ship.sh")
        return {"version": wheel.outputs.get("version"), "codes": [lint.exit_code, unit.exit_code]}


def test_a_pipeline_runs_to_its_end_with_mocked_commands_and_people(hibernate: str) -> None:
    test = PipelineTest(Deploy, Event(branch="main"), hibernate=hibernate)
    test.mock_command("build", outputs={"version": "1.2"})
    test.approve("deploy", user="ann")
    run = test.run()
    assert run.error is None
    assert (run.state, run.output) == ("passed", {"version": "1.2", "codes": [0, 0]})
    assert list(run.steps) == ["sh:lint", "sh:unit", "sh:build", "approval:deploy", "sh:ship"]


def test_a_run_that_nobody_answers_waits_and_goes_on_later(hibernate: str) -> None:
    test = PipelineTest(Deploy, Event(branch="main"), hibernate=hibernate)
    run = test.run()
    assert (run.state, run.waits) == ("waiting", ["approval:deploy"])
    test.approve("deploy")
    assert test.run().state == "passed"


def test_a_rejected_approval_raises_rejected(hibernate: str) -> None:
    test = PipelineTest(Deploy, Event(branch="main"), hibernate=hibernate)
    test.reject("deploy", user="bob", comment="not today")
    run = test.run()
    assert run.state == "failed"
    assert run.error is not None and run.error["type"] == "Rejected"
    assert "sh:ship" not in run.steps


def test_a_failing_command_raises_with_its_exit_code(hibernate: str) -> None:
    class Failing(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            try:
                await step.sh("make", "make", retries=1)
            except CommandFailed as error:
                return [error.exit_code, error.output_tail]

    test = PipelineTest(Failing, hibernate=hibernate)
    test.mock_command("make", exit_code=2, output_tail="boom")
    run = test.run()
    assert (run.output, run.steps["sh:make"].attempts) == ([2, "boom"], 2)


def test_bodies_run_and_are_tried_again_after_their_delay(hibernate: str) -> None:
    calls: list[int] = []

    class Flaky(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            def flaky() -> str:
                calls.append(1)
                if len(calls) < 3:
                    raise ConnectionError("not yet")
                return "done"

            return await step.do("flaky", flaky, retries=Retry(limit=3, delay="10 s"))

    run = PipelineTest(Flaky, hibernate=hibernate).run()
    assert (run.output, len(calls), run.elapsed_ms) == ("done", 3, 30_000)


def test_errors_and_results_of_steps_can_be_mocked(hibernate: str) -> None:
    class Two(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            first = await step.do("first", lambda: 1)
            try:
                await step.do("second", lambda: 2)
            except ValueError as error:
                return [first, str(error)]

    test = PipelineTest(Two, hibernate=hibernate)
    test.mock_step("first", {"mocked": True})
    test.mock_error("second", ValueError("no"), times=6)
    assert test.run().output == [{"mocked": True}, "no"]


def test_an_error_that_cannot_be_retried_ends_the_step_at_once(hibernate: str) -> None:
    class Once(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            await step.do("once", lambda: 1)

    test = PipelineTest(Once, hibernate=hibernate)
    test.mock_error("once", NonRetryable("never"))
    run = test.run()
    assert (run.state, run.steps["do:once"].attempts) == ("failed", 1)
    assert run.error is not None and run.error["type"] == "NonRetryable"


def test_events_are_kept_until_the_run_waits_for_them(hibernate: str) -> None:
    class Waiting(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            first = await step.wait_for_event("first", type="go")
            second = await step.wait_for_event("second", type="go")
            return [first.payload, second.payload]

    test = PipelineTest(Waiting, hibernate=hibernate)
    test.send_event("other", 0)
    test.send_event("go", 1)
    assert test.run().waits == ["wait:second"]
    test.send_event("go", 2)
    assert test.run().output == [1, 2]


def test_a_wait_times_out_when_told_to_or_when_a_timer_says_so(hibernate: str) -> None:
    class Patient(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            try:
                await step.wait_for_event("told", type="never", timeout="7 days")
            except WaitTimeout:
                print("told")
            try:
                async with asyncio.timeout(3600):
                    await step.wait_for_event("timed", type="never")
            except TimeoutError:
                print("timed")

    test = PipelineTest(Patient, hibernate=hibernate)
    test.time_out("told")
    run = test.run()
    assert (run.state, run.log) == ("passed", "told\ntimed\n")
    assert run.elapsed_ms == 3_600_000
    assert run.steps["wait:timed"].state == "cancelled"


def test_sleeping_takes_no_time_for_real_and_the_right_time_on_the_runs_clock(
    hibernate: str,
) -> None:
    class Sleepy(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            await asyncio.gather(step.sleep("a", "3 days"), step.sleep("b", "1 day"))
            await asyncio.sleep(30)

    run = PipelineTest(Sleepy, hibernate=hibernate).run()
    assert (run.state, run.elapsed_ms) == ("passed", 3 * 86_400_000 + 30_000)


def test_code_that_does_not_replay_is_found_by_hibernating_always() -> None:
    taken: list[int] = []

    class Drifting(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            taken.append(1)
            await step.do(f"step {len(taken)}", lambda: 1)
            await step.do("last", lambda: 1)

    assert PipelineTest(Drifting).run().state == "passed"
    taken.clear()
    run = PipelineTest(Drifting, hibernate="always").run()
    assert run.state == "paused"
    assert run.error is not None
    assert run.error["message"].startswith("expected do:step 1, got do:step 2")


def test_commands_take_the_time_that_their_mock_says() -> None:
    class Racing(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            done, _ = await asyncio.wait(
                [
                    asyncio.create_task(step.sh("slow", "x"), name="slow"),
                    asyncio.create_task(step.sh("quick", "x"), name="quick"),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
            return sorted(task.get_name() for task in done)

    test = PipelineTest(Racing)
    test.mock_command("slow", duration="2 minutes")
    test.mock_command("quick", duration="1 minute")
    assert test.run().output == ["quick"]


def test_an_approval_needs_as_many_different_people_as_it_says(hibernate: str) -> None:
    class Two(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            given: Approval = await step.approval("both", required=2)
            return [decision.user for decision in given.decisions]

    test = PipelineTest(Two, hibernate=hibernate)
    test.approve("both", user="ann")
    test.approve("both", user="ann")
    assert test.run().state == "waiting"
    test.approve("both", user="bob")
    assert test.run().output == ["ann", "ann", "bob"]


def test_rejected_says_who_and_why() -> None:
    class Asking(Pipeline):
        async def run(self, event: Event, step: Step) -> Any:
            try:
                await step.approval("go")
            except Rejected as no:
                return [no.user, no.comment]

    test = PipelineTest(Asking)
    test.reject("go", user="bob", comment="later")
    assert test.run().output == ["bob", "later"]


def test_bad_arguments_are_errors_that_name_them() -> None:
    with pytest.raises(ValueError, match="hibernate must be one of auto, always"):
        PipelineTest(Deploy, hibernate="never")
    with pytest.raises(TypeError, match="payload is not JSON"):
        PipelineTest(Deploy).send_event("go", {1, 2})


def test_it_runs_inside_a_running_event_loop_too() -> None:
    async def inside() -> str:
        return PipelineTest(Deploy, Event(branch="dev")).run().state

    assert asyncio.run(inside()) == "passed"


# --- other runs ---


class Release(Pipeline):
    async def run(self, event: Event, step: Step) -> Any:
        await step.start("announce", "Announce", {"to": "all"}, wait=False)
        try:
            child = await step.start("deploy", Deploy, {"target": "staging"})
        except StepFailed as error:
            return [str(error), error.type, error.run_id]
        return [child.state, child.output]


def test_a_run_that_is_started_passes_unless_told_otherwise(hibernate: str) -> None:
    run = PipelineTest(Release, hibernate=hibernate).run()
    assert (run.state, run.output) == ("passed", ["passed", None])
    asked = run.steps["run:deploy"].config
    assert (asked["pipeline"], asked["params"]) == ("Deploy", {"target": "staging"})
    assert run.steps["run:announce"].value == {"id": "run_child_1", "number": 1}


def test_a_started_run_ends_as_its_mock_says_and_when(hibernate: str) -> None:
    test = PipelineTest(Release, hibernate=hibernate)
    test.mock_run("deploy", {"url": "x"}, duration="5 minutes")
    run = test.run()
    assert (run.output, run.elapsed_ms) == (["passed", {"url": "x"}], 300_000)
    test = PipelineTest(Release, hibernate=hibernate)
    test.mock_run("deploy", state="failed", error="ValueError: wrong")
    said = "run #2 of 'deploy' has failed: ValueError: wrong"
    assert test.run().output == [said, "ValueError", "run_child_2"]
    with pytest.raises(ValueError, match="state must be one of passed"):
        test.mock_run("deploy", state="lost")


class Overseer(Pipeline):
    async def run(self, event: Event, step: Step) -> Any:
        async def oversee() -> Any:
            runs = self.env.runs
            made = await runs.create("Deploy", {"n": 1}, id="deploy-1")
            batch = await runs.create_batch([{"id": "deploy-1"}, {"pipeline": "CI"}])
            await made.send_event("go", 42)
            await (await made.pause()).cancel()
            try:
                await (await runs.get("nobody")).pause()
            except CapabilityError as error:
                said = error.type
            again = await made.restart(from_step=("sh", "ship", 2), commit="newest", id="again")
            waiting = await runs.list(state=["waiting", "queued"], limit=2)
            report = await runs.delete_batch(["deploy-1", "again", "nobody"])
            return [
                [one.id for one in batch],
                (await again.status())["state"],
                [one.id for one in waiting],
                waiting.cursor,
                [one["status"] for one in report],
                said,
            ]

        return await step.do("oversee", oversee, retries=0)


def test_code_that_starts_and_changes_other_runs_is_tested_without_any(hibernate: str) -> None:
    test = PipelineTest(Overseer, hibernate=hibernate)
    test.runs.add("old", state="waiting", pipeline="Deploy")
    run = test.run()
    assert run.error is None
    assert run.output == [
        ["run_3"],
        "queued",
        ["again", "run_3"],
        "2",
        [204, 409, 404],
        "RunNotFound",
    ]
    assert "deploy-1" not in test.runs
    again = test.runs["again"]
    assert (again.pipeline, again.commit) == ("Deploy", "newest")
    step = {"kind": "sh", "name": "ship", "occurrence": 2}
    assert again.restarted_from == ("deploy-1", step)


class Teller(Pipeline):
    async def run(self, event: Event, step: Step) -> Any:
        async def tell() -> Any:
            found = await self.env.runs.get("old")
            await found.send_event("go", 1, id="d-1")
            await found.send_event("go", 1, id="d-1")
            try:
                await found.send_event("go", 2, id="d-1")
            except CapabilityError as error:
                return error.type

        return await step.do("tell", tell, retries=0)


def test_an_event_with_an_id_reaches_another_run_once(hibernate: str) -> None:
    test = PipelineTest(Teller, hibernate=hibernate)
    old = test.runs.add("old", state="waiting")
    assert test.run().output == "Conflict"
    assert old.events == [("go", 1)]


# --- services and fetch ---


class WithDatabase(Pipeline):
    async def run(self, event: Event, step: Step) -> Any:
        async with step.service("db", "postgres", ready=5432):
            return (await step.sh("test", "pytest")).exit_code


def test_a_service_starts_nothing_in_a_test(hibernate: str) -> None:
    run = PipelineTest(WithDatabase, hibernate=hibernate).run()
    assert (run.state, run.output) == ("passed", 0)
    assert list(run.steps) == ["service:db", "sh:test"]


async def fetch(request: Request, env: Env) -> Any:
    if request.method == "POST":
        await env.storage.kv.put("last", request.json())
        await env.runs.create("Deploy", request.json())
        return Response(status=201, headers={"X-Of": request.headers["x-by"]})
    return {"last": await env.storage.kv.get("last"), "q": request.query}


def test_a_modules_own_endpoint_is_called_without_a_server() -> None:
    env = TestedEnv()
    made = call_fetch(
        fetch, "/deploys", method="POST", headers={"X-By": "ada"}, body={"n": 7}, env=env
    )
    assert (made.status, made.headers["X-Of"]) == (201, "ada")
    assert [run.params for run in env.runs.values()] == [{"n": 7}]
    told = call_fetch(fetch, query={"a": "b"}, env=env)
    assert json.loads(told.body) == {"last": {"n": 7}, "q": {"a": "b"}}
