"""A run starts runs of its own repository, and waits for those it wants to hear of."""

import asyncio

from pipelines import Pipeline, StepFailed


class Scenario(Pipeline):
    async def run(self, event, step):
        one, two = await asyncio.gather(
            step.start("one", Double, {"number": 4}), step.start("two", "Double", {"number": 5})
        )
        told = await step.start("apart", Sleeper, wait=False)
        try:
            await step.start("bad", Double, {"number": None})
        except StepFailed as error:
            failed = [error.type, error.run_id is not None]
        try:
            await step.start("unknown", "Nothing")
        except StepFailed as error:
            refused = "there is no pipeline 'Nothing'" in str(error)
        return [one.output, two.output, two.state, told.state, failed, refused]


class Double(Pipeline):
    async def run(self, event, step):
        await step.sleep("a while", "1 hour")
        return await step.do("double", lambda: event.params["number"] * 2, retries=0)


class Sleeper(Pipeline):
    async def run(self, event, step):
        await step.sleep("long", "30 days")
