"""Cancelling a run cancels the runs it started, and theirs."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.start("apart", Leaf, wait=False)
        await step.start("middle", Middle)


class Middle(Pipeline):
    async def run(self, event, step):
        await step.start("leaf", Leaf)


class Leaf(Pipeline):
    async def run(self, event, step):
        await step.sleep("long", "30 days")
