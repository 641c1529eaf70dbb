"""The clock of a PostgreSQL deployment. Loaded only there: psycopg takes its time."""

from __future__ import annotations

import threading
import time

import psycopg
from sqlalchemy import URL

from ci_platform.errors import StoreUnavailable

MEASURE_S = 60.0  # how old a measured difference may be
SAMPLES = 3  # of which the quickest counts: it is wrong by at most half its round trip
CONNECT_SECONDS = 10


class ServerClock:
    """The clock of the PostgreSQL server: this machine's, plus the measured difference."""

    def __init__(self, url: URL) -> None:
        """Raises StoreUnavailable if the server cannot be asked."""
        self._address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._lock = threading.Lock()
        try:
            self._offset_ms = self._measured()
        except psycopg.Error as error:
            raise StoreUnavailable(f"the database's clock cannot be read: {error}") from error
        self._measured_s = time.monotonic()

    def now_ms(self) -> int:
        if time.monotonic() - self._measured_s > MEASURE_S and self._lock.acquire(blocking=False):
            try:
                self._measured_s = time.monotonic()
                self._offset_ms = self._measured()
            except psycopg.Error:
                # The old difference stays good enough until the next try.
                self._measured_s = time.monotonic()
            finally:
                self._lock.release()
        return time.time_ns() // 1_000_000 + self._offset_ms

    def _measured(self) -> int:
        best: tuple[float, int] | None = None
        with psycopg.connect(
            self._address, autocommit=True, connect_timeout=CONNECT_SECONDS
        ) as connection:
            for _ in range(SAMPLES):
                before = time.time_ns()
                row = connection.execute(
                    "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
                ).fetchone()
                after = time.time_ns()
                assert row is not None
                here_ms = (before + after) // 2_000_000
                sample = (after - before, int(row[0]) - here_ms)
                best = sample if best is None else min(best, sample)
        assert best is not None
        return best[1]
