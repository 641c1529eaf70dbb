"""Child runs on a real deployment: how deep they go, and workers that die in between."""

from __future__ import annotations

from pathlib import Path

from ci_platform.model import RunState, StepKey, StepKind
from tests.deployment import deployed

NESTED = """
from pipelines import Pipeline, StepFailed

class Nested(Pipeline):
    async def run(self, event, step):
        try:
            inner = await step.start("inner", "Nested")
            return inner.output + 1
        except StepFailed as error:
            assert "10 deep at most" in str(error), error
            return 0
"""


def test_runs_that_start_each_other_go_ten_deep(tmp_path: Path, guest_cache: Path) -> None:
    with deployed(tmp_path / "data", cache=guest_cache) as deployment:
        deployment.push({".ci/pipeline.py": NESTED})
        run_id = deployment.start()
        deployment.work()
        run = deployment.run(run_id)
    assert (run.state, run.output) == (RunState.PASSED, 10)


def test_a_child_is_created_once_whoever_dies_in_between(tmp_path: Path, guest_cache: Path) -> None:
    with deployed(tmp_path / "data", cache=guest_cache) as deployment:
        deployment.push({".ci/pipeline.py": NESTED})
        run_id = deployment.start()
        parent, family = deployment.run(run_id), deployment.platform.commands.family
        key, config = StepKey(StepKind.RUN, "inner"), {"pipeline": "Nested", "params": {}}
        first = family.start(parent, parent.commit, key, {**config, "wait": True})
        # The worker dies here: the child exists, the parent's journal does not know of it.
        assert family.pending() == 1
        again = family.start(parent, parent.commit, key, {**config, "wait": True})
        assert again == first
        deployment.work()
        children = deployment.platform.queries.store.family.children(run_id)
        assert [link.child_id for link in children] == [first.id]
        assert deployment.run(run_id).state is RunState.PASSED
