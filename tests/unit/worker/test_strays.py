"""Leases that nobody works on any more are given back, after a pause that grows."""

from __future__ import annotations

from ci_platform.errors import LeaseLost, StoreUnavailable
from ci_platform.testing import FakeClock
from ci_platform.worker.holding import Holding
from ci_platform.worker.strays import DOUBLINGS_MAX, FIRST_PAUSE_MS, Strays
from tests.unit.engine.journal import RUN


class Giving:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        if self.errors:
            raise self.errors.pop(0)


def test_the_pause_doubles_with_each_failure_up_to_a_limit() -> None:
    for failures, pause_ms in (
        (0, FIRST_PAUSE_MS),
        (1, FIRST_PAUSE_MS * 2),
        (1_000, FIRST_PAUSE_MS << DOUBLINGS_MAX),
    ):
        clock = FakeClock()
        strays = Strays(clock, Holding())
        strays.add(RUN, Giving(), failures=failures)
        clock.advance((pause_ms - 1) / 1000)
        assert strays.run_once() == 0
        clock.advance(0.001)
        assert strays.run_once() == 1
        assert strays.run_once() == 0


def test_a_lease_that_cannot_be_given_back_now_is_given_back_later() -> None:
    clock = FakeClock()
    holding = Holding()
    strays, giving = Strays(clock, holding), Giving(StoreUnavailable())
    strays.add(RUN, giving, failures=0)
    clock.advance(1)
    assert strays.run_once() == 0
    assert holding.ids() == [RUN.id], "it is renewed until it is given back"
    clock.advance(1)
    assert strays.run_once() == 1
    assert giving.times == 2
    assert holding.ids() == []


def test_a_lease_that_went_by_itself_is_forgotten() -> None:
    clock = FakeClock()
    holding = Holding()
    strays, giving = Strays(clock, holding), Giving(LeaseLost())
    strays.add(RUN, giving, failures=0)
    for _ in range(3):
        clock.advance(60)
        assert strays.run_once() == 0
    assert giving.times == 1
    assert holding.ids() == []
