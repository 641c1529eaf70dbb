"""resume = latest, but the newest code does not load: the run stays on what worked, and says so."""

from pipelines import Pipeline


class Scenario(Pipeline):
    resume = "latest"

    async def run(self, event, step):
        a = await step.do("a", lambda: "old a")
        await step.sleep("night", "8 hours")
        return [a, await step.do("c", lambda: "old c")]
