"""Seeing one command through: its output as it comes, its limits, and its end.

One thread, one loop. What runs is a `Process`: a sandbox or a plain child. Time and cancelling
end it politely (TERM, grace, KILL), every other limit at once.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.launch import Exit
from ci_platform.runner.limits import (
    OUTPUT_TAIL_BYTES,
    Excess,
    RunnerLimits,
    over_output,
    over_time,
    was_cancelled,
)
from ci_platform.shell import LINE_BYTES_MIN

_READ_BYTES = 1 << 16
_TICK_SECONDS = 0.1
_FIRST_TICK_SECONDS = 0.03
_KILL_SECONDS_MAX = 30.0  # a killed process that is still there then is stuck in the kernel
_LINGER_SECONDS = 1.0  # for output of processes that outlived a command without a sandbox

Output = Callable[[str, bytes], None]


class Process(Protocol):
    """A started command. All methods are called from one thread and never block for long."""

    stdout: int
    stderr: int

    def fileno(self) -> int:
        """Readable when the process has ended."""

    def excess(self) -> Excess | None:
        """The limit it is over now, if any. Called ten times a second."""

    def notes(self) -> Iterable[str]:
        """What the platform has to say about it since the last call, in lines."""

    def terminate(self) -> None:
        """Ask it to end. Called ten times a second from the first time on, until it does."""

    def kill(self) -> None:
        """End it and everything it started."""

    def wait(self) -> Exit: ...


@dataclass(frozen=True, slots=True)
class Ending:
    exit: Exit
    excess: Excess | None
    tail: str  # the last of the output


@dataclass(slots=True)
class _Watcher:
    """The state of the loop."""

    process: Process
    output: Output
    stop: Callable[[], bool]
    limits: RunnerLimits
    timeout_ms: int
    started: float = field(default_factory=time.monotonic)
    excess: Excess | None = None
    ending_since: float | None = None
    killed_since: float | None = None
    output_bytes: int = 0
    tail: bytearray = field(default_factory=bytearray)

    def take(self, stream: str, data: bytes) -> None:
        """Pass output on, up to the limit; what comes after it is read and thrown away."""
        left = self.limits.output_bytes - self.output_bytes
        self.output_bytes += max(len(data), data.count(b"\n") * LINE_BYTES_MIN)
        if data[:left] and left > 0:
            self.output(stream, data[:left])
            self.tail += data[:left]
            del self.tail[:-OUTPUT_TAIL_BYTES]
        if self.output_bytes > self.limits.output_bytes:
            self.end(over_output(self.output_bytes, self.limits), politely=False)

    def tick(self) -> None:
        """Look at everything that is not output."""
        now = time.monotonic()
        self.tell()
        if self.ending_since is None:
            if self.stop():
                self.end(was_cancelled(), politely=True)
            elif now - self.started > self.timeout_ms / 1000:
                self.end(over_time(self.timeout_ms), politely=True)
        if self.killed_since is None:
            found = self.process.excess()
            if found is not None:
                self.end(found, politely=False)
        elif now - self.killed_since > _KILL_SECONDS_MAX:
            raise RunnerUnavailable("a killed command does not end: it is stuck in the kernel")
        if self.ending_since is not None and self.killed_since is None:
            self.process.terminate()
            if now - self.ending_since > self.limits.grace_seconds:
                self._kill()

    def tell(self) -> None:
        for line in self.process.notes():
            self.output("note", f"{line}\n".encode())

    def end(self, excess: Excess, *, politely: bool) -> None:
        """Begin to end the command; the first reason is the one that is told."""
        if self.excess is None:
            self.excess = excess
            self.output("note", f"{excess.detail}\n".encode())
        if self.ending_since is None:
            self.ending_since = time.monotonic()
        if not politely:
            self._kill()

    def _kill(self) -> None:
        if self.killed_since is None:
            self.killed_since = time.monotonic()
            self.process.kill()


def see_through(
    process: Process,
    *,
    output: Output,
    stop: Callable[[], bool],
    limits: RunnerLimits,
    timeout_ms: int,
) -> Ending:
    """Read and watch a process until it has ended and its output is read to the end.

    However this returns, the process and all it started are gone.
    """
    watcher = _Watcher(process, output, stop, limits, timeout_ms)
    try:
        _loop(watcher)
        watcher.tell()
        late = process.excess() if watcher.excess is None else None
        if late is not None:  # the kernel was faster than the watch
            watcher.end(late, politely=False)
    finally:
        process.kill()
    tail = watcher.tail.decode(errors="replace")
    try:
        return Ending(process.wait(), watcher.excess, tail)
    except RunnerUnavailable as error:
        said = f": {tail.strip()}" if tail.strip() else ""
        raise RunnerUnavailable(error.detail + said) from error


def _loop(watcher: _Watcher) -> None:
    process = watcher.process
    # Most commands are short: the first look, which costs a millisecond, waits a moment.
    next_tick, over_since = time.monotonic() + _FIRST_TICK_SECONDS, None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "stdout")
        selector.register(process.stderr, selectors.EVENT_READ, "stderr")
        selector.register(process, selectors.EVENT_READ, None)
        while selector.get_map():
            rest = next_tick - time.monotonic() if over_since is None else _TICK_SECONDS
            ready = selector.select(max(0.0, rest))
            for key, _ in ready:
                if key.data is None:
                    over_since = time.monotonic()
                    selector.unregister(key.fileobj)
                    process.kill()  # what a command without a sandbox left behind
                    continue
                data = os.read(key.fd, _READ_BYTES)
                if data:
                    watcher.take(key.data, data)
                else:
                    selector.unregister(key.fileobj)
            now = time.monotonic()
            if over_since is not None and not ready and now - over_since > _LINGER_SECONDS:
                return
            if over_since is None and now >= next_tick:
                watcher.tick()
                next_tick = time.monotonic() + _TICK_SECONDS
