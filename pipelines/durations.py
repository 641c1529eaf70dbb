"""Durations and instants as authors write them, turned into whole milliseconds.

A duration is a string ("10 s", "5 minutes", "7 days"), a number of seconds, or a timedelta. An
unknown unit is an error, never a guess. Called by the checks of step.py and declare.py.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from pipelines.wire import PERIOD_MS_MAX

Duration: TypeAlias = str | int | float | timedelta
Instant: TypeAlias = datetime | str | int | float

_UNITS_MS = {
    1: ("ms", "millisecond", "milliseconds"),
    1_000: ("s", "sec", "secs", "second", "seconds"),
    60_000: ("m", "min", "mins", "minute", "minutes"),
    3_600_000: ("h", "hour", "hours"),
    86_400_000: ("d", "day", "days"),
    604_800_000: ("w", "week", "weeks"),
}
_UNIT_MS = {word: size for size, words in _UNITS_MS.items() for word in words}
_READ: dict[str, float] = {}  # texts read before: a step in a loop says the same each time
READ_MAX = 256
_PERIOD = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]+)\s*", re.ASCII)
_EXAMPLE = 'such as "10 s", "5 minutes", "24 hours" or "7 days", or seconds as a number'


def duration_ms(
    value: Duration, argument: str, *, least_ms: int = 0, most_ms: int = PERIOD_MS_MAX
) -> int:
    """Read a duration. Raises TypeError or ValueError that names the argument."""
    found = _raw_ms(value, argument)
    if not math.isfinite(found):
        raise ValueError(f"{argument} must be a finite duration, got {value!r}")
    whole = math.ceil(found)
    if whole < least_ms:
        raise ValueError(f"{argument} must be at least {show_ms(least_ms)}, got {value!r}")
    if whole > most_ms:
        raise ValueError(f"{argument} must be at most {show_ms(most_ms)}, got {value!r}")
    return whole


def _raw_ms(value: Duration, argument: str) -> float:
    if isinstance(value, timedelta):
        return value / timedelta(milliseconds=1)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > PERIOD_MS_MAX:
            raise ValueError(f"{argument} must be at most {show_ms(PERIOD_MS_MAX)}")
        return value * 1000
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a duration {_EXAMPLE}, got {_kind(value)}")
    known = _READ.get(value)
    if known is not None:
        return known
    match = _PERIOD.fullmatch(value)
    if match is None:
        raise ValueError(f"{argument} must be a duration {_EXAMPLE}, got {value[:80]!r}")
    unit = _UNIT_MS.get(match[2].lower())
    if unit is None:
        raise ValueError(f"{argument} has the unknown unit {match[2][:40]!r}: write {_EXAMPLE}")
    found = float(match[1]) * unit
    if len(_READ) < READ_MAX:
        _READ[value] = found
    return found


def instant_ms(value: Instant, argument: str) -> int:
    """Read an instant: an aware datetime, ISO 8601 text with an offset, or epoch seconds."""
    if isinstance(value, str):
        written = value
        try:
            value = datetime.fromisoformat(written)
        except ValueError as error:
            raise ValueError(f"{argument} must be ISO 8601, got {written[:80]!r}") from error
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(
                f"{argument} must have a time zone, such as datetime.now(timezone.utc): "
                f"{value.isoformat()} could be an hour of any place"
            )
        return (value - _EPOCH) // timedelta(milliseconds=1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a datetime or epoch seconds, got {_kind(value)}")
    if not math.isfinite(value) or not 0 <= value < 253_402_300_800:
        raise ValueError(f"{argument} must be seconds since 1970, got {value!r}")
    return math.ceil(value * 1000)


def datetime_of(ms: int) -> datetime:
    """The aware UTC datetime of an instant."""
    return _EPOCH + timedelta(milliseconds=ms)


def show_ms(ms: int) -> str:
    """A duration for people: the largest unit that divides it."""
    for size, words in reversed(_UNITS_MS.items()):
        if ms and ms % size == 0:
            count = ms // size
            return f"{count} {words[-1] if count != 1 else words[-2]}"
    return "0 seconds"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _kind(value: object) -> str:
    return type(value).__name__
