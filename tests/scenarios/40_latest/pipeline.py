"""resume = latest: a run that wakes takes the newest code; finished steps keep their results."""

from pipelines import Pipeline


class Scenario(Pipeline):
    resume = "latest"

    async def run(self, event, step):
        a = await step.do("a", lambda: "old a")
        await step.sleep("night", "8 hours")
        return [a, await step.do("c", lambda: "old c")]
