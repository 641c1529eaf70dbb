"""A block may wait for a person: nothing waits for the service itself, and a failure ends it."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        async with step.service("web", "echo up; sleep 600", ready="true", timeout="20 s"):
            await step.sh("before", "true")
            await step.approval("go on")
            async with step.service("broken", "echo no disk; exit 4", ready=9):
                await step.sh("after", "true")
