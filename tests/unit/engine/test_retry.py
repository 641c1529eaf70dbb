from __future__ import annotations

import pytest

from ci_platform.engine.retry import DELAY_MS_MAX, attempts_max, delay_ms
from ci_platform.model import Json


def config(backoff: str, delay: int | None = 10_000, limit: int = 5) -> dict[str, Json]:
    return {"retries": {"limit": limit, "delay_ms": delay, "backoff": backoff}}


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        ("constant", [10_000, 10_000, 10_000, 10_000]),
        ("linear", [10_000, 20_000, 30_000, 40_000]),
        ("exponential", [10_000, 20_000, 40_000, 80_000]),
    ],
)
def test_delays_grow_as_the_backoff_says(backoff: str, delays: list[int]) -> None:
    assert [delay_ms(config(backoff), attempt) for attempt in (1, 2, 3, 4)] == delays


def test_a_limit_counts_retries_so_attempts_are_one_more() -> None:
    assert attempts_max(config("constant", limit=0)) == 1
    assert attempts_max(config("constant", limit=2)) == 3
    assert attempts_max({}) == 1


def test_a_delay_never_passes_a_year_however_many_attempts_there_were() -> None:
    assert delay_ms(config("exponential"), 10_000) == DELAY_MS_MAX


def test_a_delay_that_the_author_chose_is_taken_as_it_is() -> None:
    assert delay_ms(config("exponential", delay=None), 4, 7) == 7


def test_without_a_delay_the_default_of_ten_seconds_counts() -> None:
    assert delay_ms(config("constant", delay=None), 1) == 10_000
