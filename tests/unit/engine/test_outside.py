"""Events, answers, pause, resume and cancel, in whatever state the run is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ci_platform.effects import CloseApproval, DelayApprovals, RecordDecision, StopOperations
from ci_platform.engine import Answer, cancel, decided, event_sent, pause, resume, settle
from ci_platform.engine.limits import EVENTS_PENDING_MAX
from ci_platform.errors import (
    Conflict,
    InvalidRequest,
    StepNotFound,
    TooLarge,
    TooMany,
)
from ci_platform.model import Json, RunState, StepKey, StepKind, StepState
from tests.unit.engine.journal import (
    LIMITS,
    Journal,
    do,
    passed,
    row,
    shown,
    start_approval,
    start_do,
    start_sh,
    start_sleep,
    start_wait,
)

SHIP = StepKey(StepKind.APPROVAL, "ship")


def send(journal: Journal, type: str, payload: Json = None) -> None:
    journal.decide(lambda view, now: event_sent(view, type, payload, "ada", now, limits=LIMITS))


def answer(journal: Journal, user: str, decision: str = "approve", comment: str = "") -> bool:
    given = Answer(user_id=f"usr_{user}", user=user, decision=decision, comment=comment)
    return bool(journal.decide(lambda view, now: decided(view, SHIP, given, now)))


def waiting_for(*types: str) -> Journal:
    journal = Journal().claim()
    journal.ask(*[start_wait(f"wait {n}", type) for n, type in enumerate(types)])
    return journal.suspend()


def gate(required: int = 1, timeout_ms: int | None = None) -> Journal:
    journal = Journal().claim()
    journal.ask(start_approval("ship", required=required, timeout_ms=timeout_ms))
    return journal.suspend()


# --- events ---


def test_an_event_wakes_the_run_that_waits_for_it() -> None:
    journal = waiting_for("go")
    assert (journal.state, journal.ready_ms) == (RunState.WAITING, None)
    assert [(w.kind, w.type) for w in row(journal).waits] == [("wait", "go")]
    journal.now_ms += 5
    send(journal, "go", {"n": 1})
    assert (journal.state, journal.ready_ms) == (RunState.QUEUED, journal.now_ms)
    assert journal.kinds[-2:] == ["event_received", "step_passed"]


def test_an_event_of_another_type_is_kept_and_wakes_nobody() -> None:
    journal = waiting_for("go")
    send(journal, "stop")
    assert shown(journal) is RunState.WAITING
    assert journal.view.events_pending == 1


def test_events_go_to_waits_in_the_order_the_waits_began() -> None:
    journal = waiting_for("go", "go", "other")
    send(journal, "go", "first")
    send(journal, "go", "second")
    values = [step.value for step in journal.view.steps.values()]
    assert [value and value["payload"] for value in values] == ["first", "second", None]


def test_one_event_is_consumed_by_one_wait_only() -> None:
    journal = waiting_for("go", "go")
    send(journal, "go")
    states = [step.state for step in journal.view.steps.values()]
    assert states == [StepState.PASSED, StepState.WAITING]


def test_a_run_that_has_ended_takes_no_events() -> None:
    journal = Journal()
    journal.decide(lambda view, now: cancel(view, "ada", now))
    with pytest.raises(Conflict, match="has ended"):
        send(journal, "go")


@pytest.mark.parametrize(
    ("type", "payload", "error"),
    [
        ("", None, InvalidRequest),
        ("-x", None, InvalidRequest),
        ("a b", None, InvalidRequest),
        ("x" * 101, None, InvalidRequest),
        ("go", float("inf"), InvalidRequest),
        ("go", "x" * LIMITS.value_bytes, TooLarge),
    ],
)
def test_a_bad_event_is_refused_naming_the_field(
    type: str, payload: Json, error: type[InvalidRequest]
) -> None:
    with pytest.raises(error) as caught:
        send(Journal(), type, payload)
    assert caught.value.field == ("payload" if type == "go" else "type")


def test_a_flood_of_events_that_nobody_takes_is_refused() -> None:
    journal = Journal()
    view = journal.view
    for _ in range(EVENTS_PENDING_MAX):
        event_sent(view, "go", None, "ada", 0, limits=LIMITS)
    with pytest.raises(TooMany, match=f"{EVENTS_PENDING_MAX:,}"):
        event_sent(view, "go", None, "ada", 0, limits=LIMITS)


# --- approvals ---


def test_two_of_three_people_must_approve_and_the_run_waits_for_the_second() -> None:
    journal = gate(required=2)
    answer(journal, "ada")
    assert shown(journal) is RunState.WAITING
    answer(journal, "bob", comment="looks good")
    assert shown(journal) is RunState.QUEUED
    value = journal.view.steps[SHIP].value
    assert value["approved"] is True
    assert [(d["user"], d["comment"]) for d in value["decisions"]] == [
        ("ada", ""),
        ("bob", "looks good"),
    ]
    assert CloseApproval(SHIP, "approved") in journal.effects
    assert sum(isinstance(effect, RecordDecision) for effect in journal.effects) == 2


def test_one_rejection_ends_the_gate_with_its_comment() -> None:
    journal = gate(required=2)
    answer(journal, "ada")
    answer(journal, "bob", "reject", "not on a Friday")
    step = journal.view.steps[SHIP]
    assert step.state is StepState.FAILED
    assert (step.error or {})["type"] == "Rejected"
    assert (step.error or {})["message"] == "not on a Friday"
    assert (step.error or {})["data"] == {"user": "bob", "comment": "not on a Friday"}


def test_a_second_answer_by_the_same_person_changes_nothing() -> None:
    journal = gate(required=2)
    assert answer(journal, "ada")
    assert not answer(journal, "ada", "reject")
    assert journal.view.steps[SHIP].state is StepState.WAITING
    answer(journal, "bob")
    assert not answer(journal, "bob")  # also after the gate has closed


def test_a_closed_gate_takes_no_answer_of_somebody_else() -> None:
    journal = gate()
    answer(journal, "ada")
    with pytest.raises(Conflict, match="closed: passed"):
        answer(journal, "bob")


def test_an_answer_that_comes_after_the_expiry_is_refused_though_nothing_has_noted_it() -> None:
    journal = gate(timeout_ms=1_000)
    journal.now_ms += 1_000
    with pytest.raises(Conflict, match="closed: expired"):
        answer(journal, "ada")


def test_only_gates_can_be_answered() -> None:
    journal = waiting_for("go")
    with pytest.raises(StepNotFound):
        answer(journal, "ada")
    given = Answer("usr_ada", "ada", "approve")
    with pytest.raises(StepNotFound):
        decided(journal.view, StepKey(StepKind.WAIT, "wait 0"), given, 0)


def test_an_answer_is_approve_or_reject() -> None:
    with pytest.raises(InvalidRequest, match="maybe"):
        answer(gate(), "ada", "maybe")


# --- pause and resume ---


def test_a_pause_moves_every_timer_by_the_time_it_lasted() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("nap", 10_000), start_wait("go", "go", timeout_ms=20_000))
    journal.suspend()
    journal.now_ms = 4_000
    journal.decide(lambda view, now: pause(view, "ada", now))
    assert (journal.state, row(journal).reason) == (RunState.PAUSED, "user")
    assert journal.ready_ms is None
    journal.now_ms = 1_000_000
    journal.decide(lambda view, now: resume(view, "ada", now))
    assert (journal.state, row(journal).reason) == (RunState.QUEUED, None)
    untils = [step.until_ms for step in journal.view.steps.values()]
    assert untils == [11_000 + 996_000, 21_000 + 996_000]
    journal.claim()
    journal.suspend()
    assert journal.ready_ms == 1_007_000


def test_nothing_expires_while_a_run_is_paused() -> None:
    journal = gate(timeout_ms=10_000)
    journal.decide(lambda view, now: pause(view, "ada", now))
    journal.now_ms += 60_000
    answer(journal, "ada")
    assert journal.view.steps[SHIP].state is StepState.PASSED
    assert shown(journal) is RunState.PAUSED


def test_the_end_that_people_see_of_a_gate_moves_with_the_pause() -> None:
    journal = gate(timeout_ms=10_000)
    journal.decide(lambda view, now: pause(view, "ada", now))
    journal.now_ms += 60_000
    decision = journal.decide(lambda view, now: resume(view, "ada", now))
    assert [one for one in decision.effects if isinstance(one, DelayApprovals)] == [
        DelayApprovals(60_000)
    ]


def test_events_are_kept_and_matched_while_a_run_is_paused() -> None:
    journal = waiting_for("go")
    journal.decide(lambda view, now: pause(view, "ada", now))
    send(journal, "go", 1)
    assert shown(journal) is RunState.PAUSED
    journal.decide(lambda view, now: resume(view, "ada", now))
    journal.claim()
    assert next(iter(journal.view.steps.values())).value["payload"] == 1


def test_a_pause_during_a_body_lets_it_end_and_starts_nothing() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    journal.decide(lambda view, now: pause(view, "ada", now))
    assert (journal.state, row(journal).pause_requested) == (RunState.RUNNING, True)
    journal.ask(passed("build", 1), start_do("next"))
    assert journal.view.steps[do("build")].value == 1
    assert do("next") not in journal.view.steps
    assert shown(journal) is RunState.PAUSED


def test_a_pausing_run_whose_worker_is_lost_is_paused_by_the_next_one() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    journal.decide(lambda view, now: pause(view, "ada", now))
    journal.lose().claim()
    assert shown(journal) is RunState.PAUSED
    journal.decide(lambda view, now: resume(view, "ada", now))
    journal.claim()
    assert journal.view.steps[do("build")].attempt == 2


def test_pausing_twice_changes_nothing_and_resuming_a_run_that_runs_is_refused() -> None:
    journal = waiting_for("go")
    journal.decide(lambda view, now: pause(view, "ada", now))
    assert not journal.decide(lambda view, now: pause(view, "bob", now))
    journal.decide(lambda view, now: resume(view, "ada", now))
    with pytest.raises(Conflict, match="not paused"):
        resume(journal.view, "ada", 0)


def test_a_resume_during_pausing_withdraws_the_pause() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("test"))
    journal.suspend()
    journal.decide(lambda view, now: pause(view, "ada", now))
    journal.now_ms += 1_000
    journal.decide(lambda view, now: resume(view, "ada", now))
    assert not journal.view.pause_requested
    assert journal.view.shifted_ms == 0


def test_a_queued_run_pauses_at_once_and_the_pause_takes_nothing_from_it() -> None:
    journal = Journal()
    journal.decide(lambda view, now: pause(view, "ada", now))
    assert shown(journal) is RunState.PAUSED
    journal.decide(lambda view, now: resume(view, "ada", now))
    assert shown(journal) is RunState.QUEUED


# --- cancel ---


def test_a_cancelled_run_stops_its_commands_closes_its_gates_and_ends_at_once() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("test"), start_approval("ship"), start_sleep("nap", 10), start_do("b"))
    journal.decide(lambda view, now: cancel(view, "ada", now))
    assert (journal.state, row(journal).reason) == (RunState.CANCELLED, "user")
    assert row(journal).cancel_requested and not row(journal).hold
    assert {step.state for step in journal.view.steps.values()} == {StepState.CANCELLED}
    assert StopOperations() in journal.effects
    assert CloseApproval(None, "cancelled") in journal.effects


def test_a_run_without_commands_and_gates_is_cancelled_with_entries_alone() -> None:
    journal = waiting_for("go")
    before = len(journal.effects)
    journal.decide(lambda view, now: cancel(view, "ada", now, reason="superseded"))
    assert len(journal.effects) == before
    assert journal.view.reason == "superseded"


@pytest.mark.parametrize(
    "change",
    [
        lambda view, now: cancel(view, "ada", now),
        lambda view, now: pause(view, "ada", now),
        lambda view, now: resume(view, "ada", now),
    ],
)
def test_a_run_that_has_ended_cannot_be_changed(change: Callable[..., object]) -> None:
    journal = Journal()
    journal.decide(lambda view, now: cancel(view, "ada", now))
    with pytest.raises(Conflict, match="has ended \\(cancelled\\)"):
        change(journal.view, 0)


def test_a_cancel_with_rollback_of_a_run_that_has_nothing_to_undo_ends_it_at_once() -> None:
    journal = Journal()
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms, rollback=True))
    assert shown(journal) is RunState.CANCELLED
    assert journal.entries[-1].data["rollback"] == {"outcome": "complete", "error": None}


def test_a_paused_run_can_be_cancelled() -> None:
    journal = waiting_for("go")
    journal.decide(lambda view, now: pause(view, "ada", now))
    journal.decide(lambda view, now: cancel(view, "ada", now))
    assert journal.view.state is RunState.CANCELLED


def test_a_settled_run_that_pauses_writes_the_pause_once() -> None:
    journal = Journal().claim()
    journal.decide(lambda view, now: pause(view, "ada", now))
    journal.decide(settle)
    assert journal.kinds.count("run_paused") == 1
