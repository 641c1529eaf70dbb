"""Events are kept from the run's creation on, first in first out by type, each consumed once."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.sleep("first", 60)
        a = await step.wait_for_event("a", type="go")
        b = await step.wait_for_event("b", type="go")
        c = await step.wait_for_event("c", type="other")
        return [a.payload, b.payload, c.payload]
