"""A gate that nobody answers expires."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.approval("ship", approvers=["ada"], timeout="7 days")
