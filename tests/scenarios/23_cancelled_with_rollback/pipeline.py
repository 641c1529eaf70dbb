"""A cancelled run is undone from wherever it stands, and its own code never hears of it."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        def undo(output, error):
            return [output, type(error).__name__]

        try:
            await step.do("build", lambda: "built", rollback=undo)
            await step.do("build", lambda: "again", rollback=undo)
            await step.sleep("long", "30 days")
        finally:
            await step.do("never", lambda: 1)
