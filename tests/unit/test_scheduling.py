"""How many runs of one repository a worker takes in hand."""

from __future__ import annotations

from ci_platform.scheduling import Share


def test_a_share_is_counted_with_what_is_in_hand_and_keeps_the_order() -> None:
    due = [(1, "flood"), (2, "other"), (3, "flood"), (4, "flood"), (5, "other")]
    assert Share(2).first(due) == [1, 2, 3, 5]
    assert Share(2, {"flood": 1}).first(due) == [1, 2, 5]
    assert Share(2, {"flood": 2, "other": 7}).first(due) == []


def test_a_repository_that_has_its_share_makes_a_crowd() -> None:
    assert not Share(2, {"a": 1, "b": 1}).crowded
    assert Share(2, {"a": 1, "b": 2}).crowded


def test_others_are_those_that_have_nothing_in_hand() -> None:
    due = [(1, "flood"), (2, "other"), (3, "third")]
    assert Share(2, {"flood": 1, "third": 1}).of_others().first(due) == [2]
