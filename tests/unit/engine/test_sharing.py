"""Which entries of an old run begin the one that goes on from a step."""

from __future__ import annotations

import pytest

from ci_platform.engine import cancel, event_sent, fold
from ci_platform.engine.sharing import shared
from ci_platform.errors import StepNotFound
from ci_platform.model import AbandonStep, Entry, EntryKind, StepKey, StepKind, StepState
from tests.unit.engine.journal import (
    COMMIT,
    LIMITS,
    NEWER,
    RUN,
    Journal,
    do,
    passed,
    start_do,
    start_wait,
)


def go_on(journal: Journal, target: StepKey, commit: str = COMMIT) -> list[Entry]:
    """The journal that the new run is born with; it can be folded."""
    created = Entry(1, EntryKind.RUN_CREATED, 5_000, {"commit": commit, "shared": {}})
    found = [created, *shared(journal.view, journal.entries, target, commit)]
    fold(RUN, found)
    return found


def send(journal: Journal, kind: str) -> None:
    journal.decide(lambda view, now_ms: event_sent(view, kind, 1, "ada", now_ms, limits=LIMITS))


def test_what_ended_before_is_shared_and_the_step_and_all_after_it_are_not() -> None:
    journal = Journal().claim()
    for name in "abc":
        journal.ask(start_do(name))
        journal.ask(passed(name, name))
    view = fold(RUN, go_on(journal, do("b")))
    assert [(step.key.name, step.value) for step in view.steps.values()] == [("a", "a")]
    assert not view.open


def test_a_result_that_came_later_is_shared_if_its_step_had_started_before() -> None:
    journal = Journal().claim()
    journal.ask(start_do("slow"), start_do("target"), start_do("after"))
    journal.ask(passed("target"), passed("after"), passed("slow", 7))
    view = fold(RUN, go_on(journal, do("target")))
    assert [(step.key.name, step.value) for step in view.steps.values()] == [("slow", 7)]


def test_what_the_end_of_the_run_cut_short_is_done_again() -> None:
    journal = Journal().claim()
    journal.ask(start_wait("open", "go"), start_do("target"))
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms))
    assert len(go_on(journal, do("target"))) == 1


def test_what_later_code_gave_up_is_done_again() -> None:
    journal = Journal().claim()
    journal.ask(start_wait("early", "go"), start_wait("late", "go"))
    journal.ask(AbandonStep(StepKey(StepKind.WAIT, "early")))
    journal.ask(start_do("target"))
    journal.ask(AbandonStep(StepKey(StepKind.WAIT, "late")))
    view = fold(RUN, go_on(journal, do("target")))
    assert [step.key.name for step in view.steps.values()] == ["early"]


def test_events_are_shared_as_far_as_they_were_consumed() -> None:
    journal = Journal().claim()
    for kind in ("other", "go", "go"):
        send(journal, kind)
    journal.ask(start_wait("ready", "go"))
    journal.ask(start_do("target"))
    view = fold(RUN, go_on(journal, do("target")))
    assert view.steps[StepKey(StepKind.WAIT, "ready")].state is StepState.PASSED
    assert view.events_pending == 0


def test_each_step_keeps_the_commit_that_it_executed() -> None:
    journal = Journal().claim()
    journal.ask(start_do("a"))
    journal.ask(passed("a"), start_do("b"))
    view = fold(RUN, go_on(journal, do("b"), NEWER))
    assert (view.steps[do("a")].commit, view.commit) == (COMMIT, NEWER)


def test_steps_are_matched_by_key_since_some_are_missing() -> None:
    journal = Journal().claim()
    journal.ask(start_do("a"))
    assert not fold(RUN, go_on(journal, do("a"))).step_commits <= {COMMIT}


def test_a_step_that_is_not_in_the_journal_cannot_be_gone_on_from() -> None:
    with pytest.raises(StepNotFound, match="has not come to the step 'do:never'"):
        shared(Journal().claim().view, Journal().entries, do("never"), COMMIT)
