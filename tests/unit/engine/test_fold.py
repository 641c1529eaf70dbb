"""Reading journals: what they mean, and what no version of the platform has written."""

from __future__ import annotations

import pytest

from ci_platform.engine import fold, propose, steps, update, waits
from ci_platform.engine.decision import Decision, Pen
from ci_platform.engine.fold import BrokenJournal
from ci_platform.engine.summary import WAITS_MAX
from ci_platform.errors import InternalError
from ci_platform.model import Draft, Entry, EntryKind, RunState, StepKey, StepState
from tests.unit.engine.journal import (
    COMMIT,
    NEWER,
    RUN,
    Journal,
    do,
    passed,
    row,
    start_approval,
    start_do,
    start_sleep,
    start_wait,
)


def test_steps_are_shown_in_the_order_they_started_with_their_attempts_and_times() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("nap", 60_000), start_do("build"))
    journal.now_ms += 500
    journal.ask(passed("build", {"a": 1}))
    nap, build = steps(journal.view)
    assert (str(nap.key), nap.state, nap.until_ms) == ("sleep:nap", StepState.WAITING, 61_000)
    assert (build.state, build.value, build.attempts) == (StepState.PASSED, {"a": 1}, 1)
    assert (build.started_ms, build.ended_ms, build.commit) == (1_000, 1_500, COMMIT)


def test_each_step_shows_the_commit_that_executed_it() -> None:
    journal = Journal().claim()
    journal.ask(start_do("old"))
    journal.ask(passed("old"))
    journal.add(EntryKind.COMMIT_RESOLVED, {"commit": NEWER})
    journal.ask(start_do("new"))
    assert [step.commit for step in steps(journal.view)] == [COMMIT, NEWER]
    assert row(journal).commit == NEWER


def test_a_run_that_waits_for_several_things_says_all_of_them() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("nap", 9), start_wait("go", "start"), start_approval("ship"))
    journal.suspend()
    assert [(wait.kind, wait.name, wait.type) for wait in row(journal).waits] == [
        ("sleep", "nap", None),
        ("wait", "go", "start"),
        ("approval", "ship", None),
    ]
    assert (journal.state, journal.ready_ms) == (RunState.WAITING, 1_009)


def test_a_run_that_waits_for_very_much_shows_the_first_of_it() -> None:
    journal = Journal().claim()
    journal.ask(*[start_sleep(f"nap {n}", 1_000 + n) for n in range(WAITS_MAX * 2)])
    assert len(waits(journal.view)) == WAITS_MAX


def test_a_leased_run_shows_no_waits_and_is_not_due() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("nap", 9))
    found = row(journal)
    assert (found.state, found.ready_ms, found.waits, found.hold) == (
        RunState.RUNNING,
        None,
        (),
        True,
    )


def test_a_journal_with_a_hole_is_refused() -> None:
    entries = Journal().entries
    with pytest.raises(BrokenJournal, match="entry 3 follows entry 1"):
        fold(RUN, [*entries, Entry(3, EntryKind.RUN_CLAIMED, 0)])


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (EntryKind.STEP_PASSED, {"value": 1}),
        (EntryKind.ATTEMPT_STARTED, {}),
        (EntryKind.STEP_CANCELLED, {}),
    ],
)
def test_an_entry_about_a_step_that_is_not_open_is_refused(
    kind: EntryKind, data: dict[str, int]
) -> None:
    entries = Journal().claim().entries
    stray = Entry(len(entries) + 1, kind, 0, data, StepKey.parse("do:ghost"), 1)
    with pytest.raises(BrokenJournal, match="no open step"):
        fold(RUN, [*entries, stray])


def test_a_step_that_starts_twice_is_refused() -> None:
    journal = Journal().claim()
    journal.ask(start_do("a"))
    again = Entry(len(journal.entries) + 1, EntryKind.STEP_STARTED, 0, {}, do("a"), 1)
    with pytest.raises(BrokenJournal, match="starts do:a again"):
        fold(RUN, [*journal.entries, again])


def test_an_event_cannot_be_consumed_twice() -> None:
    journal = Journal()
    journal.add(EntryKind.EVENT_RECEIVED, {"type": "go", "payload": 1})
    journal.claim()
    journal.ask(start_wait("a", "go"), start_wait("b", "go"))
    seq = len(journal.entries) + 1
    key = StepKey.parse("wait:b")
    stolen = Entry(seq, EntryKind.STEP_PASSED, 0, {"value": {}, "event": 2}, key, 1)
    with pytest.raises(BrokenJournal, match="event 2 is not the next one"):
        fold(RUN, [*journal.entries, stolen])


def test_an_empty_journal_has_no_row() -> None:
    with pytest.raises(InternalError, match="no journal"):
        update(fold(RUN, []), 0)


def test_decisions_join_into_one_append_and_an_empty_one_is_false() -> None:
    view = Journal().claim().view
    first, second = Pen(view, 5), Pen(view, 5)
    assert not first.decision()
    first.write(EntryKind.PAUSE_REQUESTED, {"actor": "ada"})
    both = first.decision() + second.decision()
    assert both == Decision(2, (Draft(EntryKind.PAUSE_REQUESTED, {"actor": "ada"}),))
    append = propose(view, both, 5, fence=3)
    assert (append.expected_seq, append.fence, append.update.pause_requested) == (2, 3, True)
