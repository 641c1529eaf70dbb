"""What a step stores is there for the steps after it, and SQL has no way out of its database."""

from pipelines import CapabilityError, Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        kv, sql = self.env.storage.kv, self.env.storage.sql

        async def remember():
            await kv.put("deploys/1", {"version": "1.0"})
            await kv.put("deploys/2", None)
            await kv.put("other", [1, 2])
            await kv.delete("other")
            await sql.execute("CREATE TABLE IF NOT EXISTS times (name TEXT PRIMARY KEY, seconds)")
            for row in [("unit", 1.5), ("lint", 0.25)]:
                await sql.execute("INSERT OR REPLACE INTO times VALUES (?, ?)", *row)

        await step.do("remember", remember)
        await step.sleep("a day", "1 day")

        async def look():
            refusals = []
            for statement in ("ATTACH ':memory:' AS other", "PRAGMA writable_schema = 1"):
                try:
                    await sql.execute(statement)
                except CapabilityError as error:
                    refusals.append(str(error))
            return {
                "keys": await kv.list("deploys/"),
                "first": await kv.get("deploys/1"),
                "gone": await kv.get("other", "nothing"),
                "times": await sql.execute("SELECT * FROM times ORDER BY seconds"),
                "refusals": refusals,
            }

        return await step.do("look", look)
