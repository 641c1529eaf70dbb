"""An attempt that fails is tried again after its delay, and the step counts its attempts."""

from pipelines import Pipeline, Retry


class Scenario(Pipeline):
    async def run(self, event, step):
        def flaky(ctx):
            if ctx.attempt < 3:
                raise RuntimeError(f"attempt {ctx.attempt}")
            return ctx.attempt

        return await step.do("flaky", flaky, retries=Retry(limit=2, delay="10 s", backoff="linear"))
