"""A body that never lets go of its sandbox costs its step an attempt, and the run nothing else."""

import time

from pipelines import Pipeline, Retry


class Scenario(Pipeline):
    async def run(self, event, step):
        def stubborn(ctx):
            if ctx.attempt == 1:
                while True:
                    pass
            if ctx.attempt == 2:
                time.sleep(100_000)
            return ctx.attempt

        await step.do("before", lambda: 1)
        once = Retry(limit=2, delay="10 s", backoff="constant")
        count = await step.do("stubborn", stubborn, timeout=0.05, retries=once)
        try:
            await step.do("hopeless", lambda: time.sleep(100_000), timeout=0.05, retries=0)
        except TimeoutError as error:
            return [count, type(error).__name__]
