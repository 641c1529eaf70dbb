"""asyncio.timeout is durable: the wait is given up, and that is journaled too."""

import asyncio

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        try:
            async with asyncio.timeout(30):
                await step.wait_for_event("answer", type="answer")
        except TimeoutError:
            return await step.do("give up", lambda: "nobody answered")
