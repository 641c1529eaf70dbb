"""Steps that start runs, and what becomes of them when one of the two ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci_platform.effects import ReleaseChildren
from ci_platform.engine import Child, accept, cancel, child_ended, unwanted
from ci_platform.errors import PipelineError
from ci_platform.model import (
    AbandonStep,
    ErrorInfo,
    Json,
    Run,
    RunId,
    RunState,
    StartStep,
    StepKey,
    StepKind,
    StepState,
)
from tests.unit.engine.journal import LIMITS, RUN, Journal, row

KEY = StepKey(StepKind.RUN, "deploy")
CHILD = Child("run_child", 8)


def asked(child: Child = CHILD, *, wait: bool = True) -> Journal:
    journal = Journal().claim()
    command = StartStep(KEY, {"pipeline": "Deploy", "params": {}, "wait": wait})
    journal.decide(
        lambda view, now_ms: accept(view, [command], now_ms, limits=LIMITS, children={KEY: child})
    )
    return journal


def ended(state: RunState, **changes: Json) -> Run:
    return replace(RUN, id=RunId("run_child"), number=8, state=state, **changes)


def tell(journal: Journal, child: Run) -> None:
    journal.decide(lambda view, now_ms: told(child_ended(view, KEY, child, now_ms)))


def told(decision: Json) -> Json:
    assert decision is not None
    return decision


def test_a_step_waits_for_its_run_and_returns_its_output() -> None:
    journal = asked().suspend()
    (wait,) = row(journal).waits
    assert (wait.kind, wait.name) == ("run", "deploy")
    tell(journal, ended(RunState.PASSED, output=[1]))
    step = journal.view.steps[KEY]
    assert step.value == {"id": "run_child", "number": 8, "state": "passed", "output": [1]}
    assert journal.state is RunState.QUEUED


def test_a_step_that_does_not_wait_has_passed_at_once() -> None:
    step = asked(wait=False).view.steps[KEY]
    assert (step.state, step.value) == (StepState.PASSED, {"id": "run_child", "number": 8})


def test_a_run_that_failed_fails_the_step_that_waits_for_it() -> None:
    journal = asked()
    tell(journal, ended(RunState.FAILED, error=ErrorInfo("ValueError", "no")))
    error = journal.view.steps[KEY].error or {}
    assert error["message"] == "run #8 of 'deploy' has failed: ValueError: no"
    assert (error["type"], error["data"]["type"]) == ("StepFailed", "ValueError")
    assert error["data"]["id"] == "run_child"


def test_a_run_that_could_not_be_started_fails_its_step() -> None:
    step = asked(Child("", 0, "there is no pipeline 'Deploy'")).view.steps[KEY]
    assert step.state is StepState.FAILED
    assert "started no run: there is no pipeline" in (step.error or {})["message"]


def test_nobody_hears_of_a_run_twice_or_too_early() -> None:
    child = ended(RunState.PASSED)
    assert child_ended(Journal().claim().view, KEY, child, 0) is None
    journal = asked()
    tell(journal, child)
    assert not child_ended(journal.view, KEY, child, 0)


def test_a_step_that_is_given_up_lets_go_of_its_run() -> None:
    journal = asked()
    assert not unwanted(journal.view, KEY, waits=True)
    journal.ask(AbandonStep(KEY))
    assert ReleaseChildren() in journal.effects
    assert unwanted(journal.view, KEY, waits=True)


def test_a_cancelled_run_wants_none_of_its_children_any_more() -> None:
    journal = asked(wait=False)
    assert not unwanted(journal.view, KEY, waits=False)
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms))
    assert unwanted(journal.view, KEY, waits=False)


def test_where_nobody_starts_runs_the_step_says_so() -> None:
    command = StartStep(KEY, {"pipeline": "Deploy", "params": {}, "wait": True})
    with pytest.raises(PipelineError, match="nobody here to start runs"):
        accept(Journal().claim().view, [command], 0, limits=LIMITS)
