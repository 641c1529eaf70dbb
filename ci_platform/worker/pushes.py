"""The duty of pushes that nobody dispatched: their web process died between the push and its runs.

The outbox and what a push starts belong to commands; a worker only calls them again.
"""

from __future__ import annotations

from ci_platform.worker.settings import Tools


class PendingPushes:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Start what waits. Safe at any time: a push starts its runs once. Returns how many."""
        return self._tools.dispatch_pending()
