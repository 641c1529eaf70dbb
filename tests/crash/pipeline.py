"""A bit of everything that waits or executes: bodies, commands, a timer, an event, a gate."""

import asyncio

from pipelines import Pipeline, on_manual


class Scenario(Pipeline):
    triggers = [on_manual()]

    async def run(self, event, step):
        first = await step.do("first", lambda: 1)
        await step.sh("one", "echo one >> lines.txt")
        _, second = await asyncio.gather(
            step.sleep("nap", 0.1),
            step.do("second", lambda: first + 1),
        )
        go = await step.wait_for_event("go", type="go")
        await step.sh("two", "echo two >> lines.txt")
        await step.approval("ship", allow_self=True)
        read = await step.sh("read", 'echo "lines=$(echo $(cat lines.txt))" >> "$CI_OUTPUT"')
        return {"do": [first, second], "event": go.payload, "lines": read.outputs["lines"]}
