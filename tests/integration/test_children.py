"""Child runs on a real deployment: how deep they go, and workers that die in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci_platform.errors import Conflict
from ci_platform.model import RunId, RunState, StepKey, StepKind
from tests.deployment import OWNER, deployed

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


WAITING = """
from pipelines import Pipeline, StepFailed

class Parent(Pipeline):
    async def run(self, event, step):
        try:
            await step.start("child", "Child")
        except StepFailed as error:
            return str(error)

class Child(Pipeline):
    async def run(self, event, step):
        await step.wait_for_event("go", type="go")
"""


def test_the_end_of_a_child_that_is_deleted_at_once_is_told_before(
    tmp_path: Path, guest_cache: Path
) -> None:
    with deployed(tmp_path / "data", cache=guest_cache) as deployment:
        deployment.push({".ci/pipeline.py": WAITING})
        run_id = deployment.start(pipeline="Parent")
        deployment.work()
        runs = deployment.platform.commands.runs
        (link,) = deployment.platform.store.family.children(run_id)
        runs.cancel(OWNER, RunId(link.child_id))
        runs.delete(OWNER, RunId(link.child_id))
        deployment.work()
        run = deployment.run(run_id)
        assert (run.state, run.output) == ("passed", "run #2 of 'child' has been cancelled")


def test_a_child_is_not_deleted_before_its_parent_has_noted_that_there_is_one(
    tmp_path: Path, guest_cache: Path
) -> None:
    with deployed(tmp_path / "data", cache=guest_cache) as deployment:
        deployment.push({".ci/pipeline.py": WAITING})
        run_id = deployment.start(pipeline="Parent")
        parent, commands = deployment.run(run_id), deployment.platform.commands
        key, config = StepKey(StepKind.RUN, "child"), {"pipeline": "Child", "params": {}}
        child = RunId(commands.family.start(parent, parent.commit, key, config).id)
        commands.runs.cancel(OWNER, child)
        with pytest.raises(Conflict, match="has not noted that"):
            commands.runs.delete(OWNER, child)  # else the parent would start another one
        deployment.work()
        assert deployment.run(run_id).state is RunState.PASSED
        commands.runs.delete(OWNER, child)
