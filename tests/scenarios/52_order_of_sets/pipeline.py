"""Code that goes through sets of tasks starts its steps in one order, in every replay."""

import asyncio

from pipelines import Pipeline

MANY = 6


class Scenario(Pipeline):
    async def run(self, event, step):
        async def tidy(number):
            try:
                await step.wait_for_event(f"wait {number}", type="never")
            finally:
                await step.do(f"tidy {number}", lambda: number)

        async def fail():
            await step.sleep("a while", 1)
            raise ZeroDivisionError

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(MANY):
                    group.create_task(tidy(number))
                group.create_task(fail())
        except* ZeroDivisionError:
            await step.sleep("between", 1)
        seen = []
        for each in asyncio.as_completed([step.do(f"do {n}", lambda n=n: n) for n in range(MANY)]):
            seen.append(await each)
            await step.sleep("next", 1)
        return seen
