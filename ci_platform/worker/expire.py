"""The duty of taking back leases whose workers have gone silent."""

from __future__ import annotations

from ci_platform.worker.settings import Tools

BATCH_MAX = 100  # leases taken back in one write


class Expiry:
    """Any worker may do it; two at once do no harm."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Take back every lease that ran out. Returns how many."""
        total = 0
        while (taken := self._tools.store.runs.expire(limit=BATCH_MAX)) > 0:
            total += taken
            if taken < BATCH_MAX:
                break
        return total
