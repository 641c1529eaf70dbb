"""The first handler that fails stops the rollback; a handler may not call steps."""

from pipelines import Pipeline, Rollback


class Scenario(Pipeline):
    async def run(self, event, step):
        async def step_inside():
            await step.do("more", lambda: 1)

        await step.do("first", lambda: 1, rollback=lambda: 1)
        await step.do("second", lambda: 1, rollback=Rollback(step_inside, retries=0))
        await step.do("third", lambda: 1, rollback=lambda: 1)
        raise SystemExit("enough")
