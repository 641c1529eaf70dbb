"""How many runs a user's playground may start: whoever starts them, by whichever door.

Called by the commands that start runs; repositories of teams have no such quota.
"""

from __future__ import annotations

from ci_platform.commands.parts import Parts
from ci_platform.commands.repositories import PLAYGROUND
from ci_platform.errors import TooMany
from ci_platform.model import Repository, RunState
from ci_platform.ports import RunFilter

LIVE_MAX = 3  # runs of one user that have not ended
MINUTE_MS, STARTS_PER_MINUTE = 60_000, 10


def live(parts: Parts, repository: Repository) -> int:
    """How many of its runs have not ended; counted to LIVE_MAX."""
    states = [state for state in RunState if not state.terminal]
    which = RunFilter(repository_ids=[repository.id], states=states)
    return len(parts.store.runs.list(which, limit=LIVE_MAX).runs)


def check_quota(parts: Parts, repository: Repository, count: int = 1) -> None:
    """Raises TooMany if so many runs more would be too many."""
    if repository.owner != PLAYGROUND:
        return
    if live(parts, repository) + count > LIVE_MAX:
        raise TooMany(f"{LIVE_MAX} runs of your playground have not ended: cancel one first")
    since_ms = parts.clock.now_ms() - MINUTE_MS
    which = RunFilter(repository_ids=[repository.id])
    newest = parts.store.runs.list(which, limit=STARTS_PER_MINUTE).runs
    recent = sum(run.created_ms > since_ms for run in newest)
    if recent + count > STARTS_PER_MINUTE:
        raise TooMany(f"the playground starts {STARTS_PER_MINUTE} runs a minute: wait a little")
