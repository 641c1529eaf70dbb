"""Pinned runs keep their code; runs that follow their ref take the newest that works."""

from __future__ import annotations

from ci_platform.model import (
    Description,
    EntryKind,
    PipelineDescription,
    Resume,
    RunId,
    RunState,
)
from tests.unit.worker.world import COMMIT, MAIN, NEWER, REPOSITORY, World, pipeline

OLD = """
a = await step.do("a", lambda: 1)
await step.sleep("nap", 60)
return [a, await step.do("b", lambda: "old")]
"""
NEW = """
a = await step.do("a", lambda: 2)
await step.sleep("nap", 60)
return [a, await step.do("b", lambda: "new")]
"""
INSERTED = """
a = await step.do("a", lambda: 2)
between = await step.do("between", lambda: "inserted")
await step.sleep("nap", 60)
return [a, between, await step.do("b", lambda: "new")]
"""
WITHOUT_A = """
await step.sleep("nap", 60)
return await step.do("b", lambda: "new")
"""


def asleep(world: World, *, resume: Resume = Resume.LATEST) -> RunId:
    """A run of OLD in the middle of its nap."""
    run_id = world.start(pipeline(OLD), resume=resume)
    world.work()
    assert world.state(run_id) is RunState.WAITING
    return run_id


def push(world: World, code: str, commit: str = NEWER) -> None:
    world.source.put(commit, code)


def diverged(world: World, run_id: RunId) -> list[tuple[str, str]]:
    return [
        (str(entry.key) if entry.key else "", entry.data["change"])
        for entry in world.journal(run_id)
        if entry.kind is EntryKind.DIVERGED
    ]


def test_a_pinned_run_never_sees_a_later_push() -> None:
    world = World()
    run_id = asleep(world, resume=Resume.PINNED)
    push(world, pipeline(NEW))
    world.later(60)
    assert world.run(run_id).output == [1, "old"]
    assert world.run(run_id).commit == COMMIT


def test_the_latest_code_runs_what_is_left_and_finished_steps_keep_their_results() -> None:
    world = World()
    run_id = asleep(world)
    push(world, pipeline(NEW))
    world.later(60)
    run = world.run(run_id)
    assert (run.output, run.commit) == ([1, "new"], NEWER)
    assert world.values(run_id, EntryKind.COMMIT_RESOLVED, "commit") == [NEWER]
    commits = {str(step.key): step.commit for step in world.view(run_id).steps.values()}
    assert commits == {"do:a": COMMIT, "sleep:nap": COMMIT, "do:b": NEWER}


def test_a_ref_that_is_gone_leaves_the_run_on_its_commit() -> None:
    world = World()
    run_id = asleep(world)
    del world.source.refs[MAIN]
    world.later(60)
    assert world.run(run_id).output == [1, "old"]


def test_a_step_inserted_before_a_finished_one_runs_and_is_noted() -> None:
    world = World()
    run_id = asleep(world)
    push(world, pipeline(INSERTED))
    world.later(60)
    assert world.run(run_id).output == [1, "inserted", "new"]
    assert diverged(world, run_id) == [("do:between", "inserted")]


def test_a_finished_step_that_is_no_longer_reached_is_noted() -> None:
    world = World()
    run_id = asleep(world)
    push(world, pipeline(WITHOUT_A))
    world.later(60)
    assert world.run(run_id).output == "new"
    assert ("do:a", "missing") in diverged(world, run_id)


def test_code_that_does_not_load_leaves_the_run_on_the_commit_that_works_and_says_so() -> None:
    world = World()
    run_id = asleep(world)
    push(world, "def broken(:\n")
    world.later(60)
    run = world.run(run_id)
    assert (run.output, run.commit) == ([1, "old"], COMMIT)
    (entry,) = [e for e in world.journal(run_id) if e.kind is EntryKind.DIVERGED]
    assert (entry.data["change"], entry.data["commit"]) == ("fell_back", NEWER)
    assert entry.data["error"]["type"] == "SyntaxError"


def test_code_whose_replay_raises_leaves_the_run_on_the_commit_that_works() -> None:
    world = World()
    run_id = asleep(world)
    push(world, pipeline('await step.do("a", lambda: 1)\nraise ValueError("no")'))
    world.later(60)
    assert world.run(run_id).output == [1, "old"]
    assert diverged(world, run_id) == [("", "fell_back")]


def test_a_commit_that_did_not_work_is_not_tried_again_but_a_newer_one_is() -> None:
    world = World()
    run_id = world.start(
        pipeline('await step.sleep("x", 60)\nawait step.sleep("y", 60)\nreturn "old"'),
        resume=Resume.LATEST,
    )
    world.work()
    push(world, "1 / 0\n")
    world.later(60)
    assert diverged(world, run_id) == [("", "fell_back")]
    push(
        world,
        pipeline('await step.sleep("x", 60)\nawait step.sleep("y", 60)\nreturn "fixed"'),
        "3" * 40,
    )
    world.later(60)
    assert world.run(run_id).output == "fixed"
    assert diverged(world, run_id) == [("", "fell_back")]


def with_policy(world: World, policy: str) -> None:
    files = world.source.load(REPOSITORY, NEWER)
    declared = PipelineDescription(name="CI", triggers=(), on_divergence=policy)
    world.store.descriptions.put(files.digest, Description((declared,)))


def test_divergence_holds_the_run_if_the_pipeline_says_so_and_a_resume_accepts_it() -> None:
    world = World()
    run_id = asleep(world)
    push(world, pipeline(INSERTED))
    with_policy(world, "hold")
    world.later(60)
    run = world.run(run_id)
    assert (run.state, run.reason) == ("paused", "divergence")
    assert "do:between" not in world.steps(run_id)
    world.resume(run_id)
    world.work()
    assert world.run(run_id).output == [1, "inserted", "new"]


def test_divergence_fails_the_run_if_the_pipeline_says_so() -> None:
    world = World()
    run_id = asleep(world)
    push(world, pipeline(WITHOUT_A))
    with_policy(world, "fail")
    world.later(60)
    run = world.run(run_id)
    assert (run.state, run.reason) == ("failed", "diverged")


def test_a_run_that_has_done_nothing_yet_starts_on_the_newest_commit() -> None:
    world = World()
    run_id = world.start(pipeline(OLD), resume=Resume.LATEST)
    push(world, pipeline(NEW))
    world.work()
    world.later(60)
    assert world.run(run_id).output == [2, "new"]
