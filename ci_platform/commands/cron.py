"""When a schedule is due. Pure: five cron fields in a time zone, over cronsim.

An hour that a change to summer time leaves out is made up for behind it; one that comes twice
counts once.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ci_platform.errors import InvalidRequest

MS = 1000


def next_ms(cron: str, timezone: str, after_ms: int) -> int | None:
    """The first time after `after_ms`; None if there is none. Raises InvalidRequest."""
    return _first(cron, timezone, after_ms, back=False)


def last_ms(cron: str, timezone: str, until_ms: int) -> int | None:
    """The last time until `until_ms`, itself included; None if there is none. Raises
    InvalidRequest."""
    return _first(cron, timezone, until_ms + 1, back=True)


def _first(cron: str, timezone: str, at_ms: int, *, back: bool) -> int | None:
    try:
        zone = ZoneInfo(timezone)
    except (ValueError, OSError, LookupError) as error:
        raise InvalidRequest(f"there is no time zone {timezone!r}", field="timezone") from error
    # Whole seconds: looking back, a part of one counts as begun.
    at = datetime.fromtimestamp(at_ms // MS, UTC)
    if back and at_ms % MS:
        at += timedelta(seconds=1)
    try:
        found = next(CronSim(cron, at.astimezone(zone), reverse=back), None)
    except CronSimError as error:
        raise InvalidRequest(f"cron {cron!r} is not valid: {error}", field="cron") from error
    return None if found is None else round(found.timestamp() * MS)
