"""The sandbox processes of one worker: started, handed out, taken back, replaced and ended.

A process runs one activation at a time and keeps the interpreter of the last one, for equal code to
find again. New ones start in the background, so that whoever waits takes the first that is free,
old or new. When a burst is over, all but one end: a guest's memory is given back in no other way.
Used by pool.py; knows nothing of activations.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ci_platform.errors import SandboxUnavailable
from ci_platform.sandbox.build import hold
from ci_platform.sandbox.channel import Channel, ChannelClosed, Frame, Silence
from ci_platform.sandbox.limits import SandboxLimits

EXIT_SECONDS = 5.0  # for a killed process to be gone

WarmKey: TypeAlias = tuple[str, str, bool]  # repository, digest of its code, trusted

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Process:
    """A sandbox process, idle or with one activation."""

    popen: subprocess.Popen[bytes]
    channel: Channel
    confined: tuple[str, ...] = ()
    uses: int = 0
    warm: WarmKey | None = None  # whose code its interpreter has loaded
    warm_uses: int = 0
    resident_bytes: int = 0
    dead: bool = False  # gone, or not to be used again
    serves: str = ""  # the repository that has it

    def kill(self) -> None:
        self.channel.close()
        self.popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(EXIT_SECONDS)


class Processes:
    """See the module. Safe to use from many threads."""

    def __init__(self, limits: SandboxLimits, guest: Path) -> None:
        self._limits = limits
        self._guest = guest
        self._held = hold(guest)
        self._changed = threading.Lock()
        self._idle: list[Process] = []  # the longest idle first
        self._count = 0  # idle, busy and starting
        self._starting = 0
        self._failure: SandboxUnavailable | None = None  # of the last start, if it failed
        self._closed = False
        self._closing = threading.Event()
        self._using: Counter[str] = Counter()  # processes by the repository that has them
        self._queue: dict[threading.Condition, str] = {}  # who waits, and of which repository
        self._taken = 0  # how often a process was handed out
        self._watched = False  # a thread waits for the burst to end
        self.waiting = 0  # callers for whom there is no process

    def start_one(self) -> None:
        """Start a first process now. Raises SandboxUnavailable."""
        process = self._spawn()
        with self._changed:
            self._count += 1
            self._idle.append(process)

    def idle(self) -> list[Process]:
        with self._changed:
            return list(self._idle)

    def take(self, key: WarmKey | None) -> Process:
        """The idle process that has this code loaded, else one that has none, else any, else the
        first that becomes free. Of one repository no more than a share of them is in use: what
        floods the worker leaves some for others. Raises SandboxUnavailable when none can be had."""
        repository = "" if key is None else key[0]
        with self._changed:
            while True:
                if self._closed:
                    raise SandboxUnavailable("the sandbox is closed")
                left = self._limits.processes_each - self._using[repository]
                if self._idle and left > 0:
                    process = self._best(key)
                    self._idle.remove(process)
                    if process.popen.poll() is None:
                        self._taken += 1
                        self._using[repository] += 1
                        process.serves = repository
                        return process
                    self._count -= 1  # it was killed meanwhile, for its memory perhaps
                    process.channel.close()
                    continue
                if self._count == 0 and self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                room = self._count < self._limits.processes and self._starting <= self.waiting
                if room and left > self._starting:  # one kept for others waits until they come
                    self._start()
                self._wait(repository)

    def _wait(self, repository: str) -> None:
        """Until there may be a process for a caller of this repository."""
        woken = threading.Condition(self._changed)
        self._queue[woken] = repository
        self.waiting += 1
        try:
            woken.wait()
        finally:
            self.waiting -= 1
            self._queue.pop(woken, None)

    def _wake(self) -> None:
        """There is one more idle process: for the first who may have it."""
        for woken, repository in self._queue.items():
            if self._using[repository] < self._limits.processes_each:
                del self._queue[woken]  # the next process is another's
                woken.notify()
                return

    def _wake_all(self) -> None:
        for woken in self._queue:
            woken.notify()

    def _best(self, key: WarmKey | None) -> Process:
        for wanted in (key, None):
            for process in self._idle:
                if process.warm == wanted:
                    return process
        return self._idle[0]

    def give_back(self, process: Process) -> None:
        """The activation is over. A process that is used up is replaced."""
        limits = self._limits
        used_up = process.uses >= limits.uses_max or process.resident_bytes >= limits.rss_bytes
        with self._changed:
            self._using[process.serves] -= 1
            if not self._using[process.serves]:
                del self._using[process.serves]
            keep = not (process.dead or used_up or self._closed)
            if keep:
                self._idle.append(process)
                self._watch()
            else:
                self._count -= 1
                if not self._closed:
                    self._start()
            self._wake()
        if not keep:
            process.kill()

    def close(self) -> None:
        """End the idle processes now, and each other one when its activation is over."""
        with self._changed:
            self._closed = True
            self._closing.set()
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._wake_all()
        for process in idle:
            process.kill()
        self._held.close()

    def _start(self) -> None:
        """Start a process in the background. The caller holds the lock."""
        self._count += 1
        self._starting += 1
        threading.Thread(target=self._start_in_background, name="sandbox-start").start()

    def _start_in_background(self) -> None:
        process, failure = None, None
        try:
            process = self._spawn()
        except SandboxUnavailable as error:
            _log.error("%s", error.detail)
            failure = error
        with self._changed:
            self._starting -= 1
            self._failure = failure
            keep = process is not None and not self._closed
            if process is not None and keep:
                self._idle.append(process)
            else:
                self._count -= 1
            self._wake_all()
        if process is not None and not keep:
            process.kill()

    # --- rest ---

    def _watch(self) -> None:
        """See to it that the memory of a burst is given back. The caller holds the lock."""
        grown = self._count > 1 or self._idle[-1].uses >= self._limits.burst_uses
        if grown and not self._watched and not self._closed:
            self._watched = True
            threading.Thread(target=self._rest, name="sandbox-rest", daemon=True).start()

    def _rest(self) -> None:
        """Wait for the end of the burst, end what it started, and freshen what stays."""
        taken = -1
        while not self._closing.wait(self._limits.rest_seconds):
            with self._changed:
                quiet = self._taken == taken and self._count == len(self._idle)
                taken = self._taken
                if not quiet:
                    continue
                self._idle.sort(key=lambda process: process.uses)
                extra = self._idle[1:]
                del self._idle[1:]
                self._count -= len(extra)
                self._watched = False
                stays = self._idle[0] if self._idle else None
            for process in extra:
                process.kill()
            if stays is not None and stays.uses >= self._limits.burst_uses:
                self._freshen(stays)
            return

    def _freshen(self, old: Process) -> None:
        """Put a new process in an idle one's place."""
        try:
            spare = self._spawn()
        except SandboxUnavailable as error:
            _log.warning("a sandbox process keeps its memory: %s", error.detail)
            return
        with self._changed:
            if old in self._idle:
                self._idle[self._idle.index(old)] = spare
                spare = old
        spare.kill()  # it is the new one if somebody has taken the old one meanwhile

    def _spawn(self) -> Process:
        ours, theirs = socket.socketpair()
        limits = self._limits
        setup = {
            "fd": theirs.fileno(),
            "guest": str(self._guest),
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.cpu_seconds,
            "log_bytes": limits.log_bytes,
            "next_bytes": limits.commands_bytes,
        }
        try:
            popen = subprocess.Popen(
                [sys.executable, "-m", "ci_platform.sandbox.child", json.dumps(setup)],
                pass_fds=[theirs.fileno()],
                env={"PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C for the worker is none for its sandboxes
            )
        except OSError as error:
            ours.close()
            raise SandboxUnavailable(f"no sandbox process starts: {error}") from error
        finally:
            theirs.close()
        process = Process(popen, Channel(ours))
        try:
            frame, payload = process.channel.receive(seconds=limits.start_seconds)
            if frame is not Frame.HELLO:
                raise ChannelClosed(f"it said {frame} first")
        except (ChannelClosed, Silence) as error:
            process.kill()
            said = f"a sandbox process did not start (exit status {popen.returncode}): {error!r}"
            raise SandboxUnavailable(said) from error
        process.confined = tuple(json.loads(payload))
        return process
