"""How long to wait before the next attempt may be a function; one that is broken ends the tries."""

from pipelines import NonRetryableDelayError, Pipeline, Retry


class Busy(Exception):
    """Says when to come back."""


async def as_told(ctx, error):
    return f"{error} minutes" if isinstance(error, Busy) else ctx.attempt


class Scenario(Pipeline):
    async def run(self, event, step):
        def ask(ctx):
            if ctx.attempt == 1:
                raise Busy("7")
            return ctx.attempt

        def fail():
            raise OSError("down")

        found = [await step.do("ask", ask, retries=Retry(limit=1, delay=as_told))]
        try:
            retries = Retry(limit=3, delay=lambda ctx, error: "soon")
            await step.do("broken", fail, retries=retries)
        except NonRetryableDelayError as error:
            found.append("broken" in str(error))
        return found
