"""The duty of keeping what this worker holds: one write renews all of its leases."""

from __future__ import annotations

from ci_platform.worker.settings import Tools

BEATS_PER_LEASE = 3  # so two may fail before a lease runs out


class Heartbeat:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    @property
    def period_ms(self) -> int:
        return max(1, self._tools.settings.lease_ms // BEATS_PER_LEASE)

    def run_once(self) -> None:
        tools = self._tools
        tools.store.runs.renew(tools.id, lease_ms=tools.settings.lease_ms)
