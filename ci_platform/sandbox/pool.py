"""The pool of sandbox processes: `WasmSandbox`, which implements `ports.Sandbox`.

Starts processes on demand up to a limit, keeps them for the next activation, replaces those that
are used up, and kills those that do not behave. An interpreter is used again only for equal code of
the same repository and trust; anything else gets a fresh one. Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ci_platform.errors import SandboxUnavailable
from ci_platform.model import Broke, Description, ErrorInfo, Outcome, Raised, SourceFiles, Suspended
from ci_platform.ports import Activation, ActivationHost
from ci_platform.sandbox import decode, wiring
from ci_platform.sandbox.build import Progress, ensure_guest
from ci_platform.sandbox.channel import (
    KEEP,
    PREPARE,
    USE_WARM,
    Channel,
    ChannelClosed,
    Frame,
    Silence,
)
from ci_platform.sandbox.decode import BadMessage
from ci_platform.sandbox.limits import SandboxLimits
from ci_platform.sandbox.session import STRANGE, Session

EXIT_SECONDS = 5.0  # for a killed process to be gone

WarmKey: TypeAlias = tuple[str, str, bool]  # repository, digest of its code, trusted


@dataclass(eq=False, slots=True)
class Process:
    """A sandbox process, idle or with one activation."""

    popen: subprocess.Popen[bytes]
    channel: Channel
    confined: tuple[str, ...]
    uses: int = 0
    warm: WarmKey | None = None  # whose code its interpreter has loaded
    warm_uses: int = 0
    resident_bytes: int = 0

    def kill(self) -> None:
        self.channel.close()
        self.popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(EXIT_SECONDS)


class WasmSandbox:
    """Runs pipeline code in WebAssembly, in processes that hold nothing. Starts one at once."""

    def __init__(
        self, limits: SandboxLimits, cache: Path, *, progress: Progress | None = None
    ) -> None:
        self._limits = limits
        self._guest = ensure_guest(cache, progress)
        self._changed = threading.Condition()
        self._idle: list[Process] = []  # the last used last
        self._count = 0  # of processes, idle, busy or starting
        self._waiting = 0  # callers for whom there is no process
        self._closed = False
        self._give_back(self._start())

    def describe(self, source: SourceFiles) -> Description:
        with self._process(None) as process:
            session = Session(process.channel, self._limits)
            answer = session.converse(PREPARE, wiring.describe_message(source), None)
            self._note(process, session)
        try:
            if isinstance(answer, Broke):
                raise SandboxUnavailable(answer.detail)
            if isinstance(answer, Raised):
                return Description(error=answer.error)
            if isinstance(answer, Suspended):
                raise BadMessage("an answer that is no description")
            if "raised" in answer:
                return Description(error=wiring.raised(answer, self._limits).error)
            return decode.description(answer.get("described"))
        except BadMessage as error:
            return Description(error=ErrorInfo("SandboxProtocol", f"{STRANGE}: {error}"))

    def activate(self, activation: Activation, host: ActivationHost) -> Outcome:
        source = activation.source
        key = (source.repository_id, source.digest, activation.trusted)
        with self._process(key) as process:
            limits = self._limits
            warm = process.warm == key and process.warm_uses < limits.warm_uses_max
            keep = limits.warm_uses_max > 0
            message = wiring.run_message(activation, limits, loaded=warm, keep=keep)
            flags = USE_WARM * warm + KEEP * keep + PREPARE * (self._waiting == 0)
            process.warm_uses = process.warm_uses + 1 if warm else 1
            process.warm = None
            session = Session(process.channel, limits)
            try:
                answer = session.converse(flags, message, host)
            finally:
                self._note(process, session)
            if session.stopped:
                found: Outcome = Suspended()  # whatever it says: the journal has moved on
            elif isinstance(answer, (Raised, Broke, Suspended)):
                found = answer
            else:
                try:
                    found = wiring.outcome(answer, activation, limits)
                except BadMessage as error:
                    found = Raised(ErrorInfo("SandboxProtocol", f"{STRANGE}: {error}"))
            if not isinstance(answer, (Raised, Broke, Suspended)) and answer.get("reusable"):
                process.warm = key
            return found

    def close(self) -> None:
        """End all processes. Activations under way end as Broke."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for process in idle:
            process.kill()

    @property
    def confinement(self) -> tuple[str, ...]:
        """How the idle processes are confined, in words; for `sluice config` and the logs."""
        with self._changed:
            return self._idle[-1].confined if self._idle else ()

    # --- processes ---

    @contextlib.contextmanager
    def _process(self, key: WarmKey | None) -> Iterator[Process]:
        process = self._take(key)
        try:
            yield process
        except BaseException:
            self._give_back(process)
            raise
        self._give_back(process)

    def _take(self, key: WarmKey | None) -> Process:
        """An idle process, best one that has this code loaded; else a new one, else wait."""
        with self._changed:
            while True:
                if self._closed:
                    raise SandboxUnavailable("the sandbox is closed")
                for index in range(len(self._idle) - 1, -1, -1):
                    if self._idle[index].warm == key:
                        return self._idle.pop(index)
                if self._idle and self._count >= self._limits.processes:
                    return self._idle.pop(0)
                cold = [p for p in self._idle if p.warm is None]
                if cold:
                    self._idle.remove(cold[0])
                    return cold[0]
                if self._count < self._limits.processes:
                    self._count += 1
                    break
                self._waiting += 1
                try:
                    self._changed.wait()
                finally:
                    self._waiting -= 1
        try:
            return self._spawn()
        except BaseException:
            with self._changed:
                self._count -= 1
                self._changed.notify()
            raise

    def _start(self) -> Process:
        with self._changed:
            self._count += 1
        return self._spawn()

    def _give_back(self, process: Process) -> None:
        used_up = (
            process.uses >= self._limits.uses_max
            or process.resident_bytes >= self._limits.rss_bytes
        )
        with self._changed:
            keep = not (used_up or self._closed or process.uses < 0)
            if keep:
                self._idle.append(process)
            else:
                self._count -= 1
            self._changed.notify()
        if not keep:
            process.kill()

    def _note(self, process: Process, session: Session) -> None:
        process.uses += 1
        process.resident_bytes = session.resident_bytes
        if session.trapped or session.dead:
            process.warm = None
        if session.dead:
            process.uses = -1

    def _spawn(self) -> Process:
        ours, theirs = socket.socketpair()
        setup = {
            "fd": theirs.fileno(),
            "guest": str(self._guest.path),
            "memory_bytes": self._limits.memory_bytes,
            "cpu_seconds": self._limits.cpu_seconds,
            "log_bytes": self._limits.log_bytes,
            "next_bytes": self._limits.commands_bytes,
        }
        try:
            popen = subprocess.Popen(
                [sys.executable, "-m", "ci_platform.sandbox.child", json.dumps(setup)],
                pass_fds=[theirs.fileno()],
                env={"PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            raise SandboxUnavailable(f"no sandbox process starts: {error}") from error
        finally:
            theirs.close()
        channel = Channel(ours)
        try:
            frame, payload = channel.receive(seconds=self._limits.start_seconds)
            if frame is not Frame.HELLO:
                raise ChannelClosed(f"it said {frame} first")
        except (ChannelClosed, Silence) as error:
            Process(popen, channel, ()).kill()
            raise SandboxUnavailable(
                f"a sandbox process did not start (exit status {popen.returncode}): {error!r}"
            ) from error
        return Process(popen, channel, tuple(json.loads(payload)))
