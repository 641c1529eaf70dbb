"""What time does to a run: timers, timeouts, retries, lost workers."""

from __future__ import annotations

import pytest

from ci_platform.effects import CloseApproval, StopOperations
from ci_platform.engine import body_overran, event_sent, settle
from ci_platform.engine.fold import StepView
from ci_platform.engine.limits import LOST_LEASES_MAX
from ci_platform.model import (
    EntryKind,
    ErrorInfo,
    FinishAttempt,
    RunState,
    StepKey,
    StepKind,
    StepState,
)
from tests.unit.engine.journal import (
    LIMITS,
    Journal,
    do,
    passed,
    row,
    run_with,
    start_approval,
    start_do,
    start_sh,
    start_sleep,
    start_wait,
)

FAILURE = ErrorInfo("OSError", "flaky")


def step(journal: Journal, kind: StepKind, name: str) -> StepView:
    return journal.view.steps[StepKey(kind, name)]


def test_a_sleep_passes_exactly_when_its_time_has_come() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("nap", 60_000))
    journal.suspend()
    assert journal.ready_ms == 61_000
    journal.now_ms = 60_999
    journal.claim()
    assert step(journal, StepKind.SLEEP, "nap").state is StepState.WAITING
    journal.suspend()
    journal.now_ms = 61_000
    journal.claim()
    assert step(journal, StepKind.SLEEP, "nap").state is StepState.PASSED


def test_a_sleep_until_an_instant_that_is_past_is_over_at_once() -> None:
    journal = Journal(now_ms=5_000).claim()
    command = start_sleep("nap", 1)
    command = type(command)(command.key, {"until_ms": 4_000})
    journal.ask(command)
    assert step(journal, StepKind.SLEEP, "nap").state is StepState.PASSED


def test_due_timers_are_written_in_the_order_of_their_times() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("long", 3_000), start_sleep("short", 1_000), start_sleep("mid", 2_000))
    journal.suspend()
    journal.now_ms = 10_000
    journal.claim()
    names = [e.key.name for e in journal.entries if e.kind is EntryKind.STEP_PASSED and e.key]
    assert names == ["short", "mid", "long"]


def test_a_wait_that_times_out_fails_and_never_swallows_a_later_event() -> None:
    journal = Journal().claim()
    journal.ask(start_wait("early", "go", timeout_ms=1_000))
    journal.suspend()
    journal.now_ms = 2_001  # nobody has claimed the run since, and an event comes
    journal.decide(lambda view, now: event_sent(view, "go", 1, "ada", now, limits=LIMITS))
    assert step(journal, StepKind.WAIT, "early").state is StepState.FAILED
    assert (step(journal, StepKind.WAIT, "early").error or {})["type"] == "WaitTimeout"
    journal.claim()
    journal.ask(start_wait("late", "go"))
    assert step(journal, StepKind.WAIT, "late").value["payload"] == 1


def test_an_approval_that_expires_fails_and_its_gate_closes() -> None:
    journal = Journal().claim()
    journal.ask(start_approval("ship", timeout_ms=1_000))
    journal.suspend()
    journal.now_ms += 1_000
    journal.claim()
    assert (step(journal, StepKind.APPROVAL, "ship").error or {})["type"] == "WaitTimeout"
    assert CloseApproval(StepKey(StepKind.APPROVAL, "ship"), "expired") in journal.effects


def test_a_retry_starts_when_its_delay_is_over_and_not_before() -> None:
    journal = Journal().claim()
    journal.ask(start_do("flaky"))
    journal.ask(FinishAttempt(do("flaky"), 1, error=FAILURE))
    journal.suspend()
    assert journal.ready_ms == 11_000
    assert [(w.kind, w.name, w.until_ms) for w in row(journal).waits] == [
        ("retry", "flaky", 11_000)
    ]
    journal.now_ms = 11_000
    journal.claim()
    flaky = step(journal, StepKind.DO, "flaky")
    assert (flaky.attempt, flaky.state) == (2, StepState.RUNNING)


def test_a_body_whose_worker_was_lost_used_up_its_attempt_and_is_tried_again_at_once() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    journal.lose().claim()
    assert journal.kinds_of(do("build")) == ["step_started", "attempt_failed", "attempt_started"]
    assert journal.view.steps[do("build")].losses == 1


def test_a_body_whose_worker_is_lost_in_every_attempt_fails() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    for _ in range(3):
        journal.lose().claim()
    build = journal.view.steps[do("build")]
    assert (build.state, build.attempt) == (StepState.FAILED, 3)
    assert (build.error or {})["type"] == "LostWorker"


def test_a_finished_body_is_not_lost_with_its_worker() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    journal.ask(passed("build", 7))
    journal.lose().claim()
    assert journal.view.steps[do("build")].value == 7
    assert journal.kinds_of(do("build")) == ["step_started", "step_passed"]


def test_a_command_is_not_lost_with_the_worker_that_started_it() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("test"))
    journal.lose().claim()
    assert step(journal, StepKind.SH, "test").state is StepState.RUNNING


def test_a_run_that_loses_every_worker_is_errored_and_not_tried_for_ever() -> None:
    journal = Journal()
    for _ in range(LOST_LEASES_MAX):
        journal.add(EntryKind.RUN_CLAIMED)
        journal.lose()
    journal.claim()
    assert journal.view.state is RunState.ERRORED
    assert journal.view.reason == "lost_worker"


def test_progress_between_lost_workers_counts_from_anew() -> None:
    journal = Journal()
    for number in range(LOST_LEASES_MAX * 2):
        journal.claim()
        journal.ask(start_do("step", number + 1))
        journal.lose()
    journal.claim()
    assert journal.view.state is RunState.RUNNING


def test_a_run_over_its_timeout_fails_and_takes_its_commands_along() -> None:
    journal = Journal(run=run_with(timeout_ms=60_000)).claim()
    journal.ask(start_sh("test"))
    journal.suspend()
    assert journal.ready_ms == 61_000
    journal.now_ms = 61_000
    journal.claim()
    assert (journal.view.state, journal.view.reason) == (RunState.FAILED, "timeout")
    assert StopOperations() in journal.effects
    assert step(journal, StepKind.SH, "test").state is StepState.CANCELLED


def test_settling_twice_adds_nothing() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("nap", 10), start_wait("go", "go", timeout_ms=5))
    journal.now_ms += 20
    assert journal.decide(settle)
    assert not journal.decide(settle)


@pytest.mark.parametrize("count", [5_000])
def test_settling_a_run_with_many_sleepers_touches_only_those_that_are_due(count: int) -> None:
    journal = Journal().claim()
    journal.ask(*[start_sleep(f"nap {n}", 1_000 * n) for n in range(1, count + 1)])
    journal.now_ms += 2_500
    assert len(journal.decide(settle).drafts) == 2


def test_a_body_that_had_to_be_stopped_uses_up_its_attempt_and_waits_its_delay() -> None:
    journal = Journal().claim()
    journal.ask(start_do("stubborn"), start_do("beside"))
    journal.decide(lambda view, now_ms: body_overran(view, do("stubborn"), now_ms))
    view = journal.view
    stubborn, beside = view.steps[do("stubborn")], view.steps[do("beside")]
    assert (stubborn.error or {})["type"] == "StepTimeout"
    assert stubborn.until_ms == journal.now_ms + 10_000
    assert (beside.error or {})["type"] == "LostWorker"
    assert beside.until_ms == journal.now_ms  # no fault of its own: at once


def test_a_delay_function_that_never_answers_ends_the_tries() -> None:
    journal = Journal().claim()
    journal.ask(start_do("asked"))
    journal.decide(lambda view, now_ms: body_overran(view, do("asked"), now_ms, asking=True))
    step = journal.view.steps[do("asked")]
    assert step.state is StepState.FAILED
    assert (step.error or {})["type"] == "NonRetryableDelayError"
    assert "asked" in (step.error or {})["message"]
