"""A wait that timed out raises, and never swallows a later event of its type."""

from pipelines import Pipeline, WaitTimeout


class Scenario(Pipeline):
    async def run(self, event, step):
        try:
            await step.wait_for_event("early", type="go", timeout="1 hour")
        except WaitTimeout:
            late = await step.wait_for_event("late", type="go")
            return late.payload
