"""The duty of parents and their children: one is told when the other has ended.

How belongs to commands; a worker calls them when it has ended a run, and now and then.
"""

from __future__ import annotations

from ci_platform.worker.settings import Tools


class Families:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Do what is due. Safe at any time. Returns how many links that was."""
        return self._tools.family_pending()
