"""Waking of live streams: one thread per process listens to the store's bell for all of them.

A stream subscribes, reads, waits, reads again. It lives only while there are subscribers, so an
idle server polls nothing. Used by api and web.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from ci_platform.errors import TooMany
from ci_platform.ports import Bell

LISTEN_S = 1.0  # how long the thread listens before it looks whether anyone is left
SUBSCRIBERS_MAX = 2000  # streams of one process

log = logging.getLogger(__name__)


class Listener:
    """One stream's ear. A ring while it reads is remembered, so nothing is missed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rung = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Return True when rung since the last call, False after the timeout."""
        try:
            await asyncio.wait_for(self._rung.wait(), timeout_s)
        except TimeoutError:
            return False
        self._rung.clear()
        return True

    def ring(self) -> None:
        """Called from the listening thread."""
        # A loop that has closed in between has no stream left to wake.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._rung.set)


class Live:
    """Wakes the streams of this process. `open_bell` is `Store.bell`."""

    def __init__(self, open_bell: Callable[[], Bell]) -> None:
        self._open_bell = open_bell
        self._listeners: set[Listener] = set()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def check_room(self) -> None:
        """Raise TooMany when the process has too many streams: before one begins."""
        if len(self._listeners) >= SUBSCRIBERS_MAX:
            raise TooMany(f"this server follows {SUBSCRIBERS_MAX} streams already")

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Subscribe for the length of a stream: read, `await listener.wait(timeout)`, read again.

        Call it on the event loop, after `check_room`: a stream that has begun cannot be refused.
        """
        listener = Listener(asyncio.get_running_loop())
        with self._lock:
            self._listeners.add(listener)
            alive = self._thread is not None and self._thread.is_alive()
            if not alive and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="live", daemon=True)
                self._thread.start()
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def close(self) -> None:
        """End the thread; streams that still wait run into their timeout."""
        self._closed.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout=2 * LISTEN_S)

    def _run(self) -> None:
        try:
            with closing(self._open_bell()) as bell:
                while not self._leave():
                    if bell.wait(LISTEN_S):
                        with self._lock:
                            listeners = list(self._listeners)
                        for listener in listeners:
                            listener.ring()
        except Exception:
            # Streams go on with their slow poll, and the next one opens the bell again.
            log.exception("the bell broke")

    def _leave(self) -> bool:
        """End the thread when it is not needed; decided under the lock that starts a new one."""
        with self._lock:
            if self._listeners and not self._closed.is_set():
                return False
            self._thread = None
            return True
