"""The duty of schedules: runs whose time has come are started.

When that is and what starts belongs to commands; a worker only calls them again.
"""

from __future__ import annotations

from ci_platform.worker.settings import Tools


class Firing:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Start what is due. Safe at any time. Returns how many schedules that was."""
        return self._tools.fire_schedules()
