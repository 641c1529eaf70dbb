"""The closed set of moves, and the page that shows it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ci_platform.engine import MOVES, IllegalMove, move
from ci_platform.engine.transitions import FIRST, INITIAL
from ci_platform.model import TERMINAL_STATES, EntryKind, RunState

STATES_PAGE = Path(__file__).parents[3] / "docs" / "states.md"


def table_of(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of docs/states.md."""
    _, _, rest = STATES_PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")
    assert rest, f"docs/states.md has no heading {heading!r}"
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), rest.splitlines())
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_a_terminal_state_is_left_by_nothing() -> None:
    assert not [pair for pair in MOVES if pair[0] in TERMINAL_STATES]


def test_every_entry_kind_but_the_first_is_allowed_somewhere() -> None:
    assert {kind for _, kind in MOVES} == set(EntryKind) - {FIRST}


def test_every_state_can_be_reached() -> None:
    reached, frontier = {INITIAL}, {INITIAL}
    while frontier:
        frontier = {to for (state, _), to in MOVES.items() if state in frontier} - reached
        reached |= frontier
    assert reached == set(RunState)


def test_every_state_that_is_not_terminal_can_be_cancelled() -> None:
    for state in set(RunState) - TERMINAL_STATES:
        assert MOVES[state, EntryKind.RUN_CANCELLED] is RunState.CANCELLED


@pytest.mark.parametrize("state", list(RunState))
@pytest.mark.parametrize("kind", list(EntryKind))
def test_a_move_that_is_not_in_the_table_is_refused(state: RunState, kind: EntryKind) -> None:
    if (state, kind) in MOVES:
        assert move(state, kind) is MOVES[state, kind]
    else:
        with pytest.raises(IllegalMove, match=f"a run that is {state} cannot have {kind}"):
            move(state, kind)


def test_a_journal_begins_with_run_created_only() -> None:
    assert move(None, EntryKind.RUN_CREATED) is RunState.QUEUED
    with pytest.raises(IllegalMove):
        move(None, EntryKind.RUN_CLAIMED)


def test_the_states_page_shows_exactly_the_moves_of_the_table() -> None:
    columns = ["queued", "running", "waiting", "paused"]
    shown = {
        (RunState(state), EntryKind(row[0])): RunState(cell)
        for row in table_of("Moves of a run")
        for state, cell in zip(columns, row[1:], strict=True)
        if cell
    }
    assert shown == MOVES


def test_the_states_page_explains_every_state_and_every_entry_kind() -> None:
    assert {row[0] for row in table_of("States of a run")} == {state.value for state in RunState}
    assert {row[0] for row in table_of("Entries")} == {kind.value for kind in EntryKind}
