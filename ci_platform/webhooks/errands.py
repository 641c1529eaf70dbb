"""Errands: what was promised and is not done yet: a kept delivery of a webhook, a push or a notice
in an outbox, and what others are to be told.

Two threads per web process do them, at once when rung and every few seconds otherwise; that is how
work goes on that a process promised and then died. Two processes doing one errand do it once: runs
have ids that follow from what started them, and what is sent is taken in hand before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ci_platform.commands import Commands

EVERY_S = 5.0
TELL_EVERY_S = 2.0
STOP_S = 10.0  # how long `close` waits for an errand to end

log = logging.getLogger(__name__)


class Errands:
    """Runs errands from `start` to `close`; `run_once` alone is for tests and tools."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._rung = threading.Event()
        self._nothing = threading.Event()  # never set before the end: only the clock wakes it
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        # Apart, since sending waits for servers that may be slow.
        loops = (
            ("errands", self.run_once, self._rung, EVERY_S),
            ("telling", self.tell_once, self._nothing, TELL_EVERY_S),
        )
        for name, work, rung, every_s in loops:
            thread = threading.Thread(
                target=self._run, args=(work, rung, every_s), name=name, daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def ring(self) -> None:
        """There is something to do now."""
        self._rung.set()

    def close(self) -> None:
        self._closed.set()
        self._rung.set()
        self._nothing.set()
        for thread in self._threads:
            thread.join(STOP_S)

    def run_once(self) -> int:
        """Do what is due here. Returns how many errands ended."""
        return self._commands.hooks.finish_pending() + self._commands.pushes.dispatch_pending()

    def tell_once(self) -> int:
        """Tell others what they are to hear by now. Returns how much that was."""
        telling = self._commands.telling
        return telling.spread_pending() + telling.deliver_pending()

    def _run(self, work: Callable[[], int], rung: threading.Event, every_s: float) -> None:
        while not self._closed.is_set():
            rung.clear()
            try:
                if work():
                    continue  # there may be more than one look takes
            except Exception:
                # The database may be away for a moment; the thread must outlive that.
                log.exception("errands failed; trying again")
            if self._closed.is_set():
                return
            rung.wait(every_s)
