"""The duty of retention: runs that ended long ago go, with all that only they needed.

A run's rows (journal, logs, commands, approvals) go with it. The commit it kept alive is let go
when no other run stands at it. The newest of each pipeline stay, however old they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from ci_platform.errors import Conflict, NotFound, RunNotFound
from ci_platform.model import RepositoryId
from ci_platform.ports.housekeeping import OldRun
from ci_platform.worker.settings import Tools

PERIOD_MS = 60_000
WINDOW = 500  # runs looked at in one read
WINDOWS_MAX = 20  # in one turn
REMOVED_MAX = 500  # in one turn


class Prune:
    """One worker at a time is enough; any number does no harm."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._after = 0  # where this process looks on

    def run_once(self) -> int:
        """Remove what is old, as much as a turn may. Returns how many runs."""
        tools = self._tools
        if not tools.store.duties.take("prune", every_ms=PERIOD_MS):
            return 0
        settings = tools.settings
        before_ms = tools.clock.now_ms() - settings.retention_ms
        removed = 0
        for _ in range(WINDOWS_MAX):
            found = tools.store.runs.old(
                before_ms=before_ms, keep=settings.kept_runs, after=self._after, limit=WINDOW
            )
            removed += self._remove(found.runs)
            self._after = found.cursor
            if self._after == 0 or removed >= REMOVED_MAX:
                break
        return removed

    def _remove(self, runs: Iterable[OldRun]) -> int:
        removed = 0
        commits: dict[RepositoryId, set[str]] = {}
        for run in runs:
            try:
                self._tools.store.runs.delete(run.id)
            except (RunNotFound, Conflict):
                continue  # another worker, or a person, was here first
            commits.setdefault(run.repository_id, set()).update(run.commits)
            removed += 1
        for repository_id, let_go in commits.items():
            self._release(repository_id, sorted(let_go))
        return removed

    def _release(self, repository_id: RepositoryId, commits: list[str]) -> None:
        """Let go of the commits that no run is left for. A run may be created while we do: it
        keeps its commit again after it is there, and so do we when we see it."""
        tools = self._tools
        unused = set(commits) - tools.store.runs.commits_used(repository_id, commits)
        try:
            for commit in unused:
                tools.source.release(repository_id, commit)
            for commit in tools.store.runs.commits_used(repository_id, sorted(unused)):
                tools.source.keep(repository_id, commit)
        except NotFound:
            return  # the repository is gone, and its refs with it
