"""gather and TaskGroup start their steps together; a repeated name counts up."""

import asyncio

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        first = await asyncio.gather(*(step.do("part", lambda n=n: n * n) for n in range(3)))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step.do("late", lambda n=n: n)) for n in range(2)]
        return [first, [task.result() for task in tasks]]
