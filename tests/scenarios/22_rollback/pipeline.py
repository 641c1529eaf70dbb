"""What an uncaught failure leaves is undone: each step that has a handler, the last one first."""

from pipelines import Pipeline, Retry, Rollback


class Scenario(Pipeline):
    async def run(self, event, step):
        def cancel_flight(ctx, output, error):
            if ctx.attempt == 1:
                raise OSError("busy")
            assert output == {"seat": "12A"}, output
            assert "no car" in str(error), error
            return f"undone by attempt {ctx.attempt}"

        def no_car():
            raise ValueError("no car")

        undo = Rollback(cancel_flight, retries=Retry(limit=1, delay="1 hour"))
        await step.do("flight", lambda: {"seat": "12A"}, rollback=undo)
        await step.do("plain", lambda: 1)
        await step.sh("hotel", "echo room=7 >> $CI_OUTPUT; touch booked", rollback="rm booked")

        @step.do("tour", rollback=lambda output: output)
        async def tour():
            return "tour"

        await tour()
        await step.do("car", no_car, retries=0, rollback=lambda ctx, output: output)
