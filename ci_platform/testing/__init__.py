"""Parts for tests, shipped with the platform: a clock by hand, a runner by script, a sandbox
without WebAssembly, a store in memory.

`InProcessSandbox` runs the same guest code in this interpreter: fast, and without any isolation. It
is for code that you trust, in tests. `ScriptedSandbox` plays a hostile or broken guest.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from ci_platform.errors import SourceError
from ci_platform.model import (
    Command,
    Description,
    Entry,
    ErrorInfo,
    Json,
    Outcome,
    Raised,
    RepositoryId,
    SourceFiles,
    Suspended,
)
from ci_platform.ports.granting import Ask
from ci_platform.ports.hosting import Commit
from ci_platform.ports.sandbox import Activation, ActivationHost
from ci_platform.sandbox import decode, wiring
from ci_platform.sandbox.host import UNANSWERED
from ci_platform.sandbox.limits import SandboxLimits
from ci_platform.shell import CommandResult, CommandSpec
from ci_platform.testing.store import InMemoryStore
from pipelines.determinism import Senses
from pipelines.guest import Guest

__all__ = [
    "DummyRunner",
    "FakeClock",
    "FakeSource",
    "InMemoryStore",
    "InProcessSandbox",
    "ScriptedSandbox",
    "succeeded",
]

START_MS = 1_700_000_000_000


class FakeClock:
    """A clock that stands still until it is told to go on. Safe to use from several threads."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        with self._lock:
            return self._now_ms

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now_ms += round(seconds * 1000)


# --- commands -------------------------------------------------------------------------------------


def succeeded(
    output: str = "", *, exit_code: int = 0, layer: str | None = None, ended: str | None = None
) -> CommandResult:
    """The result of a command that said `output`."""
    return CommandResult(
        exit_code=None if ended else exit_code,
        ended=ended,
        detail="",
        outputs={},
        output_tail=output[-4096:],
        layer=layer,
        duration_ms=1,
    )


@dataclass(slots=True)
class DummyRunner:
    """Answers commands from a script: by step (`sh:test`), a result, or a function of the spec.

    A list is used up one by one, its last element for ever. Unknown steps succeed.
    """

    results: Mapping[str, Sequence[CommandResult | Exception]] = field(default_factory=dict)
    before: Callable[[CommandSpec], None] = lambda spec: None  # called while the command "runs"
    ran: list[CommandSpec] = field(default_factory=list)
    collisions: Mapping[tuple[str, str], str] = field(default_factory=dict)  # layers -> path
    blocked: str | None = None  # why it would start nothing

    def obstacle(self) -> str | None:
        return self.blocked

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        turn = sum(each.step == spec.step for each in self.ran)
        self.ran.append(spec)
        self.before(spec)
        if stop():
            return succeeded(ended="cancelled")
        script = self.results.get(spec.step, (succeeded(),))
        result = script[min(turn, len(script) - 1)]
        if isinstance(result, Exception):
            raise result
        output("stdout", result.output_tail.encode())
        return result

    def fingerprint(self, spec: CommandSpec) -> str:
        return repr((spec.script, spec.cache))

    def collision(self, layer: str, other: str) -> str | None:
        return self.collisions.get((layer, other))


# --- pipeline code --------------------------------------------------------------------------------


@dataclass(slots=True)
class FakeSource:
    """Commits by hand: `commits` maps each to its files, `refs` names to commits."""

    commits: dict[str, Mapping[str, str]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def put(self, commit: str, pipeline: str, *, ref: str = "refs/heads/main") -> None:
        """Make a commit with this `.ci/pipeline.py` and move a ref to it."""
        self.commits[commit] = {".ci/pipeline.py": pipeline}
        self.refs[ref] = commit

    def load(self, repository_id: RepositoryId, commit: str) -> SourceFiles:
        files = self.commits.get(commit)
        if files is None:
            raise SourceError(f"{commit[:12]} has no .ci/pipeline.py", missing=True)
        digest = sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()
        return SourceFiles(repository_id, commit, files, digest)

    def has_pipeline(self, repository_id: RepositoryId, commit: str) -> bool:
        return commit in self.commits

    def resolve(self, repository_id: RepositoryId, ref: str) -> str | None:
        return self.refs.get(ref)

    def default_ref(self, repository_id: RepositoryId) -> str:
        return "refs/heads/main"

    def keep(self, repository_id: RepositoryId, commit: str) -> None:
        """Commits by hand are not pruned."""

    def release(self, repository_id: RepositoryId, commit: str) -> None:
        """Commits by hand are not pruned."""

    def commit(self, repository_id: RepositoryId, sha: str) -> Commit:
        return Commit(sha, "0" * 40, (), "ada <ada@example.org>", START_MS, "a commit")

    def changed_paths(
        self, repository_id: RepositoryId, before: str | None, after: str
    ) -> list[str]:
        return sorted(self.commits.get(after, ()))

    def fetch(self, repository_id: RepositoryId, url: str, commit: str, ref: str) -> None:
        self.refs[ref] = commit


class _Wire:
    """The guest's host, over an ActivationHost: what session.py is for a real sandbox."""

    def __init__(self, host: ActivationHost, limits: SandboxLimits) -> None:
        self._host = host
        self._limits = limits
        self.failed: BaseException | None = None
        self.stopped = False

    def next(self, commands: str) -> str:
        try:
            asked = decode.commands(commands, value_bytes=self._limits.value_bytes)
            entries = self._host.next(asked)
        except BaseException as error:  # also the death that a test plays
            self.failed = error  # raised again once the guest has returned
            return '{"fatal":"the host gave up"}'
        self.stopped = not entries
        return wiring.entries_json(entries)

    def log(self, step: str, stream: str, text: str) -> None:
        self._host.log(step, stream, text)

    def outside(self, now_ms: int) -> None:
        """The clock of this interpreter is not switched."""

    def inside(self, body: str, ms: int) -> None:
        """Nothing can stop code of this interpreter."""

    def sleep(self, ms: int) -> None:
        time.sleep(ms / 1000)  # real, as everything is inside a body

    def ask(self, request: str) -> str:
        try:
            return json.dumps(self._host.ask(decode.ask(request)))
        except BaseException as error:
            self.failed = error
            return UNANSWERED


_ONE_AT_A_TIME = threading.RLock()  # the guest owns sys.stdout and the author's modules


class InProcessSandbox:
    """The guest in this interpreter. One activation at a time; no limits, no isolation."""

    def __init__(self) -> None:
        self._limits = SandboxLimits()
        self._past: list[Guest] = []  # suspended code must not be closed while tests look

    def describe(self, source: SourceFiles) -> Description:
        answer = self._answer(wiring.describe_message(source), _Wire(_Nobody(), self._limits))
        if "raised" in answer:
            return Description(error=decode.error(answer["raised"]))
        return decode.description(answer["described"])

    def activate(self, activation: Activation, host: ActivationHost) -> Outcome:
        wire = _Wire(host, self._limits)
        message = wiring.run_message(activation, self._limits, loaded=False, keep=False)
        answer = self._answer(message, wire)
        if wire.failed is not None:
            if isinstance(wire.failed, decode.BadMessage):
                return Raised(ErrorInfo("SandboxProtocol", str(wire.failed)))
            raise wire.failed
        if wire.stopped:
            return Suspended()
        return wiring.outcome(answer, activation, self._limits)

    def close(self) -> None:
        self._past.clear()

    def _answer(self, message: str, wire: _Wire) -> Mapping[str, object]:
        with _ONE_AT_A_TIME:
            guest = Guest(wire, Senses())
            self._past.append(guest)
            before = sys.stdout, sys.stderr
            try:
                answer: Mapping[str, object] = json.loads(guest.activate(message))
            finally:
                sys.stdout, sys.stderr = before
        return answer


class _Nobody:
    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        raise AssertionError("a describe asks for no steps")

    def log(self, step: str, stream: str, text: str) -> None:
        """What a module prints while it loads is not kept."""

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        raise AssertionError("a describe asks for nothing")


@dataclass(slots=True)
class ScriptedSandbox:
    """A guest by hand: `play` gets each activation and its host, and says how it ended."""

    play: Callable[[Activation, ActivationHost], Outcome]
    activations: list[Activation] = field(default_factory=list)

    def describe(self, source: SourceFiles) -> Description:
        return Description()

    def activate(self, activation: Activation, host: ActivationHost) -> Outcome:
        self.activations.append(activation)
        return self.play(activation, host)

    def close(self) -> None:
        """Nothing to close."""
