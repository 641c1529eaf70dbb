"""Keeps the processes of one server alive: starts them, replaces those that die, drains them all.

It has imported what they need and forks them, so that a replacement is there in milliseconds and
they share the memory of all that code. For that it stays a single thread that opens no database and
starts no sandbox. Who the children are is serve.py's.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from ci_platform.errors import InternalError, SluiceError

QUICK_SECONDS = 3.0  # a child that lived shorter than this has crashed at its start
CRASHES_MAX = 10  # so many of those in a row end the server
FIRST_CRASHES_MAX = 2  # the same, while it has never been ready: most likely it never will be
BACKOFF_SECONDS = 0.25  # before the second restart in a row; doubles, up to the next line
BACKOFF_SECONDS_MAX = 5.0
READY_SECONDS_MAX = 120.0
KILL_SECONDS = 1.0  # between looks for killed children
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
READY = b"\xff"  # no signal has this number
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15

log = logging.getLogger(__name__)


class ServerFailed(InternalError):
    """The server could not be started, or its processes keep dying."""


def die_with(supervisor: int) -> None:
    """Make this process end when its supervisor does, however that one ends.

    The kernel does it on Linux; elsewhere a thread watches for a change of parent. A supervisor
    that died before this call is noticed by its pid.
    """
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(supervisor,), daemon=True).start()
    if os.getppid() != supervisor:
        os._exit(1)


def _prctl(option: int, value: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise ServerFailed(f"prctl failed: {os.strerror(ctypes.get_errno())}")


def _watch_parent(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(0.5)
    os._exit(1)


@dataclass(slots=True, eq=False)
class Child:
    """One process to keep alive. `work` is called in it, with a function to say that it is ready;
    it ends when `work` returns, which a SIGTERM must bring about."""

    name: str
    work: Callable[[Callable[[], None]], None]
    pid: int | None = None
    started_s: float = 0.0  # of the monotonic clock
    due_s: float = 0.0  # when to start it, if it is not running
    crashes: int = 0  # quick ones, in a row


class Supervisor:
    """The first child has the machine to itself until it is ready: people wait for it. The others
    start then. `private` are descriptors that children must not keep open."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        drain_seconds: float,
        on_ready: Callable[[], None],
        private: Sequence[int] = (),
    ) -> None:
        self._children = children
        self._drain_seconds = drain_seconds
        self._on_ready = on_ready
        self._private = list(private)
        self._wake, self._waker = socket.socketpair()  # signals write to it, and who is ready
        self._stops = 0  # how often it was asked to stop
        self._ready = False
        self._failure: str | None = None

    def run(self) -> None:
        """Run until told to stop. Raises ServerFailed if the children cannot be kept alive."""
        gc.freeze()  # what the children share stays shared: their collections do not touch it
        gc.enable()
        deadline_s = time.monotonic() + READY_SECONDS_MAX
        with self._signals():
            while not self._stops and self._failure is None:
                self._start_due()
                self._sleep(self._pause(deadline_s))
                self._reap()
                if not self._ready and time.monotonic() > deadline_s:
                    self._failure = f"not ready after {READY_SECONDS_MAX:g} s"
            self._drain()
        if self._failure is not None:
            raise ServerFailed(self._failure)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop signals are counted; these and the end of a child wake the loop."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stops += 1

        self._wake.setblocking(False)
        self._waker.setblocking(False)
        numbers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGCHLD: lambda *_: None}
        before = {number: signal.signal(number, done) for number, done in numbers.items()}
        waker = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pause(self, deadline_s: float) -> float | None:
        """Until the next restart is due, or the deadline of the first start."""
        moments = [child.due_s for child in self._startable() if child.pid is None]
        if not self._ready:
            moments.append(deadline_s)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _sleep(self, timeout_s: float | None) -> None:
        """Until a signal or a word of a child, or for so long."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return
        if READY in self._wake.recv(4096) and not self._ready and not self._stops:
            self._ready = True
            self._on_ready()

    def _startable(self) -> Sequence[Child]:
        return self._children if self._ready else self._children[:1]

    def _start_due(self) -> None:
        for child in self._startable():
            if child.pid is None and child.due_s <= time.monotonic():
                self._start(child)

    def _start(self, child: Child) -> None:
        supervisor = os.getpid()
        child.started_s = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal for the child must find its own handlers, not the ones it is forked with.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child.pid = os.fork()
        if child.pid == 0:
            os._exit(self._be(child, supervisor))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _be(self, child: Child, supervisor: int) -> int:
        """The life of a child, from fork to exit code."""
        try:
            die_with(supervisor)
            os.setpgid(0, 0)  # a Ctrl-C in the terminal is for the supervisor alone
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for descriptor in (self._wake.fileno(), *self._private):
                os.close(descriptor)
            if sys.platform == "linux":
                _prctl(PR_SET_NAME, f"sluice-{child.name}".encode())
            child.work(self._say_ready)
        except SluiceError as error:
            log.error("%s: %s", child.name, error.detail)
            return 1
        except BaseException:  # whatever it is, this process must not go on as its supervisor
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    def _say_ready(self) -> None:
        self._waker.send(READY)

    def _reap(self) -> None:
        for child in self._children:
            if child.pid is None:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.pid = None
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        if self._stops or self._failure is not None:
            return
        now_s = time.monotonic()
        quick = now_s - child.started_s < QUICK_SECONDS and code != 0
        child.crashes = child.crashes + 1 if quick else 0
        log.warning("%s ended with %s and is replaced", child.name, _describe(code))
        if child.crashes >= (CRASHES_MAX if self._ready else FIRST_CRASHES_MAX):
            self._failure = (
                f"{child.name} crashed {child.crashes} times in a row: {_describe(code)}"
            )
        pause_s = BACKOFF_SECONDS * 2 ** (child.crashes - 2) if child.crashes > 1 else 0.0
        child.due_s = now_s + min(pause_s, BACKOFF_SECONDS_MAX)

    def _drain(self) -> None:
        """Ask all to end, wait, and kill what is left; a second stop signal ends the waiting."""
        self._signal_all(signal.SIGTERM)
        deadline_s = time.monotonic() + self._drain_seconds
        stops = self._stops
        while self._running() and time.monotonic() < deadline_s and self._stops == stops:
            self._sleep(max(0.0, deadline_s - time.monotonic()))
            self._reap()
        if self._running():
            log.warning("not drained: ending what is left")
            self._signal_all(signal.SIGKILL)
        while self._running():
            self._sleep(KILL_SECONDS)
            self._reap()

    def _running(self) -> bool:
        return any(child.pid is not None for child in self._children)

    def _signal_all(self, number: int) -> None:
        for child in self._children:
            if child.pid is not None:
                os.kill(child.pid, number)


def _describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
