"""The duty of stored workspace layers: those that no run refers to any more go.

A layer is stored before the journal tells of it, so that young ones are left alone: one that is
being sealed is never swept. The journals' references are rows, see the store's retention.
"""

from __future__ import annotations

from ci_platform.worker.settings import Tools

PERIOD_MS = 6 * 3600 * 1000
GRACE_MS = 24 * 3600 * 1000  # far more than there is between storing a layer and its entry


class LayerSweep:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Remove what nothing needs. Returns how many layers."""
        tools = self._tools
        if tools.layers is None or not tools.store.duties.take("layers", every_ms=PERIOD_MS):
            return 0
        before_ms = tools.clock.now_ms() - GRACE_MS
        removed = 0
        for page in tools.layers.stored(before_ms=before_ms):
            used = tools.store.runs.layers_used(page)
            unused = [digest for digest in page if digest not in used]
            if unused:
                removed += tools.layers.remove(unused, before_ms=before_ms)
        return removed
