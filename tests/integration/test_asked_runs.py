"""What code may ask of other runs ends at its own repository, and at trust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ci_platform.commands import StartRun
from ci_platform.commands.asked import RunsHandler
from ci_platform.errors import TooMany
from ci_platform.granting import Ask, Grant
from ci_platform.model import Json, RunId
from ci_platform.ports import FileChange
from ci_platform.rates import Rate
from tests.deployment import OWNER, REPOSITORY, Deployment, deployed

SLEEPER = """
from pipelines import Pipeline

class Sleeper(Pipeline):
    async def run(self, event, step):
        await step.sleep("long", "30 days")
"""


@pytest.fixture
def deployment(tmp_path: Path, guest_cache: Path) -> Iterator[Deployment]:
    with deployed(tmp_path / "data", cache=guest_cache) as made:
        made.push({".ci/pipeline.py": SLEEPER})
        yield made


def grant(deployment: Deployment, run_id: RunId) -> Grant:
    run = deployment.run(run_id)
    return Grant(run.repository_id, run.commit, run=run, body=True, trusted=run.trusted)


def ask(deployment: Deployment, who: Grant, method: str, **arguments: Json) -> Json:
    return deployment.platform.capabilities.ask(who, Ask("runs", method, arguments))


def foreign_run(deployment: Deployment) -> RunId:
    commands = deployment.platform.commands
    commands.repositories.create(OWNER, "other", "app")
    change = FileChange(".ci/pipeline.py", SLEEPER.encode())
    commands.repositories.commit_files(
        OWNER, "other", "app", branch="main", changes=[change], message="a change"
    )
    return commands.runs.start(OWNER, "other", "app", StartRun()).id


@pytest.mark.parametrize("method", ["status", "pause", "cancel", "restart", "delete"])
def test_runs_of_other_repositories_are_not_there(deployment: Deployment, method: str) -> None:
    theirs = foreign_run(deployment)
    who = grant(deployment, deployment.start())
    answer = ask(deployment, who, method, id=theirs)
    assert answer["error"]["type"] == "RunNotFound"
    listed = ask(deployment, who, "list")["value"]["runs"]
    assert theirs not in [run["id"] for run in listed]


def test_untrusted_code_and_code_between_steps_start_nothing(deployment: Deployment) -> None:
    who = grant(deployment, deployment.start())
    for refused in (replace(who, trusted=False), replace(who, body=False)):
        assert ask(deployment, refused, "create")["error"]["type"] == "NotGranted"


def test_what_code_starts_counts_as_caused_by_whoever_caused_the_run(
    deployment: Deployment,
) -> None:
    ada = deployment.person("ada")
    first = deployment.platform.commands.runs.start(ada, *REPOSITORY, StartRun())
    started = ask(deployment, grant(deployment, first.id), "create")["value"]
    run = deployment.run(started["id"])
    assert (run.actor_id, run.actor, run.trigger) == (ada.id, f"run #{first.number}", "run")


def test_odd_arguments_are_refused_with_their_name(deployment: Deployment) -> None:
    who = grant(deployment, deployment.start())
    for method, arguments, named in (
        ("create", {"parms": {}}, "parms"),
        ("create", {"ref": 7}, "ref"),
        ("create_batch", {"runs": [7]}, "runs"),
        ("list", {"state": "asleep"}, "asleep"),
        ("list", {"limit": 1_000}, "limit"),
        ("explode", {"id": "x"}, "explode"),
    ):
        assert named in ask(deployment, who, method, **arguments)["error"]["message"]


def test_code_that_starts_runs_without_end_is_slowed_down(deployment: Deployment) -> None:
    who = grant(deployment, deployment.start())
    runs = deployment.platform.commands.runs
    handler = RunsHandler(runs, lambda actor, run_id: None, Rate(per_second=0.001, burst=3))
    handler(who, "create", {})
    handler(who, "create_batch", {"runs": [{}, {}]})
    with pytest.raises(TooMany, match="starts too many runs"):
        handler(who, "create", {})
