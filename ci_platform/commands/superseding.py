"""Ending the runs that a newer one of their group makes needless.

Which they are follows from rows that were written with the new run, so whoever comes first may do
it: the process that created it, or a worker's duty when that process has died. Doing it twice
changes nothing.
"""

from __future__ import annotations

from ci_platform.commands.changing import change
from ci_platform.commands.parts import Parts
from ci_platform.engine import outside
from ci_platform.errors import Conflict, RunNotFound
from ci_platform.model import RunId

BATCH_MAX = 100  # new runs looked at in one turn
REASON = "superseded"


def supersede(parts: Parts) -> int:
    """End what new runs have made needless. Returns how many runs that was."""
    ended = 0
    for one in parts.store.runs.superseded(limit=BATCH_MAX):
        by = f"run #{one.number}"
        for run_id in one.runs:
            ended += _cancel(parts, RunId(run_id), by)
        parts.store.runs.superseded_done(one.by)
    return ended


def _cancel(parts: Parts, run_id: RunId, by: str) -> bool:
    try:
        _, changed = change(
            parts, run_id, lambda view, now_ms: outside.cancel(view, by, now_ms, reason=REASON)
        )
    except (Conflict, RunNotFound):
        return False  # it has ended meanwhile
    return changed
