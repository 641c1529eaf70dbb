"""Three steps in a row; each result is JSON, and None is a result like any other."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        a = await step.do("a", lambda: {"n": event.params["n"]})
        b = await step.do("b", lambda: None)

        async def c():
            return [a["n"], b]

        return await step.do("c", c)
