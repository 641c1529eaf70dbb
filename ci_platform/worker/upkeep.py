"""The duty of the git store's upkeep: small packs are joined, what no repository uses is removed.

How is the git store's business; a worker only calls it now and then, in turns with the others.
"""

from __future__ import annotations

from ci_platform.worker.settings import Tools

PERIOD_MS = 10 * 60 * 1000


class GitUpkeep:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Returns how many things were removed."""
        if not self._tools.store.duties.take("git upkeep", every_ms=PERIOD_MS):
            return 0
        return self._tools.maintain_git()
