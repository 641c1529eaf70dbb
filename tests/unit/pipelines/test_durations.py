"""Durations and instants: what may be written, and what the errors say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from pipelines.durations import datetime_of, duration_ms, instant_ms, show_ms


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        ("10 s", 10_000),
        ("1s", 1_000),
        ("250 ms", 250),
        ("5 minutes", 300_000),
        ("1.5 hours", 5_400_000),
        ("24 hours", 86_400_000),
        (" 7 Days ", 604_800_000),
        ("2 weeks", 1_209_600_000),
        (0, 0),
        (90, 90_000),
        (0.0001, 1),
        (timedelta(minutes=2), 120_000),
    ],
)
def test_a_duration_is_text_seconds_or_a_timedelta(written: Any, ms: int) -> None:
    assert duration_ms(written, "timeout") == ms
    assert duration_ms(written, "timeout") == ms  # from the cache of texts too


@pytest.mark.parametrize(
    ("written", "error", "said"),
    [
        ("3 fortnights", ValueError, "timeout has the unknown unit 'fortnights'"),
        ("1 month", ValueError, "unknown unit 'month'"),
        ("soon", ValueError, "timeout must be a duration such as"),
        ("", ValueError, "timeout must be a duration"),
        ("-5 s", ValueError, "timeout must be a duration"),
        ("1 h 30 min", ValueError, "timeout must be a duration"),
        (-1, ValueError, "timeout must be at least 0 seconds, got -1"),
        (float("nan"), ValueError, "must be a finite duration"),
        (float("inf"), ValueError, "must be a finite duration"),
        ("366 days", ValueError, "timeout must be at most 365 days"),
        (10**400, ValueError, "must be at most 365 days"),
        (None, TypeError, "timeout must be a duration such as .*, got NoneType"),
        (True, TypeError, "got bool"),
    ],
)
def test_a_bad_duration_names_its_argument(written: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        duration_ms(written, "timeout")


def test_an_instant_is_an_aware_datetime_iso_text_or_epoch_seconds() -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    ms = 1_893_499_200_000
    assert instant_ms(noon, "when") == ms
    assert instant_ms(noon.astimezone(timezone(timedelta(hours=3))), "when") == ms
    assert instant_ms("2030-01-01T12:00:00Z", "when") == ms
    assert instant_ms(ms / 1000, "when") == ms
    assert datetime_of(ms) == noon


@pytest.mark.parametrize(
    ("written", "error", "said"),
    [
        (datetime(2030, 1, 1), ValueError, "when must have a time zone"),
        ("tomorrow", ValueError, "when must be ISO 8601"),
        ([], TypeError, "when must be a datetime or epoch seconds, got list"),
        (float("nan"), ValueError, "when must be seconds since 1970"),
        (-5, ValueError, "when must be seconds since 1970"),
    ],
)
def test_a_bad_instant_names_its_argument(written: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        instant_ms(written, "when")


def test_durations_are_shown_in_their_largest_whole_unit() -> None:
    assert [show_ms(ms) for ms in (0, 250, 1_000, 90_000, 3_600_000, 604_800_000)] == [
        "0 seconds",
        "250 milliseconds",
        "1 second",
        "90 seconds",
        "1 hour",
        "1 week",
    ]
