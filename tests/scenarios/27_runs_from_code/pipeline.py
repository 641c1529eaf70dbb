"""Bodies of steps start, watch and change other runs of their repository."""

from pipelines import CapabilityError, NotGranted, Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        try:
            await self.env.runs.list()
        except NotGranted as error:
            refused = "bodies of steps" in str(error)

        async def start():
            runs = self.env.runs
            one = await runs.create("Waiter", {"number": 7}, id="our-own-id")
            more = await runs.create_batch([{"pipeline": "Waiter"}, {"id": "our-own-id"} | NAMED])
            try:
                await runs.create("Waiter", id="our-own-id")
            except CapabilityError as error:
                return [one.id, len(more), error.type]

        async def go_on():
            runs = self.env.runs
            found = await runs.get("our-own-id")
            await found.send_event("go", 3, id="d-1")
            await found.send_event("go", 3, id="d-1")  # as if this body were retried
            try:
                await found.send_event("go", 4, id="d-1")
            except CapabilityError as error:
                assert error.type == "Conflict", error
            named = await runs.list(pipeline="Waiter")
            return [found.state, len(named)]

        async def end():
            runs = self.env.runs
            first = await runs.get("our-own-id")
            status = await first.status()
            other = next(run for run in await runs.list(pipeline="Waiter") if run.id != first.id)
            other = await other.cancel()
            again = await first.restart(from_step=("wait", "go"), commit="newest", id="again")
            journal = await first.journal(type=["step_passed"], step=["wait:go"])
            ended = await runs.list(state=["passed", "cancelled"], trigger="run", limit=1)
            report = await runs.delete_batch([first.id, other.id, again.id])
            return [
                status["output"],
                [other.state, again.state, again.id],
                [entry["kind"] for entry in journal["entries"]],
                [ended[0].id == other.id, ended.cursor is not None],
                [one["status"] for one in report],
            ]

        async def foreign():
            try:
                await self.env.runs.get("run_of_nobody")
            except CapabilityError as error:
                return error.type

        found = [refused, await step.do("start", start, retries=0)]
        await step.sleep("a while", 60)
        found.append(await step.do("go on", go_on, retries=0))
        await step.sleep("a while", 60)
        found.append(await step.do("end", end, retries=0))
        found.append(await step.do("foreign", foreign))
        return found


NAMED = {"pipeline": "Waiter"}


class Waiter(Pipeline):
    async def run(self, event, step):
        got = await step.wait_for_event("go", type="go")
        return [event.params, got.payload]
