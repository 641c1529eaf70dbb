"""In decorator form parameters name the steps whose results they take."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        @step.do("left")
        def left():
            return 2

        @step.do("right")
        async def right():
            return 3

        @step.do("product", concurrent=True)
        def product(left, right):
            return left * right

        return await product()
