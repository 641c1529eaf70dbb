"""A bounded memory of how often things happen: buckets that empty with use and fill again.

In this process alone, so with several the limits are that much wider. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

TRACKED_MAX = 10_000  # buckets remembered; the one used longest ago is forgotten first


class Rate:
    def __init__(self, *, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._lock = threading.Lock()
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, now: float, *, count: int = 1) -> float:
        """0 if it may happen now, so often; else after how many seconds. `now` is a clock that
        never goes back."""
        with self._lock:
            left, at = self._left.pop(key, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._per_second)
            allowed = left >= count
            self._left[key] = (left - count if allowed else left, now)
            while len(self._left) > TRACKED_MAX:
                self._left.popitem(last=False)
            return 0.0 if allowed else (count - left) / self._per_second
