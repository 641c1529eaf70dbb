"""Services as an author writes them: who gets them, when they end, and what is refused."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from pipelines import Pipeline, Ready, Rollback, Step
from pipelines.testing import PipelineTest, TestedRun
from tests.unit.pipelines.replay_world import Journal, World


def services_of(run: TestedRun) -> dict[str, list[str]]:
    return {name: step.config.get("services", []) for name, step in run.steps.items()}


@pytest.mark.parametrize("hibernate", ["auto", "always"])
def test_commands_called_inside_the_block_have_the_service(hibernate: str) -> None:
    class CI(Pipeline):
        async def run(self, event: Any, step: Any) -> Any:
            before = step.sh("called before", "true")
            async with step.service("db", "postgres", ready=5432) as db:
                await step.sh("first", "true")
                await asyncio.gather(step.sh("left", "true"), step.sh("right", "true"))
                async with step.service("web", "serve", ready="true"):
                    await step.sh("inner", "true")
                await before
                again = step.sh("called inside", "true")
            await again
            async with step.service("db", "postgres"):
                await step.sh("anew", "true")
            return [db.host, db.port, db.name]

    run = PipelineTest(CI, hibernate=hibernate).run()
    assert (run.state, run.output) == ("passed", ["127.0.0.1", 5432, "db"]), run.error
    assert services_of(run) == {
        "service:db": [],
        "sh:first": ["service:db"],
        "sh:left": ["service:db"],
        "sh:right": ["service:db"],
        "service:web": [],
        "sh:inner": ["service:db", "service:web"],
        "sh:called before": [],
        "sh:called inside": ["service:db"],
        "service:db#2": [],
        "sh:anew": ["service:db#2"],
    }
    assert {step.state for step in run.steps.values()} == {"passed"}


def test_tasks_beside_the_block_have_no_part_in_it() -> None:
    class CI(Pipeline):
        async def run(self, event: Any, step: Any) -> None:
            async def inside() -> None:
                async with step.service("db", "x"):
                    await step.sh("inside", "true")

            async def beside() -> None:
                await step.sh("one", "true")
                await step.sh("two", "true")

            await asyncio.gather(inside(), beside())

    found = services_of(PipelineTest(CI).run())
    assert (found["sh:inside"], found["sh:one"], found["sh:two"]) == (["service:db"], [], [])


@pytest.mark.parametrize("hibernate", ["auto", "always"])
def test_a_block_ends_its_service_however_it_is_left(hibernate: str) -> None:
    class CI(Pipeline):
        async def run(self, event: Any, step: Any) -> None:
            try:
                async with step.service("raises", "x"):
                    raise KeyError("own")
            except KeyError:
                pass
            try:
                async with asyncio.timeout(5):
                    async with step.service("cancelled", "x"):
                        await step.wait_for_event("never", type="never")
            except TimeoutError:
                pass
            for _ in range(2):
                async with step.service("left", "x"):
                    break
            async with step.service("fails", "x"):
                await step.sh("failing", "false")

    test = PipelineTest(CI, hibernate=hibernate)
    test.mock_command("failing", exit_code=1)
    run = test.run()
    assert run.state == "failed" and run.error is not None
    assert run.error["type"] == "CommandFailed"
    states = {name: step.state for name, step in run.steps.items() if step.kind == "service"}
    assert set(states) == {f"service:{n}" for n in ("raises", "cancelled", "left", "fails")}
    assert set(states.values()) == {"passed"}


def test_the_end_of_a_block_is_asked_for_once_and_not_again_in_a_replay() -> None:
    async def code(step: Step) -> Any:
        async with step.service("db", "x"):
            await step.do("a", lambda: 1)
        await step.sleep("nap", "1 s")

    world = World(obliging=True)
    world.run(code)
    assert world.said == [
        ["start service:db", "start do:a"],
        ["finish do:a = 1", "finish service:db = None"],
        ["start sleep:nap"],
        [],
    ]
    again = World(world.journal)
    assert again.run(code) == {"suspended": True}
    assert again.said == [[]]


def test_an_open_service_is_nothing_to_wait_for() -> None:
    async def code(step: Step) -> Any:
        async with step.service("db", "x"):
            await asyncio.Event().wait()

    assert "the code waits, but for no step" in str(World(obliging=True).run(code))


def test_a_service_that_the_platform_has_cancelled_is_left_without_more_words() -> None:
    async def code(step: Step) -> Any:
        async with step.service("db", "x"):
            await step.sleep("nap", "1 s")

    journal = Journal().started("service:db").started("sleep:nap").passed("sleep:nap")
    journal.add("step_cancelled", "service:db", reason="run_ended")
    assert "was cancelled" in str(World(journal).run(code))


def test_a_script_that_rolls_back_has_no_services() -> None:
    class CI(Pipeline):
        async def run(self, event: Any, step: Any) -> None:
            async with step.service("db", "x"):
                await step.sh("migrate", "up", rollback=Rollback("down"))
            raise ValueError("later")

    run = PipelineTest(CI).run()
    assert run.rollback == {"outcome": "complete", "error": None}
    assert services_of(run)["sh:$rollback:sh:migrate"] == []


def test_a_service_that_is_never_entered_is_a_mistake() -> None:
    class CI(Pipeline):
        async def run(self, event: Any, step: Any) -> None:
            step.service("db", "x")

    run = PipelineTest(CI).run()
    assert run.error is not None
    assert "step.service('db')" in run.error["message"]
    assert "never awaited" in run.error["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "My DB"}, "the name of a service must be a host name"),
        ({"name": "localhost"}, "the name of a service must be a host name"),
        ({"script": " "}, "script must not be empty"),
        ({"ready": 70_000}, "ready.port must be between 1 and 65535"),
        ({"ready": "http://example.org/"}, "ready.http must be http://127.0.0.1:port/path"),
        ({"ready": True}, "ready must be a port, a text or Ready"),
        ({"ready": Ready()}, "Ready takes one of port, http, command and log"),
        ({"ready": Ready(port=1, log="x")}, "Ready takes one of port, http, command and log"),
        ({"timeout": "0 s"}, "timeout"),
        ({"env": {"A": 1}}, r"env\['A'\] must be text"),
        ({"cwd": "/etc"}, "cwd must be a path inside the workspace"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    step = Step(_replay())
    with pytest.raises((TypeError, ValueError), match=words):
        step.service(**{"name": "db", "script": "x", **arguments})


def _replay() -> Any:
    world = World()

    async def nothing(step: Step) -> None:
        return None

    world.run(nothing)
    return world.replay


def test_services_have_a_limit_and_names_of_their_own() -> None:
    async def deep(step: Step) -> Any:
        for number in range(9):
            await step.service(f"s{number}", "x").__aenter__()

    assert "a command may have 8 services" in str(World(obliging=True).run(deep))

    async def twice(step: Step) -> Any:
        async with step.service("db", "x"), step.service("db", "x"):
            pass

    assert "inside a block of a service of the same name" in str(World(obliging=True).run(twice))


def test_what_code_sets_for_its_own_context_stays_after_an_await() -> None:
    own: contextvars.ContextVar[str] = contextvars.ContextVar("own", default="lost")

    async def code(step: Step) -> Any:
        own.set("kept")
        await step.do("a", lambda: 1)
        return own.get()

    assert World(obliging=True).run(code) == {"returned": "kept"}
