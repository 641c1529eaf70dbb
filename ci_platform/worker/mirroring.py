"""The duty of mirrors: those that are due are brought up to date.

Which they are and how that is done belongs to commands; a worker only calls them again.
"""

from __future__ import annotations

from ci_platform.worker.settings import Tools


class Mirroring:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Takes as long as the remotes do. Returns how many mirrors that was."""
        return self._tools.sync_mirrors()
