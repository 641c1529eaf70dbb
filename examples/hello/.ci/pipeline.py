"""What happens to every push: look at it, test it, build it, ask a person, deploy it."""

import asyncio

from pipelines import Pipeline, on_manual, on_push


class Hello(Pipeline):
    triggers = [on_push(), on_manual()]

    async def run(self, event, step):
        plan = await step.do("plan", lambda: {"version": f"1.0.{event.number}"})
        print(f"building version {plan['version']} of {event.commit[:8]}")

        await asyncio.gather(
            step.sh("compile", "python3 -m compileall -q greeting tests"),
            step.sh("test", "python3 -m unittest discover -v tests"),
        )
        build = await step.sh("build", "sh build.sh", env={"VERSION": plan["version"]})

        # From here on this run is a few rows in a database. It may wait for a week.
        await step.approval("deploy to production", required=1, timeout="7 days")

        await step.sh("deploy", "sh deploy.sh")  # finds what `build` has made
        return {"version": plan["version"], "archive": build.outputs["archive"]}
