"""One service: its process from start to end, its log, and whether it is ready.

Used by service_host.py, which decides how long it lives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.egress import PORT
from ci_platform.runner.execution import Execution, Start
from ci_platform.runner.launch import Network
from ci_platform.runner.limits import Excess
from ci_platform.runner.readiness import Connector, why_not
from ci_platform.shell import CommandSpec, ServiceLog, ServiceSpec

TAIL_BYTES = 2048  # of its output, for the message that it is not ready
LOOK_AGAIN_SECONDS = 0.1  # between two looks at whether it is ready
CHECK_MS_MAX = 10_000  # of one command that says whether it is
SERVICE_MS_MAX = 365 * 86_400_000  # it ends with its block
_SCAN_BYTES = 64 << 10  # of the end of its output, in which a text is looked for


@dataclass(frozen=True, slots=True)
class Place:
    """Where commands and services run together."""

    network: Network | None = None  # None: as the runner has it
    port: int = PORT  # of the way out of it
    hosts: Sequence[str] = ()  # names of the services


@dataclass(frozen=True, slots=True)
class Ways:
    """How a service and its checks are started, and looked at from outside."""

    execution: Execution
    start: Start
    connector: Connector
    refused: Callable[[CommandSpec], Excess | None]


class Service:
    """Starts with its construction. All methods may be called from any thread."""

    def __init__(self, spec: ServiceSpec, ways: Ways, log: ServiceLog) -> None:
        self.spec = spec
        self.command = CommandSpec(**spec.command)
        self.used = time.monotonic()  # when a command used it last
        self.notes: list[str] = []  # for the commands that use it
        self._ways = ways
        self._log = log
        self._lock = threading.Lock()
        self._tail = b""
        self._seen = False  # the text that says it is ready
        self._ending = threading.Event()
        self._verdict: Excess | str | None = None  # "" when it is ready
        self._decided = threading.Event()
        self._log.note(f"service {spec.name} starts")
        self._thread = threading.Thread(target=self._run, name=f"service {spec.name}", daemon=True)
        self._watcher = threading.Thread(target=self._await_ready, daemon=True)
        self._thread.start()
        self._watcher.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._ending.is_set()

    @property
    def decided(self) -> bool:
        """Whether it has become ready, or has failed to."""
        return self._decided.is_set()

    @property
    def failure(self) -> Excess | None:
        """Why it is not ready, once that is decided."""
        return self._verdict if isinstance(self._verdict, Excess) else None

    def flush(self) -> None:
        """Let its log be read as far as it goes."""
        self._log.flush()

    def end(self) -> None:
        """TERM, grace, KILL of everything it started. Returns when nothing is left."""
        self._ending.set()
        self._thread.join()
        self._watcher.join()

    # --- its two threads ---

    def _run(self) -> None:
        try:
            how = self._ways.execution.serve(
                self.command,
                output=self._output,
                stop=self._ending.is_set,
                start=self._ways.start,
                refused=self._ways.refused(self.command),
                timeout_ms=SERVICE_MS_MAX,
            )
        except RunnerUnavailable as error:
            how = f"could not be run: {error.detail}"
        ended = f"service {self.spec.name} {'was stopped' if self._ending.is_set() else how}"
        if not self._ending.is_set():
            self.notes.append(ended)
        self._fail(how)
        self._log.note(ended)
        self._log.close()

    def _await_ready(self) -> None:
        """Look until it is ready, has ended, or has taken too long."""
        deadline = time.monotonic() + self.spec.ready_ms / 1000
        why: str | None = "it has not started"
        while self._thread.is_alive() and not self._ending.is_set():
            try:
                why = self._look()
            except RunnerUnavailable as error:
                why = error.detail
            if why is None:
                self._decide("")
                return
            if time.monotonic() > deadline:
                seconds = self.spec.ready_ms / 1000
                self._fail(f"was not ready within {seconds:g} s (timeout=): {why}")
                self._ending.set()
                return
            self._ending.wait(LOOK_AGAIN_SECONDS)

    def _look(self) -> str | None:
        if self.spec.ready is None:
            return None
        return why_not(self.spec.ready, self._ways.connector, check=self._check, said=self._said)

    def _check(self, script: str) -> str | None:
        said = bytearray()

        def output(stream: str, data: bytes) -> None:
            said.extend(data[-TAIL_BYTES:])
            del said[:-TAIL_BYTES]

        how = self._ways.execution.serve(
            replace(self.command, script=script, network=()),
            output=output,
            stop=self._ending.is_set,
            start=self._ways.start,
            refused=None,
            timeout_ms=CHECK_MS_MAX,
        )
        if how == "exited with code 0":
            return None
        return f"its check {how}: {said.decode(errors='replace').strip()}"

    def _said(self, text: str) -> bool:
        return self._seen

    def _output(self, stream: str, data: bytes) -> None:
        with self._lock:
            self._tail = (self._tail + data)[-_SCAN_BYTES - len(data) :]
            wanted = (self.spec.ready or {}).get("log")
            if wanted is not None and not self._seen and wanted.encode() in self._tail:
                self._seen = True
            self._tail = self._tail[-_SCAN_BYTES:]
        if stream != "note" or not self._ending.is_set():  # that it was stopped is said below
            self._log.write(stream, data)

    def _fail(self, how: str) -> None:
        with self._lock:
            last = self._tail[-TAIL_BYTES:].decode(errors="replace").strip()
        said = f" Its last output: {last}" if last else " It said nothing."
        self._decide(Excess("service", f"Service {self.spec.name!r} {how}.{said}"))

    def _decide(self, verdict: Excess | str) -> None:
        with self._lock:
            if self._verdict is None:
                self._verdict = verdict
        self._decided.set()
