"""The duty of giving back what this worker holds and does not work on, because something failed.

The heartbeat renews every lease of the worker, also that of a run whose activation ended in an
error. So each such lease is noted here, and given back after a pause that grows with each failure.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ci_platform.errors import LeaseLost, NotFound, SluiceError
from ci_platform.ports import Clock

FIRST_PAUSE_MS = 250  # doubles with each failure in a row
DOUBLINGS_MAX = 7
AGAIN_MS = 1_000  # until the next try, when giving back fails too

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stray:
    name: str  # for the log
    due_ms: int
    give_back: Callable[[], None]


class Strays:
    """As many as there are leases, at most. Safe to call from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._strays: list[Stray] = []

    def add(self, name: str, give_back: Callable[[], None], *, failures: int) -> None:
        """Note a lease. `give_back` may be called again and must not mind that it is gone."""
        pause_ms = FIRST_PAUSE_MS << min(failures, DOUBLINGS_MAX)
        self._put(Stray(name, self._clock.now_ms() + pause_ms, give_back))

    def run_once(self) -> int:
        """Give back what is due. Returns how many leases that was."""
        now_ms = self._clock.now_ms()
        with self._lock:
            due = [stray for stray in self._strays if stray.due_ms <= now_ms]
            self._strays = [stray for stray in self._strays if stray.due_ms > now_ms]
        return sum(self._give_back(stray) for stray in due)

    def _give_back(self, stray: Stray) -> int:
        try:
            stray.give_back()
        except (LeaseLost, NotFound):
            return 0  # it went by itself
        except SluiceError as error:
            _log.warning("%s: cannot be given back yet: %s", stray.name, error)
            self._put(Stray(stray.name, self._clock.now_ms() + AGAIN_MS, stray.give_back))
            return 0
        return 1

    def _put(self, stray: Stray) -> None:
        with self._lock:
            self._strays.append(stray)
