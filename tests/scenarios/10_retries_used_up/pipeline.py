"""The last error fails the run, with the author's own line in the traceback."""

from pipelines import Pipeline


def body():
    raise LookupError("no such thing")


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.do("doomed", body, retries=0)
