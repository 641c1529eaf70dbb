"""Whole runs, described by what a user sees: NN_name/pipeline.py and NN_name/expect.json.

Each is played as it comes, and with the sandbox dropped at every await, on both databases.
expect.json:

    params      of the run; start: what else it is started with
    script      what happens while it waits: {"advance": seconds}, {"event": [type, payload]},
                {"approve": [gate, user]}, {"reject": [gate, user, comment]},
                {"push": file}, {"cancel": {rollback?}}, {"expect_state": word},
                {"expect_wait": {kind, name, type?}}
    state, reason, output, error (parts of its type, message, traceback)
    steps       step -> state, all of them; attempts: step -> count; values: step -> its value
    children    step -> state of the run it started, and theirs: step/step -> state
    rollback    how it came out, if the run was rolled back
    unseen      texts that nobody gets to see in the run's journal and steps
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ci_platform.model import EntryKind, RunId
from tests.deployment import OWNER, Deployment, deployed

HERE = Path(__file__).parent
SCENARIOS = sorted(path.parent for path in HERE.glob("*/expect.json"))


def act(deployment: Deployment, run_id: RunId, action: dict[str, Any], scenario: Path) -> None:
    """Play one line of a script."""
    commands = deployment.platform.commands
    ((verb, what),) = action.items()
    match verb:
        case "advance":
            deployment.advance(what)
        case "event":
            commands.runs.send_event(OWNER, run_id, what[0], what[1])
            deployment.work()
        case "approve":
            commands.approvals.decide(
                deployment.person(what[1]), run_id, what[0], decision="approve"
            )
            deployment.work()
        case "reject":
            commands.approvals.decide(
                deployment.person(what[1]), run_id, what[0], decision="reject", comment=what[2]
            )
            deployment.work()
        case "push":
            deployment.push({".ci/pipeline.py": (scenario / what).read_text()})
        case "cancel":
            commands.runs.cancel(OWNER, run_id, **what)
            deployment.work()
        case "expect_state":
            assert deployment.run(run_id).state == what
        case "expect_wait":
            waits = deployment.run(run_id).waits
            assert {"kind": waits[0].kind, "name": waits[0].name} | (
                {"type": waits[0].type} if waits[0].type else {}
            ) == what
        case _:
            raise AssertionError(f"a script knows no {verb!r}")


@pytest.mark.parametrize("hibernate", ["auto", "always"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_the_run_ends_as_its_scenario_says(
    scenario: Path,
    hibernate: str,
    deployment_url: str | None,
    tmp_path: Path,
    guest_cache: Path,
) -> None:
    expect = json.loads((scenario / "expect.json").read_text())
    with deployed(
        tmp_path / "data", cache=guest_cache, hibernate=hibernate, database_url=deployment_url
    ) as deployment:
        deployment.push({".ci/pipeline.py": (scenario / "pipeline.py").read_text()})
        run_id = deployment.start(expect.get("params"), **expect.get("start", {}))
        deployment.work()
        for action in expect.get("script", ()):
            act(deployment, run_id, action, scenario)
        run, steps = deployment.run(run_id), deployment.steps(run_id)
        journal = deployment.journal(run_id)
        seen = deployment.seen(run_id)
        children = deployment.children(run_id)
        rollback = deployment.platform.queries.run_page(OWNER, run_id).rollback
    assert run.state == expect["state"], run.error
    assert run.output == expect.get("output")
    assert run.reason == expect.get("reason", run.reason)
    for part, text in expect.get("error", {}).items():
        assert text in getattr(run.error, part)
    assert {name: step.state for name, step in steps.items()} == expect["steps"]
    for name, count in expect.get("attempts", {}).items():
        assert steps[name].attempts == count
    assert children == expect.get("children", {})
    assert (rollback and rollback.outcome) == expect.get("rollback"), rollback
    for name, value in expect.get("values", {}).items():
        assert steps[name].value == value
    for text in expect.get("unseen", ()):
        assert text not in seen
    diverged = [entry for entry in journal if entry.kind is EntryKind.DIVERGED]
    assert [[str(entry.key or ""), entry.data["change"]] for entry in diverged] == expect.get(
        "diverged", []
    )
