"""Turns: who is served next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ci_platform.store.fair import Candidate, in_turns

ROWS = st.lists(st.sampled_from("abcd"), max_size=40).map(
    lambda names: [Candidate(n, name) for n, name in enumerate(names)]
)


@given(ROWS, st.sampled_from(["", "a", "b", "c", "d"]))
def test_turns_lose_nobody_keep_order_and_never_favour(rows: list[Candidate], after: str) -> None:
    turns = in_turns(rows, after)
    assert sorted(turn.n for turn in turns) == list(range(len(rows)))
    for name in "abcd":
        own = [turn.n for turn in turns if turn.repository_id == name]
        assert own == sorted(own)
    served = {name: 0 for name in "abcd"}
    waiting = {name: sum(row.repository_id == name for row in rows) for name in "abcd"}
    for turn in turns:
        # Nobody is served a further time while somebody with a row waits for that time.
        assert all(
            served[other] >= served[turn.repository_id] or waiting[other] == served[other]
            for other in "abcd"
        )
        served[turn.repository_id] += 1


def test_turns_begin_behind_the_one_served_last() -> None:
    rows = [Candidate(n, name) for n, name in enumerate("aabbcc")]
    order = [turn.repository_id for turn in in_turns(rows, "a")]
    assert order == ["b", "c", "a", "b", "c", "a"]
