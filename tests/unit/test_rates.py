from __future__ import annotations

import pytest

from ci_platform.rates import TRACKED_MAX, Rate


def test_a_rate_lets_bursts_through_and_fills_again() -> None:
    rate = Rate(per_second=20, burst=100)
    assert [rate.take("a", 0.0) for _ in range(100)] == [0.0] * 100
    assert rate.take("a", 0.0) == pytest.approx(0.05)
    assert rate.take("b", 0.0) == 0.0
    assert rate.take("a", 0.06) == 0.0


def test_many_at_once_count_as_many() -> None:
    rate = Rate(per_second=1, burst=10)
    assert rate.take("a", 0.0, count=8) == 0.0
    assert rate.take("a", 0.0, count=4) == pytest.approx(2.0)
    assert rate.take("a", 0.0, count=2) == 0.0


def test_what_is_remembered_is_bounded() -> None:
    rate = Rate(per_second=1, burst=1)
    for number in range(TRACKED_MAX + 1):
        rate.take(number, 0.0)
    assert rate.take(0, 0.0) == 0.0
    assert rate.take(TRACKED_MAX, 0.0) > 0
