"""A gate for two people; the run goes on by itself when the second has answered."""

from pipelines import Pipeline


class Scenario(Pipeline):
    async def run(self, event, step):
        answer = await step.approval("ship", approvers=["ada", "bob", "eve"], required=2)
        return sorted(decision.user for decision in answer.decisions)
