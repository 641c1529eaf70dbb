"""The clock for production. All processes of a deployment must agree on the time, since leases and
timers compare instants that different ones wrote: on SQLite they share the machine's clock, on
PostgreSQL they follow the server's (server_clock.py).
"""

from __future__ import annotations

import time


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000
