"""What people do to runs in every corner: pause, resume, restart from any end, delete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ci_platform.errors import Conflict, InvalidRequest
from ci_platform.model import RunId, RunState, StepKey, StepKind, WorkerId
from ci_platform.ports import RunFilter
from tests.deployment import OWNER, REPOSITORY, Deployment, deployed

PIPELINE = """
from pipelines import Pipeline, NonRetryable

class CI(Pipeline):
    async def run(self, event, step):
        how = event.params["how"]
        await step.do("begin", lambda: how)
        if how == "fail":
            raise ValueError("wrong")
        if how == "forget":
            await step.do("f", lambda: 1, retries=0)
        if how == "gate":
            await step.approval("ship", allow_self=True, timeout="1 hour")
        if how == "sleep":
            await step.sleep("nap", "1 hour")
            await step.sh("after", "echo awake")
        if how == "event":
            return (await step.wait_for_event("e", type="go", timeout="1 hour")).payload
        return how
"""


@pytest.fixture
def deployment(tmp_path: Path, guest_cache: Path) -> Iterator[Deployment]:
    with deployed(tmp_path / "data", cache=guest_cache) as made:
        made.push({".ci/pipeline.py": PIPELINE})
        yield made


def begun(deployment: Deployment, how: str) -> RunId:
    run_id = deployment.start({"how": how})
    deployment.work()
    return run_id


def test_a_paused_gate_shows_its_new_end_and_takes_an_answer_until_then(
    deployment: Deployment,
) -> None:
    run_id, commands = begun(deployment, "gate"), deployment.platform.commands
    (before,) = deployment.platform.store.approvals.of_run(run_id)
    assert commands.runs.pause(OWNER, run_id).state is RunState.PAUSED
    deployment.advance(7_200)  # longer than the gate may stay open
    assert deployment.run(run_id).state is RunState.PAUSED
    commands.runs.resume(OWNER, run_id)
    deployment.work()
    (after,) = deployment.platform.store.approvals.of_run(run_id)
    assert (before.expires_ms, after.expires_ms) != (None, None)
    assert (after.expires_ms or 0) - (before.expires_ms or 0) == 7_200_000
    (wait,) = deployment.run(run_id).waits
    assert wait.until_ms == after.expires_ms
    deployment.advance(3_500)
    assert deployment.run(run_id).state is RunState.WAITING
    commands.approvals.decide(deployment.person("ada"), run_id, "ship", decision="approve")
    deployment.work()
    assert deployment.run(run_id).state is RunState.PASSED


def test_an_answer_and_an_event_during_a_pause_are_kept_for_the_resume(
    deployment: Deployment,
) -> None:
    gated, waiting = begun(deployment, "gate"), begun(deployment, "event")
    commands = deployment.platform.commands
    for run_id in (gated, waiting):
        commands.runs.pause(OWNER, run_id)
    commands.approvals.decide(deployment.person("ada"), gated, "ship", decision="approve")
    commands.runs.send_event(OWNER, waiting, "go", 42)
    deployment.advance(7_200)
    for run_id in (gated, waiting):
        assert deployment.run(run_id).state is RunState.PAUSED
        commands.runs.resume(OWNER, run_id)
    deployment.work()
    assert deployment.run(gated).output == "gate"
    assert deployment.run(waiting).output == 42


def test_a_queued_run_is_paused_before_it_begins_and_a_pause_is_asked_for_once(
    deployment: Deployment,
) -> None:
    run_id, runs = deployment.start({"how": "pass"}), deployment.platform.commands.runs
    assert runs.pause(OWNER, run_id).state is RunState.PAUSED
    entries = len(deployment.journal(run_id))
    assert runs.pause(OWNER, run_id).state is RunState.PAUSED
    assert len(deployment.journal(run_id)) == entries
    deployment.work()
    assert deployment.steps(run_id) == {}
    runs.resume(OWNER, run_id)
    with pytest.raises(Conflict, match="is not paused"):
        runs.resume(OWNER, run_id)
    deployment.work()
    assert deployment.run(run_id).state is RunState.PASSED


def ended(deployment: Deployment, state: RunState) -> RunId:
    """A run that has come to this end."""
    if state is RunState.CANCELLED:
        run_id = begun(deployment, "sleep")
        deployment.platform.commands.runs.cancel(OWNER, run_id)
        return run_id
    if state is RunState.ERRORED:
        run_id = deployment.start({"how": "pass"})
        store = deployment.platform.store
        for _ in range(20):  # every worker that takes it is lost
            store.runs.claim(WorkerId("lost"), limit=1, lease_ms=1_000)
            store.runs.release(None)
        deployment.work()
        return run_id
    return begun(deployment, "fail" if state is RunState.FAILED else "pass")


@pytest.mark.parametrize("state", ["passed", "failed", "errored", "cancelled"])
def test_a_run_can_be_done_again_from_every_end(deployment: Deployment, state: str) -> None:
    old, runs = ended(deployment, RunState(state)), deployment.platform.commands.runs
    assert deployment.run(old).state == state
    again = runs.restart(OWNER, old)
    assert deployment.journal(again.id)[0].data["again"] == {"run": old, "number": 1}
    assert again.payload["params"] == deployment.run(old).payload["params"]
    deployment.work()
    assert deployment.run(again.id).state is not RunState.QUEUED
    page = deployment.platform.queries.run_page(OWNER, again.id)
    assert page.again is not None and (page.again.origin.number, page.again.step) == (1, None)


def test_a_run_whose_file_did_not_load_is_done_again_when_it_does(deployment: Deployment) -> None:
    deployment.push({".ci/pipeline.py": "class"})
    page = deployment.platform.queries.runs(OWNER, *REPOSITORY, which=RunFilter())
    broken, runs = page.runs[0], deployment.platform.commands.runs
    assert (broken.state, broken.pipeline) == (RunState.FAILED, ".ci/pipeline.py")
    with pytest.raises(InvalidRequest, match="does not load: line 1"):
        runs.restart(OWNER, broken.id)
    fixed = deployment.push({".ci/pipeline.py": PIPELINE.replace('event.params["how"]', "1")})
    again = runs.restart(OWNER, broken.id, commit="newest")
    assert (again.pipeline, again.commit) == ("CI", fixed)
    deployment.work()
    assert deployment.run(again.id).output == 1


@pytest.mark.parametrize("how", ["sleep", "paused", "queued"])
def test_a_run_that_goes_on_is_neither_restarted_nor_deleted(
    deployment: Deployment, how: str
) -> None:
    runs = deployment.platform.commands.runs
    run_id = deployment.start({"how": "sleep"})
    if how == "sleep":
        deployment.work()
    if how == "paused":
        runs.pause(OWNER, run_id)
    with pytest.raises(Conflict, match="only a run that has ended can be deleted"):
        runs.delete(OWNER, run_id)
    with pytest.raises(Conflict, match="only a finished run can be restarted"):
        runs.restart(OWNER, run_id, from_step=StepKey(StepKind.SLEEP, "nap"))
    assert deployment.run(run_id).id == run_id
