"""Which leases this worker knows of: only those are renewed.

A claim may be written while its answer is lost with the connection. Nobody works on such a lease,
and this process cannot know of it; since it is not here it runs out, and another claim finds it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from ci_platform.model import Operation, Run


class Holding:
    """Safe to use from several threads. What is taken twice is dropped twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By fence too: a run may be claimed again while the thread that had it before still ends.
        self._held: Counter[tuple[str, int]] = Counter()

    def take(self, leased: Run | Operation) -> None:
        with self._lock:
            self._held[leased.id, leased.fence] += 1

    def drop(self, leased: Run | Operation) -> None:
        with self._lock:
            self._held[leased.id, leased.fence] -= 1
            if self._held[leased.id, leased.fence] <= 0:
                del self._held[leased.id, leased.fence]

    def ids(self) -> Sequence[str]:
        with self._lock:
            return sorted({name for name, _ in self._held})
