"""What code may ask of other runs ends at its own repository, and at trust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ci_platform.commands import StartRun
from ci_platform.commands.asked import RunsHandler
from ci_platform.errors import TooMany
from ci_platform.model import Json, RunId
from ci_platform.ports.granting import Ask, Grant
from ci_platform.ports.repositories import FileChange
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


STEP = {"kind": "sleep", "name": "long", "occurrence": 1}


def who_is(granted: Grant) -> RunId:
    assert granted.run is not None
    return granted.run.id


def foreign_run(deployment: Deployment) -> RunId:
    commands = deployment.platform.commands
    commands.repositories.create(OWNER, "other", "app")
    change = FileChange(".ci/pipeline.py", SLEEPER.encode())
    commands.repositories.commit_files(
        OWNER, "other", "app", branch="main", changes=[change], message="a change"
    )
    return commands.runs.start(OWNER, "other", "app", StartRun()).id


@pytest.mark.parametrize(
    "method", ["status", "pause", "cancel", "restart", "delete", "journal", "logs"]
)
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
        ("list", {"limit": True}, "limit"),
        ("list", {"state": ["waiting", "asleep"]}, "asleep"),
        ("list", {"created_after": "yesterday"}, "created_after"),
        ("list", {"colour": "red"}, "colour"),
        ("create", {"priority": 101}, "priority"),
        ("restart", {"id": "x", "step": 1}, "step"),
        ("restart", {"id": who_is(who), "from_step": {"kind": "sh"}}, "from_step"),
        ("restart", {"id": who_is(who), "from_step": {**STEP, "kind": "x"}}, "from_step"),
        ("restart", {"id": who_is(who), "from_step": {**STEP, "name": 7}}, "from_step"),
        ("delete_batch", {"ids": "all"}, "ids"),
        ("delete_batch", {"ids": []}, "deletes 1 to"),
        ("journal", {"id": who_is(who), "type": ["nothing"]}, "type.0"),
        ("journal", {"id": who_is(who), "step": ["nothing"]}, "not a step"),
        ("logs", {"id": who_is(who), "limit": 0}, "limit"),
        ("explode", {"id": "x"}, "explode"),
    ):
        assert named in ask(deployment, who, method, **arguments)["error"]["message"]


def test_code_that_starts_runs_without_end_is_slowed_down(deployment: Deployment) -> None:
    who = grant(deployment, deployment.start())
    runs = deployment.platform.commands.runs
    rate = Rate(per_second=0.001, burst=3)
    handler = RunsHandler(runs, lambda *asked: None, lambda *asked: None, rate)
    handler(who, "create", {})
    handler(who, "create_batch", {"runs": [{}, {}]})
    with pytest.raises(TooMany, match="starts too many runs"):
        handler(who, "create", {})
    runs.cancel(OWNER, who_is(who))
    with pytest.raises(TooMany, match="starts too many runs"):
        handler(who, "restart", {"id": who_is(who)})


def test_a_batch_is_deleted_one_by_one_with_a_report_in_the_order_asked(
    deployment: Deployment,
) -> None:
    theirs, alive, ended = foreign_run(deployment), deployment.start(), deployment.start()
    deployment.platform.commands.runs.cancel(OWNER, ended)
    who = grant(deployment, alive)
    report = ask(deployment, who, "delete_batch", ids=[alive, ended, theirs, ended, "no run"])
    assert [(one["id"], one["deleted"], one["status"]) for one in report["value"]] == [
        (alive, False, 409),
        (ended, True, 204),
        (theirs, False, 404),
        (ended, False, 404),
        ("no run", False, 400),
    ]
    assert "only a run that has ended can be deleted" in report["value"][0]["detail"]


def test_lists_are_filtered_and_go_on_where_they_were(deployment: Deployment) -> None:
    runs = [deployment.start() for _ in range(3)]
    who = grant(deployment, runs[0])
    deployment.platform.commands.runs.cancel(OWNER, runs[1])
    first = ask(deployment, who, "list", limit=2, branch="main", trigger="manual")["value"]
    assert [one["id"] for one in first["runs"]] == [runs[2], runs[1]]
    rest = ask(deployment, who, "list", limit=2, cursor=first["cursor"])["value"]
    assert ([one["id"] for one in rest["runs"]], rest["cursor"]) == ([runs[0]], None)
    states = ask(deployment, who, "list", state=["cancelled", "paused"])["value"]["runs"]
    assert [one["id"] for one in states] == [runs[1]]
    now_ms = deployment.clock.now_ms()
    later = ask(deployment, who, "list", created_after=now_ms + 1)["value"]["runs"]
    assert later == []
    assert len(ask(deployment, who, "list", created_before=now_ms + 1)["value"]["runs"]) == 3


def test_a_restart_takes_a_step_a_commit_and_an_id(deployment: Deployment) -> None:
    old, here = deployment.start(), deployment.start()
    deployment.work()
    deployment.platform.commands.runs.cancel(OWNER, old)
    newest = deployment.push({"README": "more"})
    who = grant(deployment, here)
    asked = {"id": old, "from_step": STEP, "commit": "newest", "new_id": "again-1"}
    answer = ask(deployment, who, "restart", **asked)["value"]
    run = deployment.run(RunId(answer["id"]))
    assert (run.id, run.commit) == ("again-1", newest)
    assert deployment.journal(run.id)[0].data["shared"]["from"] == "sleep:long"
    assert ask(deployment, who, "restart", **asked)["error"]["type"] == "RunExists"


def test_a_journal_is_read_from_a_cursor_with_a_filter(deployment: Deployment) -> None:
    other, here = deployment.start(), deployment.start()
    deployment.work()
    who = grant(deployment, here)
    page = ask(deployment, who, "journal", id=other, after=1, step=["sleep:long"])["value"]
    assert [one["kind"] for one in page["entries"]] == ["step_started"]
    assert page["cursor"] == deployment.run(other).last_seq
    assert ask(deployment, who, "logs", id=other)["value"] == {"lines": []}
