"""The duty of giving back what this worker holds and does not work on, because something failed.

Such a lease is noted here, renewed like the others, and given back, with the reason, after a pause
that grows with each failure.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ci_platform.errors import LeaseLost, NotFound, SluiceError
from ci_platform.model import Operation, Run
from ci_platform.ports import Clock
from ci_platform.worker.holding import Holding

FIRST_PAUSE_MS = 250  # doubles with each failure in a row
DOUBLINGS_MAX = 7
AGAIN_MS = 1_000  # until the next try, when giving back fails too

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stray:
    leased: Run | Operation
    due_ms: int
    give_back: Callable[[], None]


class Strays:
    """As many as there are leases, at most. Safe to call from several threads."""

    def __init__(self, clock: Clock, holding: Holding) -> None:
        self._clock = clock
        self._holding = holding
        self._lock = threading.Lock()
        self._strays: list[Stray] = []

    def add(self, leased: Run | Operation, give_back: Callable[[], None], *, failures: int) -> None:
        """Note a lease. `give_back` may be called again and must not mind that it is gone."""
        pause_ms = FIRST_PAUSE_MS << min(failures, DOUBLINGS_MAX)
        self._holding.take(leased)
        self._put(Stray(leased, self._clock.now_ms() + pause_ms, give_back))

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
        except (LeaseLost, NotFound):  # it went by itself
            self._holding.drop(stray.leased)
            return 0
        except SluiceError as error:
            _log.warning("%s: cannot be given back yet: %s", stray.leased.id, error)
            self._put(Stray(stray.leased, self._clock.now_ms() + AGAIN_MS, stray.give_back))
            return 0
        self._holding.drop(stray.leased)
        return 1

    def _put(self, stray: Stray) -> None:
        with self._lock:
            self._strays.append(stray)
