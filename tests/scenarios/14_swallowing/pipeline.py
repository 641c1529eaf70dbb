"""Suspension is never raised into the author's code, so nothing there can catch it."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        seen = []
        try:
            await step.sleep("nap", 60)
        except BaseException as error:
            seen.append(repr(error))
            raise
        finally:
            seen.append("finally")
        return seen
