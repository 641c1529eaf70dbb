"""A `__dispatch` in params is params."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        return event.params
