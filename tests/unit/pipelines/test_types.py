"""What an editor knows of the authoring API: held by the type checker, and run as code too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from pipelines import CommandResult, Event, Pipeline, Step, StepContext
from pipelines.testing import PipelineTest


def plain() -> int:
    return 1


async def later(ctx: StepContext) -> str:
    return ctx.name


class Typed(Pipeline):
    async def run(self, event: Event, step: Step) -> list[str]:
        assert_type(await step.do("plain", plain), int)
        assert_type(await step.do("later", later), str)
        built = await step.sh("build", "make")
        assert_type(built, CommandResult)
        assert_type(built.outputs, Mapping[str, str])

        @step.do("declared")
        def declared(plain_result: str = "x") -> str:
            return plain_result

        return [await declared(), event.run_id]


def test_types_are_what_the_values_are() -> None:
    assert PipelineTest(Typed, Event(run_id="run_1")).run().output == ["x", "run_1"]
