from __future__ import annotations

from datetime import datetime

import pytest

from ci_platform.commands.cron import last_ms, next_ms
from ci_platform.errors import InvalidRequest


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("cron", "zone", "now", "then"),
    [
        ("0 3 * * *", "UTC", "2026-01-31T02:59:59+00:00", "2026-01-31T03:00:00+00:00"),
        ("0 3 * * *", "UTC", "2026-01-31T03:00:00+00:00", "2026-02-01T03:00:00+00:00"),
        ("0 3 * * *", "Europe/Berlin", "2026-07-01T00:00:00+00:00", "2026-07-01T01:00:00+00:00"),
        # the hour that summer time leaves out
        ("30 2 * * *", "Europe/Berlin", "2026-03-29T00:00:00+00:00", "2026-03-29T01:00:00+00:00"),
        ("*/15 9-17 * * 1-5", "UTC", "2026-01-02T18:00:00+00:00", "2026-01-05T09:00:00+00:00"),
    ],
)
def test_the_next_time_is_the_first_one_after_now(
    cron: str, zone: str, now: str, then: str
) -> None:
    assert next_ms(cron, zone, ms(now)) == ms(then)


@pytest.mark.parametrize(
    ("now", "then"),
    [
        ("2026-01-31T03:00:00+00:00", "2026-01-31T03:00:00+00:00"),
        ("2026-01-31T02:59:59.500+00:00", "2026-01-30T03:00:00+00:00"),
        ("2026-01-31T12:00:00+00:00", "2026-01-31T03:00:00+00:00"),
    ],
)
def test_the_last_time_may_be_now(now: str, then: str) -> None:
    assert last_ms("0 3 * * *", "UTC", ms(now)) == ms(then)


@pytest.mark.parametrize(
    ("cron", "zone", "complaint"),
    [
        ("99 * * * *", "UTC", "cron '99"),
        ("0 0 30 2 *", "UTC", "not valid"),
        ("0 3 * * *", "Mars/Olympus", "no time zone"),
        ("0 3 * * *", "../etc/passwd", "no time zone"),
        ("0 3 * * *", "", "no time zone"),
    ],
)
def test_what_is_no_schedule_is_refused(cron: str, zone: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        next_ms(cron, zone, 0)
