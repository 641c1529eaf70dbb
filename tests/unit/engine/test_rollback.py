"""A run that failed or was cancelled undoes its steps, and then ends as it would have."""

from __future__ import annotations

import pytest

from ci_platform.effects import CloseApproval, StopOperations
from ci_platform.engine import accept, cancel, mismatched, raised, returned, steps
from ci_platform.engine.limits import Limits
from ci_platform.engine.summary import rollback
from ci_platform.errors import PipelineError
from ci_platform.model import (
    EntryKind,
    ErrorInfo,
    FinishAttempt,
    Mismatch,
    Raised,
    Returned,
    Rollback,
    RollbackOutcome,
    RunState,
    StartStep,
    StepKey,
    StepKind,
    StepState,
)
from tests.unit.engine.journal import (
    DO_CONFIG,
    LIMITS,
    Journal,
    do,
    passed,
    row,
    run_with,
    shown,
    start_approval,
    start_do,
    start_sh,
)

BROKEN = Raised(ErrorInfo("ValueError", "it broke"))
HANDLER = {**DO_CONFIG, "retries": {"limit": 1, "delay_ms": 1_000, "backoff": "constant"}}


def undo(name: str, kind: str = "do", occurrence: int = 1) -> StepKey:
    return StepKey(StepKind.DO, f"$rollback:{kind}:{name}", occurrence)


def begun(*names: str) -> Journal:
    """A run whose steps of these names have passed, all with handlers."""
    journal = Journal().claim()
    for name in names:
        journal.ask(start_do(name, rollback=True))
        journal.ask(passed(name, name.upper()))
    return journal


def fail(journal: Journal, outcome: Raised = BROKEN) -> Journal:
    journal.decide(lambda view, now_ms: raised(view, outcome, now_ms, LIMITS))
    return journal


def finish(journal: Journal, key: StepKey) -> None:
    journal.ask(StartStep(key, HANDLER))
    journal.ask(FinishAttempt(key, 1))


def test_a_failed_run_is_queued_to_undo_its_steps_the_last_one_first() -> None:
    journal = begun("a", "b")
    journal.ask(start_do("plain"), start_do("c", rollback=True))
    fail(journal)
    entry = next(one for one in journal.entries if one.kind is EntryKind.ROLLBACK_STARTED)
    assert entry.data["steps"] == [["do", "c", 1], ["do", "b", 1], ["do", "a", 1]]
    assert (shown(journal), journal.ready_ms, row(journal).hold) == (
        RunState.QUEUED,
        journal.now_ms,
        False,
    )
    assert journal.view.steps[do("c")].state is StepState.CANCELLED
    assert rollback(journal.view) == Rollback(RollbackOutcome.RUNNING, None)


def test_what_is_open_is_stopped_before_anything_is_undone() -> None:
    journal = begun("a")
    journal.ask(start_sh("slow"), start_approval("ship"))
    fail(journal)
    assert StopOperations() in journal.effects
    assert CloseApproval(None, "cancelled") in journal.effects
    assert not journal.view.open


def test_when_all_is_undone_the_run_ends_as_it_would_have() -> None:
    journal = fail(begun("a", "b")).claim()
    finish(journal, undo("b"))
    finish(journal, undo("a"))
    journal.decide(lambda view, now_ms: returned(view, Returned(None), now_ms, LIMITS))
    assert shown(journal) is RunState.FAILED
    assert row(journal).error == ErrorInfo("ValueError", "it broke")
    assert journal.entries[-1].data["rollback"] == {"outcome": "complete", "error": None}
    assert rollback(journal.view) == Rollback(RollbackOutcome.COMPLETE, None)
    assert [step.key.name for step in steps(journal.view)][2:] == [
        "$rollback:do:b",
        "$rollback:do:a",
    ]


def test_a_handler_that_fails_ends_the_rollback_and_not_the_reason_of_the_run() -> None:
    journal = fail(begun("a", "b")).claim()
    journal.ask(StartStep(undo("b"), HANDLER))
    error = ErrorInfo("OSError", "the hotel is gone")
    journal.ask(FinishAttempt(undo("b"), 1, error=error))
    journal.now_ms += 1_000
    journal.ask()
    journal.ask(FinishAttempt(undo("b"), 2, error=error))
    fail(journal, Raised(error))
    assert shown(journal) is RunState.FAILED
    assert row(journal).error == ErrorInfo("ValueError", "it broke")
    told = rollback(journal.view)
    assert told is not None and told.error is not None
    assert (told.outcome, told.error.type) == (RollbackOutcome.FAILED, "OSError")


def test_a_guest_that_leaves_a_handler_out_is_not_believed() -> None:
    journal = fail(begun("a", "b")).claim()
    finish(journal, undo("b"))
    journal.decide(lambda view, now_ms: returned(view, Returned(None), now_ms, LIMITS))
    told = rollback(journal.view)
    assert told is not None and told.error is not None
    assert (told.outcome, told.error.message) == ("failed", "the handler of 'a' did not run")


@pytest.mark.parametrize("key", [do("more"), undo("a"), undo("b", "sh"), undo("b", occurrence=2)])
def test_nothing_but_the_next_handler_starts_during_a_rollback(key: StepKey) -> None:
    journal = fail(begun("a", "b")).claim()
    with pytest.raises(PipelineError, match="rolled back: only the handlers"):
        accept(journal.view, [StartStep(key, HANDLER)], 0, limits=Limits())


def test_names_of_handlers_are_the_platforms_own() -> None:
    with pytest.raises(PipelineError, match="begins with"):
        accept(begun("a").view, [StartStep(undo("a"), HANDLER)], 0, limits=Limits())


def test_a_cancel_with_rollback_takes_the_lease_and_undoes() -> None:
    journal = begun("a")
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms, rollback=True))
    assert (shown(journal), row(journal).hold) == (RunState.QUEUED, False)
    again = journal.decide(lambda view, now_ms: cancel(view, "bob", now_ms, rollback=True))
    assert not again
    journal.claim()
    finish(journal, undo("a"))
    journal.decide(lambda view, now_ms: returned(view, Returned(None), now_ms, LIMITS))
    assert (shown(journal), row(journal).reason) == (RunState.CANCELLED, "user")


def test_a_plain_cancel_undoes_nothing_and_ends_a_rollback_that_goes_on() -> None:
    journal = begun("a")
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms))
    assert "rollback" not in journal.entries[-1].data
    journal = fail(begun("a")).claim()
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms))
    assert shown(journal) is RunState.CANCELLED
    assert journal.entries[-1].data["rollback"]["outcome"] == "failed"


def test_a_run_that_times_out_is_undone_without_a_timeout() -> None:
    journal = begun("a")
    journal.run = run_with(timeout_ms=60_000)
    journal.now_ms += 60_000
    journal.ask()
    assert journal.view.rollback is not None
    journal.now_ms += 600_000
    journal.claim()
    assert journal.view.leased
    finish(journal, undo("a"))
    journal.decide(lambda view, now_ms: returned(view, Returned(None), now_ms, LIMITS))
    assert (shown(journal), row(journal).reason) == (RunState.FAILED, "timeout")


def test_a_paused_run_can_be_cancelled_with_rollback() -> None:
    journal = begun("a")
    found = Mismatch(3, "do:a", "do:b")
    journal.decide(lambda view, now_ms: mismatched(view, found, now_ms))
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms, rollback=True))
    assert (shown(journal), row(journal).reason) == (RunState.QUEUED, None)
    journal.claim()
    finish(journal, undo("a"))
