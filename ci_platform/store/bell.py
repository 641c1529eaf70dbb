"""Waking sleepers after a commit, across the threads of a process and across processes.

Each process has one `Belfry`: it knows the listeners of its own threads, and tells other processes
through a `Wire`: unix datagrams beside a SQLite file, LISTEN/NOTIFY on PostgreSQL. All of it is a
hint. Nothing here raises into whoever commits, and listeners poll slowly on their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

RING_INTERVAL_S = 0.002  # between two rings from other processes; a burst becomes one


class Wire(Protocol):
    """Carries rings between processes."""

    def listen(self) -> None:
        """Be rung from here on. Before `receive`; who only sends need not."""

    def send(self) -> None:
        """Ring the other processes. Cheap, does not block, never raises."""

    def receive(self, timeout_s: float) -> bool:
        """Wait for a ring of another process; True if there was one. Called by one thread.

        Rings that came together are one. Never raises.
        """

    def stop(self) -> None:
        """Make a `receive` in another thread return, and later ones at once."""

    def close(self) -> None:
        """Let go of everything; nobody is in `receive` any more."""


class Listener:
    """One waiter's ear: a `Bell`. Remembers a ring that comes while it is not waiting."""

    def __init__(self, ring: Callable[[], None], forget: Callable[[Listener], None]) -> None:
        self._ring = ring
        self._forget = forget
        self._rung = threading.Event()

    def ring(self) -> None:
        self._ring()

    def wait(self, timeout_s: float) -> bool:
        if not self._rung.wait(timeout_s):
            return False
        self._rung.clear()
        return True

    def hear(self) -> None:
        self._rung.set()

    def close(self) -> None:
        self._forget(self)


class Bells:
    """The two bells of one process. Every commit rings for whoever watches; those that may have
    made something due also ring for workers, whom the rest would only wake in vain."""

    def __init__(self, open_wire: Callable[[str], Wire]) -> None:
        self._news = Belfry(lambda: open_wire("news"))
        self._work = Belfry(lambda: open_wire("work"))

    def listener(self, *, work: bool) -> Listener:
        return (self._work if work else self._news).listener()

    def tell(self) -> None:
        """Something was committed."""
        self._news.ring()

    def ring(self) -> None:
        """Something was committed that a worker may have to do."""
        self._work.ring()
        self._news.ring()

    def close(self) -> None:
        self._work.close()
        self._news.close()


class Belfry:
    """One bell in one process. The receiving thread runs while there are listeners."""

    def __init__(self, open_wire: Callable[[], Wire]) -> None:
        self._open_wire = open_wire
        self._tried = False
        self._wire: Wire | None = None
        self._receiver: threading.Thread | None = None
        self._listeners: tuple[Listener, ...] = ()  # replaced, never changed: read without a lock
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def listener(self) -> Listener:
        listener = Listener(self.ring, self._forget)
        with self._lock:
            self._listeners = (*self._listeners, listener)
            wire = self._connected()
            if self._receiver is None and wire is not None:
                with contextlib.suppress(OSError):  # its slow poll finds everything, too
                    self._start(wire)
        return listener

    def _start(self, wire: Wire) -> None:
        wire.listen()
        self._receiver = threading.Thread(
            target=self._receive, args=(wire,), name="bell", daemon=True
        )
        self._receiver.start()

    def ring(self) -> None:
        """Called after each commit."""
        for listener in self._listeners:
            listener.hear()
        wire = self._wire
        if wire is None and not self._tried:
            with self._lock:
                wire = self._connected()
        if wire is not None:
            wire.send()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            wire, self._wire, self._tried = self._wire, None, True
            receiver, self._receiver = self._receiver, None
        if wire is not None:
            wire.stop()
            if receiver is not None:
                receiver.join()
            wire.close()
        for listener in self._listeners:
            listener.hear()

    def _connected(self) -> Wire | None:
        """The wire, opened at first use. Called under the lock."""
        if not self._tried:
            self._tried = True
            # Without a wire the listeners' slow poll still finds everything.
            with contextlib.suppress(OSError):
                self._wire = self._open_wire()
        return self._wire

    def _forget(self, listener: Listener) -> None:
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

    def _receive(self, wire: Wire) -> None:
        while not self._closed.is_set():
            if wire.receive(timeout_s=5):
                for listener in self._listeners:
                    listener.hear()
                self._closed.wait(RING_INTERVAL_S)
