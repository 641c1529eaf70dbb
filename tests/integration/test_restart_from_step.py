"""Running again from a step: what came before is shared, at the same commit or another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ci_platform.app import create_asgi
from ci_platform.errors import InvalidRequest
from ci_platform.model import SYSTEM, Origin, RunId, RunState, StepKey, StepKind
from ci_platform.queries.explain import Again
from tests.deployment import OWNER, Deployment, deployed
from tests.web.browser import PASSWORD, Browser

PIPELINE = """
import asyncio, random
from pipelines import Pipeline

class CI(Pipeline):
    async def run(self, event, step):
        first = await step.do("first", lambda: random.getrandbits(64))
        script = "echo making; date +%N > made.txt; echo at=$(cat made.txt) >> $CI_OUTPUT"
        await step.sh("prepare", script, artifacts=["made.txt"])
        async with asyncio.timeout(3600):
            answer = await step.wait_for_event("answer", type="answer")
        await step.approval("ship it", allow_self=True)
        slow = asyncio.create_task(step.sleep("slow", "10 days"))
        seen = await step.sh("deploy", "test ! -e no; echo at=$(cat made.txt) >> $CI_OUTPUT")
        slow.cancel()
        if WRONG:
            raise ValueError("wrong")
        return [first, answer.payload, seen.outputs["at"]]
"""


def at(wrong: bool) -> dict[str, str]:
    return {".ci/pipeline.py": PIPELINE.replace("WRONG", str(wrong))}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["auto", "always"])
def deployment(
    request: pytest.FixtureRequest, tmp_path: Path, guest_cache: Path
) -> Iterator[Deployment]:
    with deployed(tmp_path / "data", cache=guest_cache, hibernate=request.param) as made:
        made.push(at(wrong=True))
        yield made


def failed_run(deployment: Deployment) -> RunId:
    commands = deployment.platform.commands
    run_id = deployment.start()
    deployment.work()
    commands.runs.send_event(OWNER, run_id, "answer", 42)
    deployment.work()
    commands.approvals.decide(
        deployment.person("ada"), run_id, "ship it", decision="approve", comment="ship it!"
    )
    deployment.work()
    assert deployment.run(run_id).state is RunState.FAILED
    return run_id


def test_a_fixed_commit_goes_on_from_the_step_and_keeps_what_came_before(
    deployment: Deployment,
) -> None:
    old = failed_run(deployment)
    fixed = deployment.push(at(wrong=False))
    deployment.clock.advance(86_400)
    deploy = StepKey(StepKind.SH, "deploy")
    runs = deployment.platform.commands.runs
    new = runs.restart(OWNER, old, from_step=deploy, commit=fixed)
    deployment.work()
    run, before, after = deployment.run(new.id), deployment.steps(old), deployment.steps(new.id)
    assert run.state is RunState.PASSED, run.error
    made = before["sh:prepare"].value["outputs"]["at"]
    assert run.output == [before["do:first"].value, 42, made]
    for name in ("do:first", "sh:prepare", "wait:answer", "approval:ship it"):
        assert after[name].value == before[name].value
        assert after[name].started_ms == before[name].started_ms
    assert after["sh:deploy"].started_ms > before["sh:deploy"].started_ms
    assert (after["sh:prepare"].commit, after["sh:deploy"].commit) == (
        deployment.run(old).commit,
        fixed,
    )
    created = deployment.journal(new.id)[0]
    assert created.data["shared"] == {"run": old, "number": 1, "from": "sh:deploy"}


def test_what_is_shared_is_shown_as_the_other_run_left_it(deployment: Deployment) -> None:
    """Through two generations: steps say which run executed them, not which one handed them on."""
    old, queries = failed_run(deployment), deployment.platform.queries
    deploy = StepKey(StepKind.SH, "deploy")
    runs = deployment.platform.commands.runs
    second = runs.restart(OWNER, old, from_step=deploy)
    deployment.work()
    third = runs.restart(OWNER, second.id, from_step=deploy)
    deployment.work()
    page = queries.run_page(OWNER, third.id)
    (gate,) = page.approvals
    assert gate.approval.outcome == "approved"
    (answer,) = gate.approval.decisions
    assert (answer.user, answer.decision, answer.comment) == ("ada", "approve", "ship it!")
    origins = {str(one.key): one.origin for one in page.steps if one.key.kind != "timer"}
    assert origins.pop("sh:deploy") is None
    assert origins.pop("sleep:slow", None) is None
    assert set(origins.values()) == {Origin(old, 1)}
    assert page.again == Again(Origin(second.id, 2), "sh:deploy")
    assert [line.text for line in queries.log(OWNER, third.id, "sh:prepare")][:1] == ["making"]
    assert "sh:prepare" in [info.step for info in queries.logs(OWNER, third.id)]
    assert [info for info in page.logs if info.step == "sh:prepare"]
    (kept,) = queries.artifacts(OWNER, third.id)
    runs.delete(OWNER, second.id)
    runs.delete(OWNER, old)
    assert b"".join(queries.artifact(OWNER, third.id, kept.sha256)[1])
    assert queries.log_tail(OWNER, third.id, "sh:prepare") == []
    assert queries.approval(OWNER, third.id, "ship it").approval.decisions == (answer,)


@pytest.mark.anyio
async def test_the_pages_of_both_runs_tell_of_each_other(deployment: Deployment) -> None:
    old = failed_run(deployment)
    deployment.push(at(wrong=False))
    deployment.platform.commands.people.create_user(SYSTEM, "ana", PASSWORD, admin=True)
    async with Browser(create_asgi(deployment.platform)) as browser:
        await browser.sign_in()
        page = (await browser.get(f"/runs/{old}")).page
        assert "made.txt" in page.one(id="run-artifacts").text
        form = page.one(id="rerun")
        sent = {"csrf": form.one(name="csrf").get("value"), "from": "sh:deploy", "at": "newest"}
        answer = await browser.post(form.get("action"), sent)
        deployment.work()
        page = (await browser.get(answer.location)).page
        assert "Goes on from sh:deploy of run #1" in page.one(id="run-head").text
        gate = page.one("section", class_="approval").text
        assert "Approved in run #1: ship it" in gate and "ship it!" in gate
        assert deployment.run(old).commit[:8] in gate, "the commit that was approved"
        assert "from run #1" in page.one("tr", data_step="sh:prepare").text
        assert "from run #1" not in page.one("tr", data_step="sh:deploy").text
        assert "prepare from run #1" in page.one(id="run-artifacts").text
        log = (await browser.get(f"{answer.location}?step=sh:prepare")).page.one(id="log")
        assert "from run #1" in log.text and "making" in log.text
        step = (await browser.get(f"{answer.location}/steps/sh:prepare")).page
        assert "Executed by run #1" in step.text


def test_from_the_wait_on_its_event_is_wanted_again(deployment: Deployment) -> None:
    old = failed_run(deployment)
    wait = StepKey(StepKind.WAIT, "answer")
    new = deployment.platform.commands.runs.restart(OWNER, old, from_step=wait)
    deployment.work()
    assert deployment.run(new.id).state is RunState.WAITING
    steps = deployment.steps(new.id)
    assert [name for name in steps if steps[name].state == "passed"] == ["do:first", "sh:prepare"]
    assert steps["do:first"].value == deployment.steps(old)["do:first"].value


def test_from_the_first_step_on_all_is_done_again(deployment: Deployment) -> None:
    old = failed_run(deployment)
    first = StepKey(StepKind.DO, "first")
    new = deployment.platform.commands.runs.restart(OWNER, old, from_step=first)
    deployment.work()
    assert deployment.steps(new.id)["do:first"].value != deployment.steps(old)["do:first"].value


def test_a_step_that_the_run_never_came_to_is_an_error(deployment: Deployment) -> None:
    old, runs = failed_run(deployment), deployment.platform.commands.runs
    with pytest.raises(InvalidRequest, match="has not come to the step 'sh:never'"):
        runs.restart(OWNER, old, from_step=StepKey(StepKind.SH, "never"))
    with pytest.raises(InvalidRequest):
        runs.restart(OWNER, old, from_step=StepKey(StepKind.SH, "deploy"), commit="c" * 40)
