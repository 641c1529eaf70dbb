"""The desk of services: their logs, and whether their blocks have ended, both from the store.

Given to runners by app.py. A service is no part of any lease: what its log cannot take, because the
store is away or the run is gone, is lost, and never ends the service.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ci_platform.errors import RunNotFound, SluiceError
from ci_platform.model import Entry, EntryKind, RunId, StepKey
from ci_platform.ports import Clock, Store
from ci_platform.worker.lines import StepLog

LOOKS_MAX = 10_000  # journals that are remembered, so that only what is new in them is read

_log = logging.getLogger(__name__)
_ENDS = (EntryKind.STEP_PASSED, EntryKind.STEP_FAILED, EntryKind.STEP_CANCELLED)


class StoreDesk:
    """Safe to use from many threads."""

    def __init__(self, store: Store, clock: Clock, *, log_bytes: int) -> None:
        self._store = store
        self._clock = clock
        self._log_bytes = log_bytes
        self._read: dict[tuple[str, str], int] = {}  # by run and step: up to which entry
        self._lock = threading.Lock()

    def log(self, run_id: str, step: str) -> DeskLog:
        return DeskLog(self._store, self._clock, RunId(run_id), step, self._log_bytes)

    def ended(self, run_id: str, step: str) -> bool:
        try:
            over = self._ended(RunId(run_id), step)
        except RunNotFound:
            over = True
        if over:
            with self._lock:
                self._read.pop((run_id, step), None)
        return over

    def _ended(self, run_id: RunId, step: str) -> bool:
        runs = self._store.runs
        run = runs.get(run_id)
        if run.state.terminal:
            return True
        with self._lock:
            after = self._read.get((run_id, step), 0)
        if run.last_seq <= after:
            return False
        entries = runs.journal(run_id, after=after)
        with self._lock:
            while len(self._read) >= LOOKS_MAX:
                self._read.pop(next(iter(self._read)))
            self._read[run_id, step] = entries[-1].seq if entries else after
        key = StepKey.parse(step)
        return any(_ends(entry, key) for entry in entries)


def _ends(entry: Entry, key: StepKey) -> bool:
    return entry.key == key and entry.kind in _ENDS


class DeskLog:
    """The log of a service, from one start of it to its end."""

    def __init__(
        self, store: Store, clock: Clock, run_id: RunId, step: str, bytes_max: int
    ) -> None:
        self._store = store
        # Each machine whose commands need the service runs its own, and all write to one log.
        self._lines = StepLog(store.logs, clock, run_id, step, bytes_max, shared=True)
        self._gone = False  # the run is

    def write(self, stream: str, data: bytes) -> None:
        self._do(lambda: self._lines.write(stream, data))

    def note(self, text: str) -> None:
        self._do(lambda: self._lines.note(text))

    def flush(self) -> None:
        self._do(self._lines.flush)

    def close(self) -> None:
        self._do(self._lines.close)
        self._do(lambda: self._store.logs.seal(self._lines.run_id, self._lines.step))

    def _do(self, what: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            what()
        except RunNotFound:
            self._gone = True
        except SluiceError as error:
            _log.warning("the log of %s %s waits: %s", self._lines.run_id, self._lines.step, error)
