"""What the crash tests play: everything that a run can do, as far as a crash could break it."""

import asyncio

from pipelines import Pipeline, Retry, Rollback, on_manual

KEEP = Retry(limit=5, delay="0.2 s", backoff="constant")  # workers are killed all the time


class Scenario(Pipeline):
    """A bit of everything that waits or executes: bodies, commands, a timer, an event, a gate."""

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


class Undone(Pipeline):
    """Has started runs of its own, and is undone: since it fails, or since somebody says so."""

    async def run(self, event, step):
        await step.do("book", lambda: "seat", rollback=lambda output: f"{output} given back")
        await step.sh("stay", "touch bed", retries=KEEP, rollback=Rollback("rm bed", retries=KEEP))
        await step.start("child", "Child", {"n": 2})
        await step.start("apart", "Child", {"n": 3}, wait=False)
        await step.wait_for_event("go", type="go")
        raise ValueError("no car")


class Child(Pipeline):
    async def run(self, event, step):
        half = await step.do("half", lambda: event.params["n"])
        await step.sleep("nap", 0.1)
        return half * 2


class Stored(Pipeline):
    """Keeps things outside of itself, and goes on with newer code."""

    resume = "latest"

    async def run(self, event, step):
        kv, sql = self.env.storage.kv, self.env.storage.sql

        async def remember():
            await kv.put(f"seen/{event.run_id}", {"n": 1})
            await sql.execute("CREATE TABLE IF NOT EXISTS seen (run TEXT PRIMARY KEY)")
            await sql.execute("INSERT OR REPLACE INTO seen VALUES (?)", event.run_id)
            return event.run_id

        async def look():
            rows = await sql.execute("SELECT run FROM seen WHERE run = ?", known)
            return [(await kv.get(f"seen/{known}"))["n"], len(rows)]

        known = await step.do("remember", remember)
        same = await step.sh("same", "echo word=same >> $CI_OUTPUT", cache=True, retries=KEEP)
        await step.wait_for_event("go", type="go")
        code = "old"
        return [same.outputs["word"], await step.do("look", look), code]
