"""What a sensitive step returns reaches the steps after it, and nobody's eyes."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        token = await step.do("login", lambda: {"token": "hush-" + "hush"}, sensitive=True)
        await step.sleep("until later", "1 day")
        length = await step.do("use", lambda: len(token["token"]))

        def broken():
            raise ValueError("errors are for people to read")

        try:
            await step.do("broken", broken, sensitive=True, retries=0)
        except ValueError as error:
            return [length, token["token"] == "hush-" + "hush", str(error)]
