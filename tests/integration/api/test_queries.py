"""What pages are made of, and that nobody sees more than their own."""

from __future__ import annotations

import pytest

from ci_platform.commands import StartRun
from ci_platform.errors import Forbidden, NotSignedIn, RunNotFound, StepNotFound
from ci_platform.identity import ANONYMOUS
from ci_platform.model import SYSTEM, Actor, Repository, Role, RunState, WorkerId
from ci_platform.ports import RunFilter
from ci_platform.ports.housekeeping import WorkerRecord
from tests.integration.api.front import BROKEN, PUSHED, Front, pipeline_file


def person(front: Front, name: str) -> Actor:
    found = front.store.identity.user_by_name(name)
    return front.identity.of_user(found[0] if found else front.user(name))


def fail(front: Front, repository: Repository) -> str:
    """A run of the usual pipeline that its author's code lets fail."""
    run = front.commands.runs.start(SYSTEM, repository.owner, repository.name, StartRun())
    front.fail(run.id)
    return run.id


def test_home_shows_what_needs_this_actor(front: Front) -> None:
    repository = front.repository()
    ada = front.user("ada")
    front.role(ada, repository, Role.WRITER)
    gated = front.runs(repository)[0]
    front.approval(gated.id)
    running = front.commands.runs.start(SYSTEM, "acme", "widget", StartRun())
    home = front.queries.home(person(front, "ada"))
    assert [one.run.id for one in home.approvals] == [gated.id]
    assert [one.run.id for one in home.running] == [running.id]
    assert [one.name for one in home.repositories] == ["widget"]
    assert not home.may_create and not home.finished

    front.commands.approvals.decide(person(front, "ada"), gated.id, "deploy", decision="approve")
    assert not front.queries.home(person(front, "ada")).approvals


def test_home_of_a_stranger_is_empty(front: Front) -> None:
    front.approval(front.runs(front.repository())[0].id)
    home = front.queries.home(person(front, "eve"))
    assert not (home.approvals or home.running or home.finished or home.repositories)


def test_newly_failing_is_the_first_failure_of_a_pipeline_on_a_ref(front: Front) -> None:
    repository = front.repository()
    front.finish(front.runs(repository)[0].id)
    assert not front.queries.home(SYSTEM).failing
    first = fail(front, repository)
    home = front.queries.home(SYSTEM)
    assert [one.run.id for one in home.failing] == [first]
    fail(front, repository)
    assert not front.queries.home(SYSTEM).failing  # it still fails: that is no news


def test_a_repository_s_page_knows_its_pipelines_and_inputs(front: Front) -> None:
    inputs = {"target": {"type": "text", "default": "x"}}
    file = pipeline_file(
        {"name": "CI", "triggers": [{"kind": "push"}]},
        {"name": "Release", "triggers": [{"kind": "manual", "inputs": inputs}]},
    )
    front.repository(pipeline=file)
    page = front.queries.repository_page(SYSTEM, "acme", "widget", which=RunFilter())
    assert page.pipelines == ["CI", "Release"] and page.has_pipeline
    assert page.described.pipelines[1].triggers[0].inputs == inputs
    assert page.head is not None and page.head.message.startswith("change")
    assert list(page.branches) == ["main"]


@pytest.mark.parametrize(
    ("pipeline", "has", "error"),
    [(None, False, None), (BROKEN, True, "SyntaxError"), ("", True, "SourceError")],
)
def test_a_repository_s_page_says_why_there_is_nothing_to_run(
    front: Front, pipeline: str | None, has: bool, error: str | None
) -> None:
    repository = front.repository(pipeline=None)
    if pipeline is not None:
        front.push(repository, {".ci/pipeline.py": pipeline})
    page = front.queries.repository_page(SYSTEM, "acme", "widget", which=RunFilter())
    assert page.has_pipeline is has
    assert (page.described.error and page.described.error.type) == error


def test_a_run_s_page_holds_steps_gates_and_who_paused_it(front: Front) -> None:
    run = front.runs(front.repository())[0]
    front.approval(run.id)
    front.print(run.id, "$run", "hello")
    front.commands.runs.pause(SYSTEM, run.id)
    page = front.queries.run_page(SYSTEM, run.id)
    assert [str(step.key) for step in page.steps] == ["approval:deploy"]
    assert [gate.approval.key.name for gate in page.approvals] == ["deploy"]
    assert [(log.step, log.lines) for log in page.logs] == [("$run", 1)]
    assert page.pause_requested_by == "sluice" and page.cancelled_by is None
    assert page.commit is not None and page.run.state is RunState.PAUSED
    assert front.queries.approval(SYSTEM, run.id, "deploy").approval.outcome is None
    for name in ("nope", "deploy#2", ""):
        with pytest.raises(StepNotFound):
            front.queries.approval(SYSTEM, run.id, name)


def test_a_run_is_found_by_its_number(front: Front) -> None:
    run = front.runs(front.repository())[0]
    assert front.queries.run_by_number(SYSTEM, "acme", "widget", 1).id == run.id
    with pytest.raises(RunNotFound):
        front.queries.run_by_number(SYSTEM, "acme", "widget", 2)


def test_no_question_is_answered_to_a_stranger(front: Front) -> None:
    run = front.runs(front.repository())[0]
    eve = person(front, "eve")
    queries = front.queries
    for who, error in [(ANONYMOUS, NotSignedIn), (eve, RunNotFound)]:
        for ask in (queries.run, queries.run_page, queries.journal, queries.logs):
            with pytest.raises(error):
                ask(who, run.id)
        with pytest.raises(error):
            queries.log(who, run.id, "$run")
        with pytest.raises(error):
            queries.log_tail(who, run.id, "$run")
    for ask_instance in (queries.users, queries.audit, queries.system):
        with pytest.raises(Forbidden):
            ask_instance(eve)
        with pytest.raises(NotSignedIn):
            ask_instance(ANONYMOUS)
    with pytest.raises(NotSignedIn):
        queries.home(ANONYMOUS)


def test_the_system_page_names_who_holds_runs(front: Front) -> None:
    front.repository()
    system = front.queries.system(SYSTEM)
    assert (system.due, list(system.workers)) == (1, [])
    now_ms = front.clock.now_ms()
    front.store.workers.beat(WorkerRecord(WorkerId("w"), "host", 1, now_ms, now_ms, 10_000))
    front.claim()
    system = front.queries.system(SYSTEM)
    assert [(one.worker, one.runs, one.alive) for one in system.workers] == [("w", 1, True)]
    assert (system.due, system.counts[RunState.RUNNING]) == (0, 1)


def test_a_removed_pipeline_says_so(front: Front) -> None:
    repository = front.repository()
    front.push(repository, {".ci/pipeline.py": None, "README": PUSHED})
    page = front.queries.repository_page(SYSTEM, "acme", "widget", which=RunFilter())
    assert not page.has_pipeline and page.pipelines == []
