"""What a push starts, by the built-in git store's event."""

from __future__ import annotations

import pytest

from ci_platform.commands import StartRun
from ci_platform.errors import RunExists
from ci_platform.model import SYSTEM, Push, RefUpdate, RunState
from git_store.names import KEEP
from tests.integration.api.front import BASE_URL, BROKEN, PUSHED, Front, pipeline_file


def test_a_push_starts_a_run_and_tells_the_pusher(front: Front) -> None:
    repository = front.repository()
    run = front.runs(repository)[0]
    assert front.said == [f"sluice: run #1 started, {BASE_URL}/runs/{run.id}"]
    assert (run.state, run.trigger, run.ref) == (RunState.QUEUED, "push", "refs/heads/main")
    assert run.event["message"] == "change"
    assert run.payload["params"] == {}


def test_each_pipeline_that_matches_gets_a_run(front: Front) -> None:
    both = pipeline_file(
        {"name": "CI", "triggers": [{"kind": "push"}]},
        {"name": "Docs", "triggers": [{"kind": "push", "paths": ["docs/**"]}]},
    )
    repository = front.repository(pipeline=both)
    assert [run.pipeline for run in front.runs(repository)] == ["CI"]
    front.push(repository, {"docs/a.md": "x"})
    assert {run.pipeline for run in front.runs(repository)} == {"CI", "Docs"}
    assert front.said[0].endswith(" (CI)")


def test_a_push_that_is_told_twice_starts_nothing_twice(front: Front) -> None:
    repository = front.repository()
    commit = front.runs(repository)[0].commit
    push = Push(
        id="push_1",
        repository_id=repository.id,
        at_ms=front.clock.now_ms(),
        actor="ada",
        actor_id=None,
        updates=[RefUpdate("refs/heads/main", None, commit)],
    )
    first = front.commands.pushes.received(push)
    assert front.commands.pushes.received(push) == first
    assert len(front.runs(repository)) == 2


def test_a_file_that_does_not_load_is_a_failed_run_with_the_line(front: Front) -> None:
    repository = front.repository(pipeline=BROKEN)
    run = front.runs(repository)[0]
    assert run.state is RunState.FAILED
    assert run.error is not None and run.error.type == "SyntaxError"
    assert front.said[0] == (
        "sluice: .ci/pipeline.py does not load: line 1: SyntaxError: invalid syntax"
    )
    assert f"/runs/{run.id}" in front.said[1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({".ci/pipeline.py": ""}, ".ci/pipeline.py is empty"),
        ({".ci/pipeline.py/x.py": "1"}, ".ci/pipeline.py is a directory, not a file"),
        ({".ci/pipeline.py": "# " + "x" * 200_000}, "100,000 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_names_path_and_limit(
    front: Front, files: dict[str, str | None], said: str
) -> None:
    repository = front.repository(pipeline=None)
    front.push(repository, files)
    run = front.runs(repository)[0]
    assert run.state is RunState.FAILED
    assert run.error is not None and said in run.error.message
    assert said in front.said[0]


def test_a_repository_without_a_pipeline_gets_no_run(front: Front) -> None:
    repository = front.repository(pipeline=None)
    front.push(repository, {"README": "hello"})
    assert not front.runs(repository)
    assert "there is no .ci/pipeline.py" in front.said[0]


def test_a_branch_that_no_pipeline_wants_is_said_so(front: Front) -> None:
    file = pipeline_file({"name": "CI", "triggers": [{"kind": "push", "branches": ["main"]}]})
    repository = front.repository(pipeline=None)
    front.push(repository, {".ci/pipeline.py": file}, branch="topic")
    assert front.said == ["sluice: no pipeline matches topic (declared: CI)"]
    assert not front.runs(repository)


def test_a_skip_token_on_the_head_commit_starts_nothing(front: Front) -> None:
    repository = front.repository(pipeline=None)
    front.push(repository, {".ci/pipeline.py": PUSHED}, message="typo [skip ci]")
    assert front.said == ["sluice: skipped: [skip ci] in the commit message"]
    assert not front.runs(repository)


def test_a_deleted_ref_starts_nothing(front: Front) -> None:
    repository = front.repository(pipeline=None)
    push = Push(
        id="push_1",
        repository_id=repository.id,
        at_ms=0,
        actor="ada",
        actor_id=None,
        updates=[RefUpdate("refs/heads/main", "1" * 40, None)],
    )
    assert front.commands.pushes.received(push) == []


def test_a_described_file_is_described_once(front: Front) -> None:
    repository = front.repository()
    front.push(repository, {"a": "1"})
    front.push(repository, {"a": "2"})
    assert front.sandbox.asked == 1


def test_a_file_that_did_not_load_is_asked_again(front: Front) -> None:
    repository = front.repository(pipeline=BROKEN)
    front.push(repository, {"a": "1"})
    assert front.sandbox.asked == 2


def test_a_commit_is_kept_until_the_last_run_of_it_is_deleted(front: Front) -> None:
    repository = front.repository()
    first = front.finish(front.runs(repository)[0].id)
    second = front.commands.runs.start(SYSTEM, "acme", "widget", StartRun())
    front.finish(second.id)
    assert first.commit == second.commit
    hidden = KEEP + first.commit
    for run, still in [(first, True), (second, False)]:
        kept = front.git.refs.get(repository.id, hidden)
        assert kept is not None and kept.sha == first.commit
        front.commands.runs.delete(SYSTEM, run.id)
        assert (front.git.refs.get(repository.id, hidden) is not None) is still


def test_a_run_that_is_refused_leaves_no_commit_kept(front: Front) -> None:
    repository = front.repository()
    front.commands.runs.start(SYSTEM, "acme", "widget", StartRun(id="mine"))
    commit = front.push(repository, {"a": "b"}, message="x [skip ci]")
    with pytest.raises(RunExists, match="mine"):
        front.commands.runs.start(SYSTEM, "acme", "widget", StartRun(id="mine"))
    assert front.git.refs.get(repository.id, KEEP + commit) is None


def test_a_push_whose_listener_died_is_dispatched_later(front: Front) -> None:
    repository = front.repository(pipeline=None)
    front.sandbox.broken = True
    front.push(repository, {".ci/pipeline.py": PUSHED})
    assert not front.runs(repository)
    front.sandbox.broken = False
    assert front.errands.run_once() == 1
    assert len(front.runs(repository)) == 1
    assert front.errands.run_once() == 0


def test_a_push_that_never_can_be_dispatched_is_given_up_and_audited(front: Front) -> None:
    repository = front.repository(pipeline=None)
    front.sandbox.broken = True
    front.push(repository, {".ci/pipeline.py": PUSHED})
    assert front.errands.run_once() == 0
    front.clock.advance(25 * 3600)
    assert front.errands.run_once() == 1
    assert front.parts.outbox.pending() == []
    assert front.store.audit.list(limit=1)[0]["action"] == "push given up"
