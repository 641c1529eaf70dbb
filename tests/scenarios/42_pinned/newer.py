"""The same pipeline a day later: one step more, another edited."""

from pipelines import Pipeline


class Scenario(Pipeline):
    resume = "latest"

    async def run(self, event, step):
        a = await step.do("a", lambda: "new a")
        b = await step.do("b", lambda: "new b")
        await step.sleep("night", "8 hours")
        return [a, b, await step.do("c", lambda: "new c")]
