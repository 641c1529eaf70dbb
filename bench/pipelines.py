"""The pipelines that benchmarks run."""

HEAD = """
from pipelines import Pipeline, on_manual, on_push

class Bench(Pipeline):
    triggers = [on_manual()]
    async def run(self, event, step):
"""
THREE_STEPS = f"""{HEAD}
        a = await step.do("a", lambda: 1)
        b = await step.do("b", lambda: a + 1)
        return await step.do("c", lambda: b + 1)
"""
MANY_STEPS = f"""{HEAD}
        for n in range(200):
            await step.do("one", lambda: n)
"""
WAITING = f"""{HEAD}
        got = await step.wait_for_event("go", type="go", timeout="30 days")
        return got.payload
"""
GATE = f"""{HEAD}
        await step.approval("gate", allow_self=True)
        return await step.do("after", lambda: 1)
"""
PUSHED = f"""{HEAD.replace("[on_manual()]", "[on_push()]")}
        return await step.do("first", lambda: 1)
"""
TIMER = f"""{HEAD}
        await step.sleep_until("due", event.params["due"])
"""
EITHER = f"""{HEAD}
        if event.params == "wait":
            await step.wait_for_event("go", type="go", timeout="30 days")
        return await step.do("first", lambda: 1)
"""
