"""The duty of being there: one write renews the leases this worker works on, one tells people."""

from __future__ import annotations

import os

from ci_platform.ports.housekeeping import WorkerRecord
from ci_platform.worker.holding import Holding
from ci_platform.worker.settings import Tools

BEATS_PER_LEASE = 3  # so two may fail before a lease runs out


class Heartbeat:
    def __init__(self, tools: Tools, holding: Holding) -> None:
        self._tools = tools
        self._holding = holding
        self._started_ms = tools.clock.now_ms()
        self.draining = False  # told to people
        self.obstacle: str | None = None  # likewise: why no command is started
        self.asked = False  # somebody wants this worker to drain

    @property
    def period_ms(self) -> int:
        return max(1, self._tools.settings.lease_ms // BEATS_PER_LEASE)

    def run_once(self) -> None:
        tools = self._tools
        held = self._holding.ids()
        if held:
            tools.store.runs.renew(tools.id, lease_ms=tools.settings.lease_ms, held=held)
        self.show()

    def show(self) -> None:
        """Write the row by which people see this worker."""
        tools = self._tools
        self.asked = tools.store.workers.beat(
            WorkerRecord(
                id=tools.id,
                host=tools.host,
                pid=os.getpid(),
                started_ms=self._started_ms,
                seen_ms=tools.clock.now_ms(),
                beat_ms=self.period_ms,
                labels=tools.labels,
                capacity=tools.settings.operations_max,
                draining=self.draining,
                obstacle=self.obstacle,
            )
        )

    def stop(self) -> None:
        """Take the row away: this worker ends by its own will."""
        self._tools.store.workers.gone(self._tools.id)
