"""Code between steps runs again in every replay, so it may not use storage."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.do("something", lambda: 1)
        await self.env.storage.kv.put("count", 1)
