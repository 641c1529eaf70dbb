"""When the next attempt of a step is due. Pure arithmetic on a step's config."""

from __future__ import annotations

from collections.abc import Mapping

from ci_platform.model import Json

DAY_MS = 86_400_000
DELAY_MS_MAX = 365 * DAY_MS  # as for a sleep
RETRIES_MAX = 10_000
BACKOFFS = ("constant", "linear", "exponential")
DEFAULT_DELAY_MS = 10_000  # when the config leaves it to a function that gave none
_DOUBLINGS_MAX = 40  # 2**40 of anything is over DELAY_MS_MAX already


def attempts_max(config: Mapping[str, Json]) -> int:
    """How many attempts a step has in all: its retries and the first one."""
    return int((config.get("retries") or {}).get("limit", 0)) + 1


def delay_ms(config: Mapping[str, Json], attempt: int, chosen_ms: int | None = None) -> int:
    """How long to wait after `attempt` failed.

    `chosen_ms` is what the author's delay function answered; it is taken as it is, since a
    function that sees the attempt needs no backoff on top.
    """
    if chosen_ms is not None:
        return min(max(chosen_ms, 0), DELAY_MS_MAX)
    retries = config.get("retries") or {}
    base = retries.get("delay_ms")
    if base is None:
        base = DEFAULT_DELAY_MS
    match retries.get("backoff", "exponential"):
        case "constant":
            factor = 1
        case "linear":
            factor = attempt
        case _:
            factor = 1 << min(attempt - 1, _DOUBLINGS_MAX)
    return min(int(base) * factor, DELAY_MS_MAX)
