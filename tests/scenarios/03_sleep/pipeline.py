"""A durable timer; time outside step bodies is the time of the last delivered entry."""

import time

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        before = time.time()
        await step.sleep("nap", "3 days")
        return round(time.time() - before)
