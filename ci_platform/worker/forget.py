"""The duty of small rows whose time is over: one-time links, ids of webhook deliveries, what others
were told, and workers that died without a word."""

from __future__ import annotations

from ci_platform.worker.settings import Tools

PERIOD_MS = 3600 * 1000
BATCH_MAX = 500  # deliveries dropped in one write
BATCHES_MAX = 100  # in one turn
DEAD_MS = 24 * 3600 * 1000  # how long a worker that fell silent is still shown


class Forget:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Drop what is due. Returns how many rows."""
        store, now_ms = self._tools.store, self._tools.clock.now_ms()
        if not store.duties.take("forget", every_ms=PERIOD_MS):
            return 0
        dropped = store.identity.forget_links(now_ms) + store.workers.forget(now_ms - DEAD_MS)
        for _ in range(BATCHES_MAX):
            gone = store.hooks.forget(now_ms, limit=BATCH_MAX)
            dropped += gone
            if gone < BATCH_MAX:
                break
        return dropped + self._tools.forget_sent()
