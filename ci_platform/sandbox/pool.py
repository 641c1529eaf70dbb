"""`WasmSandbox`, which implements `ports.Sandbox`: describes files and runs activations.

Each call takes a sandbox process, talks to it, and gives it back. An interpreter is used again only
for equal code of the same repository and trust; anything else gets a fresh one. Thread-safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ci_platform.errors import SandboxUnavailable
from ci_platform.model import (
    Broke,
    Command,
    Description,
    Entry,
    ErrorInfo,
    Json,
    Outcome,
    Raised,
    SourceFiles,
    Suspended,
)
from ci_platform.ports.granting import Ask, AskHost, WebRequest, WebResponse
from ci_platform.ports.sandbox import Activation, ActivationHost
from ci_platform.sandbox import decode, wiring
from ci_platform.sandbox.build import Progress, ensure_guest
from ci_platform.sandbox.channel import KEEP, PREPARE, USE_WARM
from ci_platform.sandbox.decode import BadMessage
from ci_platform.sandbox.limits import SandboxLimits
from ci_platform.sandbox.processes import Process, Processes, WarmKey
from ci_platform.sandbox.session import STRANGE, Answer, Session


class NoSteps:
    """The host of code that is no run: what it asks is answered, a step is not."""

    def __init__(self, host: AskHost) -> None:
        self._host = host

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        return ()

    def log(self, step: str, stream: str, text: str) -> None:
        """There is no run whose log it could be."""

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        return self._host.ask(ask)


class WasmSandbox:
    """Runs pipeline code in WebAssembly, in processes that hold nothing. Starts one at once."""

    def __init__(
        self, limits: SandboxLimits, cache: Path, *, progress: Progress | None = None
    ) -> None:
        self._limits = limits
        self.processes = Processes(limits, ensure_guest(cache, progress).path)
        self.processes.start_one()

    def describe(self, source: SourceFiles) -> Description:
        with self._process(None) as process:
            process.warm = None
            limits = self._limits
            wall_seconds = min(limits.wall_seconds, limits.describe_seconds)
            session = Session(process.channel, replace(limits, wall_seconds=wall_seconds))
            try:
                answer = session.converse(PREPARE, wiring.describe_message(source), None)
            finally:
                _note(process, session)
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

        def message(warm: bool, keep: bool) -> str:
            return wiring.run_message(activation, self._limits, loaded=warm, keep=keep)

        answer, session = self._converse(key, message, host)
        return self._outcome(answer, activation, session)

    def fetch(
        self, source: SourceFiles, request: WebRequest, host: AskHost
    ) -> WebResponse | Raised | Broke:
        key = (source.repository_id, source.digest, True)

        def message(warm: bool, keep: bool) -> str:
            return wiring.fetch_message(source, request, loaded=warm, keep=keep)

        answer, _ = self._converse(key, message, NoSteps(host))
        try:
            if isinstance(answer, Suspended):
                raise BadMessage("an answer that is no response")
            if isinstance(answer, (Raised, Broke)):
                return answer
            if "raised" in answer:
                return wiring.raised(answer, self._limits)
            return decode.response(answer.get("responded"))
        except BadMessage as error:
            return Raised(ErrorInfo("SandboxProtocol", f"{STRANGE}: {error}"))

    def _converse(
        self, key: WarmKey, write: Callable[[bool, bool], str], host: ActivationHost
    ) -> tuple[Answer | Raised | Broke | Suspended, Session]:
        """One message, in an interpreter that has run equal code if there is one."""
        limits = self._limits
        with self._process(key) as process:
            warm = process.warm == key and process.warm_uses < limits.warm_uses_max
            keep = limits.warm_uses_max > 0
            message = write(warm, keep)
            flags = USE_WARM * warm + KEEP * keep + PREPARE * (self.processes.waiting == 0)
            process.warm_uses = process.warm_uses + 1 if warm else 1
            process.warm = None
            session = Session(process.channel, limits)
            try:
                answer = session.converse(flags, message, host)
            finally:
                _note(process, session)
            if not isinstance(answer, (Raised, Broke, Suspended)) and answer.get("reusable"):
                process.warm = key
            return answer, session

    def _outcome(
        self, answer: Answer | Raised | Broke | Suspended, activation: Activation, session: Session
    ) -> Outcome:
        if session.stopped:
            return Suspended()  # whatever it says after that: the journal has moved on
        if isinstance(answer, (Raised, Broke, Suspended)):
            return answer
        try:
            return wiring.outcome(answer, activation, self._limits)
        except BadMessage as error:
            return Raised(ErrorInfo("SandboxProtocol", f"{STRANGE}: {error}"))

    def close(self) -> None:
        """End the processes; one with an activation under way, as soon as that is over."""
        self.processes.close()

    @property
    def confinement(self) -> tuple[str, ...]:
        """How the processes are confined, in words."""
        return next((process.confined for process in self.processes.idle()), ())

    @contextlib.contextmanager
    def _process(self, key: WarmKey | None) -> Iterator[Process]:
        process = self.processes.take(key)
        try:
            yield process
        finally:
            self.processes.give_back(process)


def _note(process: Process, session: Session) -> None:
    process.uses += 1
    process.resident_bytes = session.resident_bytes
    process.dead = session.dead
    if session.trapped or session.dead:
        process.warm = None
