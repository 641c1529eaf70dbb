"""A result that is not JSON fails the run at once and says which value."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.do("bad", lambda: {"rows": [1, {2, 3}]})
