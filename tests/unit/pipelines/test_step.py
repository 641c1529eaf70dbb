"""The calls of `step`: defaults, checks that name the argument, and the decorator form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipelines import Cache, Choice, Pipeline, Retry, Step, StepContext
from pipelines.testing import PipelineTest
from tests.unit.pipelines.replay_world import World


def run_with(code: Callable[[Step], Any], world: World | None = None) -> Any:
    answer = (world or World(obliging=True)).run(code)
    return answer.get("returned", answer)


def error_of(call: Callable[[Step], Any]) -> dict[str, Any]:
    async def code(step: Step) -> Any:
        await call(step)

    error: dict[str, Any] = World(obliging=True).run(code)["raised"]
    return error


def config_of(call: Callable[[Step], Any]) -> dict[str, Any]:
    async def code(step: Step) -> Any:
        await call(step)

    world = World()
    world.run(code)
    config: dict[str, Any] = world.commands[0]["config"]
    return config


def test_the_defaults_are_those_of_the_design() -> None:
    assert config_of(lambda step: step.do("x", lambda: 1)) == {
        "retries": {"limit": 5, "delay_ms": 10_000, "backoff": "exponential"},
        "timeout_ms": 600_000,
        "sensitive": False,
        "rollback": False,
    }
    command = config_of(lambda step: step.sh("x", "true"))
    assert (command["retries"]["limit"], command["timeout_ms"]) == (0, 3_600_000)
    assert config_of(lambda step: step.wait_for_event("x", type="y")) == {
        "type": "y",
        "timeout_ms": 86_400_000,
    }


def test_partial_retries_keep_the_other_defaults() -> None:
    config = config_of(lambda step: step.do("x", lambda: 1, retries=2))
    assert config["retries"] == {"limit": 2, "delay_ms": 10_000, "backoff": "exponential"}
    assert config == config_of(lambda step: step.do("x", lambda: 1, retries=Retry(limit=2)))


def test_an_approval_carries_its_form() -> None:
    config = config_of(
        lambda step: step.approval(
            "go", approvers=["role:maintainer"], form={"where": Choice("a", "b")}, timeout="7 days"
        )
    )
    assert config["form"]["where"]["options"] == ["a", "b"]
    assert (config["required"], config["allow_self"]) == (1, False)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.do("", print), "name must not be empty"),
        (lambda s: s.do("x" * 257, print), "name may have 256 characters, got 257"),
        (lambda s: s.do("a\nb", print), "name must not have control characters"),
        (lambda s: s.do("$x", print), "name must not start with $"),
        (lambda s: s.do("x#2", print), "name must not end in # and digits"),
        (lambda s: s.do("\ud800", print), "name is not valid Unicode"),
        (lambda s: s.do(7, print), "name must be text, got int"),
        (lambda s: s.do("x", 7), "fn must be a function, got int"),
        (lambda s: s.do("x", asyncio.sleep(1)), "pass the function itself, without calling it"),
        (lambda s: s.do("x", lambda a: 1), "fn may take only ctx, but <lambda> needs 'a'"),
        (lambda s: s.do("x", print, timeout=0), "timeout must be at least"),
        (lambda s: s.do("x", print, retries="3"), "retries must be a whole number, got str"),
        (lambda s: s.do("x", print, retries=-1), "retries must be between 0 and 10000"),
        (lambda s: s.do("x", print, retries=True), "retries must be a whole number, got bool"),
        (lambda s: s.do("x", print, sensitive=1), "sensitive must be True or False"),
        (lambda s: s.do("x", print, concurrent=True), "concurrent is for the decorator form"),
        (lambda s: s.do("x", print, colour=1), "unexpected keyword argument 'colour'"),
        (lambda s: s.sh("x", "  "), "script must not be empty"),
        (lambda s: s.sh("x", ["ls"]), "script must be text, got list"),
        (lambda s: s.sh("x", "a\0"), "script must not have NUL"),
        (lambda s: s.sh("x", "y", shell="fish"), "shell must be one of sh, bash, got 'fish'"),
        (lambda s: s.sh("x", "y", cwd="/etc"), "cwd must be a path inside the workspace"),
        (lambda s: s.sh("x", "y", cwd="a/../../b"), "cwd must be a path inside the workspace"),
        (lambda s: s.sh("x", "y", artifacts="dist"), "artifacts must be a list of texts"),
        (lambda s: s.sh("x", "y", artifacts=["../x"]), "artifacts must be a path inside"),
        (lambda s: s.sh("x", "y", cache="yes"), "cache must be True or False"),
        (lambda s: s.sh("x", "y", cache=Cache(inputs="src")), "cache.inputs must be a list"),
        (lambda s: s.sh("x", "y", cache=Cache(inputs=["/etc"])), "must be inside the workspace"),
        (lambda s: s.sh("x", "y", cache=Cache(key="a\n")), "cache.key must not have control"),
        (lambda s: s.sh("x", "y", cache_dirs={"a": "/etc"}), "a must be a directory below ~/"),
        (lambda s: s.sh("x", "y", cache_dirs={"a": "~/../x"}), "a must be a directory below ~/"),
        (lambda s: s.sh("x", "y", cache_dirs={f"a{n}": "~/x" for n in range(11)}), "10 directo"),
        (lambda s: s.sh("x", "y", labels=["gpu "]), "labels: 'gpu ' is not a label"),
        (lambda s: s.sh("x", "y", labels=[f"a{n}" for n in range(17)]), "labels may have 16"),
        (lambda s: s.sh("x", "y", on_lost="ask"), "on_lost must be one of retry, fail"),
        (lambda s: s.sh("x", "y", env={"A B": "1"}), "env has a bad name 'A B'"),
        (lambda s: s.sh("x", "y", env={"A": 1}), "env['A'] must be text, got int: use str"),
        (lambda s: s.sh("x", "y", env=["A"]), "env must be a dict of texts, got list"),
        (lambda s: s.sh("x", "y", secrets="KEY"), "secrets must be a list of texts"),
        (lambda s: s.sh("x", "y", retries=Retry(delay=lambda c, e: 1)), "no delay function"),
        (lambda s: s.sh("x", "y", timeout="1 parsec"), "timeout has the unknown unit 'parsec'"),
        (lambda s: s.sleep("x", "366 days"), "duration must be at most 365 days"),
        (lambda s: s.sleep_until("x", "noon"), "when must be ISO 8601"),
        (lambda s: s.wait_for_event("x", type="a b"), "type must be letters, digits, _ and -"),
        (lambda s: s.wait_for_event("x", type="-a"), "type must be letters"),
        (lambda s: s.wait_for_event("x", type="é"), "type must be letters"),
        (lambda s: s.wait_for_event("x", type="y", timeout=0.5), "timeout must be at least 1 sec"),
        (lambda s: s.approval("x", required=0), "required must be between 1 and 100"),
        (lambda s: s.approval("x", approvers="ann"), "approvers must be a list of texts"),
        (lambda s: s.approval("x", form={"a": "b"}), "form['a'] must be Text, Boolean"),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(call: Callable[[Step], Any], said: str) -> None:
    error = error_of(call)
    assert said in error["message"]
    assert error["type"] in ("TypeError", "ValueError")


def test_repeated_names_are_counted() -> None:
    async def code(step: Step) -> Any:
        return [await step.do("x", lambda ctx: [ctx.name, ctx.count]) for _ in range(3)]

    assert run_with(code) == [["x", 1], ["x", 2], ["x", 3]]


def test_bodies_may_be_async_and_may_take_ctx() -> None:
    async def code(step: Step) -> Any:
        async def body(ctx: StepContext) -> Any:
            return [ctx.name, ctx.count, ctx.attempt, ctx.config["timeout_ms"]]

        return await step.do("x", body, timeout="5 s")

    assert run_with(code) == ["x", 1, 1, 5_000]


def test_changing_the_config_of_ctx_changes_nothing() -> None:
    async def code(step: Step) -> Any:
        def body(ctx: Any) -> None:
            ctx.config["retries"]["limit"] = 99

        await step.do("x", body)
        return await step.do("y", lambda ctx: ctx.config["retries"]["limit"])

    assert run_with(code) == 5


# --- decorators ---


def test_parameters_named_after_earlier_steps_get_their_results() -> None:
    async def code(step: Step) -> Any:
        @step.do("lint")
        def lint() -> int:
            return 1

        @step.do("unit tests")
        async def unit() -> int:
            return 2

        @step.do("build", concurrent=True)
        def build(lint: int, unit: int, ctx: StepContext, flags: str = "-O") -> Any:
            return [lint, unit, ctx.name, flags]

        return await build()

    assert run_with(code) == [1, 2, "build", "-O"]


def test_a_step_that_many_need_runs_once_and_a_direct_call_runs_it_again() -> None:
    runs: list[str] = []

    async def code(step: Step) -> Any:
        @step.do("base")
        def base() -> int:
            runs.append("base")
            return len(runs)

        @step.do("left")
        def left(base: int) -> int:
            return base

        @step.do("right")
        def right(base: int) -> int:
            return base

        first = await asyncio.gather(left(), right())
        return [*first, await base()]

    assert run_with(code) == [1, 1, 2]


def test_a_result_of_a_direct_call_is_what_dependents_get() -> None:
    runs: list[int] = []

    async def code(step: Step) -> Any:
        @step.do("base")
        def base() -> int:
            runs.append(1)
            return 7

        @step.do("next")
        def after(base: int) -> int:
            return base + 1

        return [await base(), await after()]

    assert run_with(code) == [7, 8]
    assert len(runs) == 1


def test_concurrent_gathers_what_a_step_needs() -> None:
    def declared(concurrent: bool) -> list[list[str]]:
        async def code(step: Step) -> Any:
            @step.do("a")
            def a() -> int:
                return 1

            @step.do("b")
            def b() -> int:
                return 2

            @step.do("c", concurrent=concurrent)
            def c(a: int, b: int) -> int:
                return a + b

            return await c()

        world = World(obliging=True)
        assert run_with(code, world) == 3
        return world.said

    assert declared(True)[0] == ["start do:a", "start do:b"]
    assert declared(False)[0] == ["start do:a"]


def test_an_error_of_a_needed_step_reaches_the_caller_and_the_step_never_runs() -> None:
    async def code(step: Step) -> Any:
        @step.do("bad", retries=0)
        def bad() -> None:
            raise ValueError("broken")

        @step.do("never")
        def never(bad: None) -> None:
            raise AssertionError("it ran")

        try:
            await never()
        except ValueError as error:
            return str(error)

    assert run_with(code) == "broken"


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda unknown: 1, "the parameter 'unknown' is neither ctx nor an earlier declared step"),
        (lambda *args: 1, "must not take *args"),
        (lambda **options: 1, "must not take *options"),
    ],
)
def test_a_parameter_that_is_no_step_is_an_error_where_it_is_declared(
    declare: Callable[..., Any], said: str
) -> None:
    async def code(step: Step) -> Any:
        step.do("x")(declare)

    assert said in World().run(code)["raised"]["message"]


def test_the_name_may_be_left_out_in_the_decorator_form() -> None:
    async def code(step: Step) -> Any:
        @step.do()
        def compile_all(ctx: StepContext) -> str:
            return ctx.name

        return await compile_all()

    assert run_with(code) == "compile_all"


def test_the_environment_says_what_it_does_not_grant() -> None:
    class Reaching(Pipeline):
        async def run(self, event: Any, step: Step) -> Any:
            return self.env.secrets

    run = PipelineTest(Reaching).run()
    assert run.error is not None
    assert run.error["message"].startswith("self.env.secrets is not granted to this run")
