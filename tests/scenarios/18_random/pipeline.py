"""Randomness outside bodies is the same in every replay."""

import random
import uuid

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        before = [random.random(), str(uuid.uuid4())]
        kept = await step.do("keep", lambda: before)
        await step.sleep("nap", 60)
        return kept == before
