"""One rejection ends the gate; uncaught it fails the run."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.approval("ship", approvers=["ada", "bob"])
        await step.do("never", lambda: 1)
