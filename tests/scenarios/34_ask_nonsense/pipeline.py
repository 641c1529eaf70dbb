"""A question that no version of the platform asks fails the run, and only that run."""

from wit_world.imports import host

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        host.ask('{"v": 1, "capability": "../files", "method": "read_text", "arguments": {}}')
