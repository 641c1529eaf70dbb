"""The duty of runs that a newer one of their group makes needless, when nobody has ended them.

What they are and how they end belongs to commands; a worker only calls them again.
"""

from __future__ import annotations

from ci_platform.worker.settings import Tools


class Superseding:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """End what is needless. Safe at any time. Returns how many runs that was."""
        return self._tools.supersede_pending()
