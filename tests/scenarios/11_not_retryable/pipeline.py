"""NonRetryable ends the retries; a caught failure is a result like any other and stays so."""

from pipelines import NonRetryable, Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        def refuse():
            raise NonRetryable("never")

        try:
            await step.do("refused", refuse)
        except Exception as error:
            await step.sleep("a replay lies between", 60)
            return [type(error).__name__, str(error)]
