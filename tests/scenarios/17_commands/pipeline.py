"""Files that a command leaves are there for the next one; a failed one leaves none."""

from pipelines import CommandFailed, Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        await step.sh("write", "echo hello > made.txt")
        try:
            await step.sh("spoil", "echo spoiled > made.txt; exit 3")
        except CommandFailed as error:
            code = error.exit_code
        read = await step.sh("read", 'echo "text=$(cat made.txt)" >> "$CI_OUTPUT"')
        return [code, read.outputs["text"]]
