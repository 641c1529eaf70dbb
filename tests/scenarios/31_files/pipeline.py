"""Files of the commit can be read anywhere, since a commit does not change."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        text = await self.env.files.read_text(".ci/pipeline.py")
        await step.sleep("a while", "1 hour")
        changed = await self.env.files.changed()

        async def inside():
            try:
                await self.env.files.read_text("../secret.key")
            except FileNotFoundError:
                return len(await self.env.files.read_text(".ci/pipeline.py"))

        return [text.splitlines()[0][:12], changed, await step.do("inside", inside) == len(text)]
