"""Errands: what was promised and is not done yet, a kept webhook delivery or a push in the outbox.

One thread per web process runs them, at once when rung and every few seconds otherwise; that is how
work goes on that a process promised and then died. Two processes doing one errand do it once: runs
have ids that follow from what started them.
"""

from __future__ import annotations

import logging
import threading

from ci_platform.commands import Commands

EVERY_S = 5.0
STOP_S = 10.0  # how long `close` waits for an errand to end

log = logging.getLogger(__name__)


class Errands:
    """Runs errands from `start` to `close`; `run_once` alone is for tests and tools."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._rung = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="errands", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """There is something to do now."""
        self._rung.set()

    def close(self) -> None:
        self._closed.set()
        self._rung.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def run_once(self) -> int:
        """Do what is due. Returns how many errands ended."""
        return self._commands.hooks.finish_pending() + self._commands.pushes.dispatch_pending()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._rung.clear()
            try:
                if self.run_once():
                    continue  # there may be more than one look takes
            except Exception:
                # The database may be away for a moment; the thread must outlive that.
                log.exception("errands failed; trying again")
            self._rung.wait(EVERY_S)
