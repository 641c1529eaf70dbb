"""Shell commands as the platform sees them: what one is told, what it comes to, and who runs it.

Values and Protocols, under the contract of ports. A Runner executes commands over the Trees of
commits; what they leave for later are memos, for other runs, and artifacts, for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ci_platform.model import Json, RepositoryId, RunId, StepKey

SERVICES_MAX = 8  # around one command
LINE_BYTES_MIN = 32  # of output, as it is limited: a line has a number and a time besides its text


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A step's shell command. Kept as JSON in the operation: `asdict`, and `CommandSpec(**j)`."""

    repository_id: str
    run_id: str
    step: str  # str(StepKey)
    commit: str
    base: Sequence[str]  # digests of the layers below, lowest first
    script: str
    shell: str = "sh"  # sh | bash
    cwd: str = "."  # inside the workspace
    env: Mapping[str, str] = field(default_factory=dict)  # the author's and the platform's
    secrets: Sequence[str] = ()
    timeout_ms: int = 3_600_000
    network: Sequence[str] = ()  # hosts; none: no network
    allowed: Sequence[str] | None = None  # hosts, by the repository; None: any. Set by the worker
    artifacts: Sequence[str] = ()
    reports: Sequence[str] = ()
    labels: Sequence[str] = ()
    image: str | None = None
    trusted: bool = True  # False: of a fork's run; no network, and nothing others read is written
    cache: Mapping[str, Json] | None = None  # of a memoised step: inputs, key, env
    ref: str = ""  # whose results and caches it may read and leave
    cache_dirs: Mapping[str, str] = field(default_factory=dict)  # name -> ~/path
    cached: Mapping[str, str] = field(default_factory=dict)  # name -> digest, set by the worker
    git_depth: int = 0  # of the history in its .git; 0: it has none
    services: Sequence[Mapping[str, Json]] = ()  # `asdict` of a ServiceSpec each, outermost first


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A process that runs beside commands, in one network with them."""

    name: str  # as which they find it
    command: Mapping[str, Json]  # `asdict` of a CommandSpec
    ready: Mapping[str, Json] | None  # {"port" | "http" | "command" | "log": value}
    ready_ms: int  # how long it may take until it is


@dataclass(frozen=True, slots=True)
class CommandResult:
    exit_code: int | None  # None when it was ended by the platform
    ended: str | None  # None, timeout, cancelled, or the limit's name: memory, output, disk, ...
    detail: str  # a sentence for people when `ended` is set
    outputs: Mapping[str, str]  # what the command wrote to $CI_OUTPUT
    output_tail: str  # the last 4 KiB of its output
    layer: str | None  # digest of the changes it made; None if none, or if it failed
    duration_ms: int
    artifacts: Sequence[Json] = ()  # {path, size, sha256, report} of each file kept for people
    caches: Mapping[str, str] = field(default_factory=dict)  # name -> digest, for later runs
    from_run: int | None = None  # number of the run that executed it, when it is a memoised one


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a command kept for people."""

    step: StepKey
    path: str  # in the workspace
    size: int
    sha256: str
    report: bool


@dataclass(frozen=True, slots=True)
class Memo:
    """What a command came to, kept for later runs."""

    run_id: RunId
    number: int  # of that run
    step: str  # str(StepKey), whose log it is
    result: Mapping[str, Json]
    scope: str = ""  # the ref whose runs may read it
    size: int = 0  # bytes of the objects it stands for
    digest: str | None = None  # of an object that nothing but this memo refers to


@dataclass(frozen=True, slots=True)
class MemoLimits:
    """What one repository may keep; beyond it goes what was used longest ago."""

    count: int = 1_000
    size: int = 10 << 30


class ServiceLog(Protocol):
    """Where the output of a service goes. Safe to call from several threads."""

    def write(self, stream: str, data: bytes) -> None: ...

    def note(self, text: str) -> None:
        """Say something as the platform."""

    def flush(self) -> None:
        """Called at least once a second. Raises nothing."""

    def close(self) -> None:
        """Nothing comes any more. Raises nothing."""


class ServiceDesk(Protocol):
    """What a runner needs of the platform for services."""

    def log(self, run_id: str, step: str) -> ServiceLog: ...

    def ended(self, run_id: str, step: str) -> bool:
        """Whether the block of a service, or its run, is over. Raises StoreUnavailable."""


class Runner(Protocol):
    """Runs commands in a workspace. Several may run at once, in separate workspaces."""

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        """Run to the end. `output(stream, data)` gets raw bytes as they come; `stop()` is polled
        at least twice a second and, once True, ends the command: TERM, 10 s, KILL of the tree.
        Why a command was refused or ended (`detail`) is in the output too, as a line of `note`.

        The workspace is the commit's tree with the base layers on top, in order. Changes are kept
        as a new layer only if the exit code is 0. Raises RunnerUnavailable (an InternalError).
        """

    def fingerprint(self, spec: CommandSpec) -> str:
        """A digest of all that the result of a memoised command depends on: the command, this
        runner, and the files named by `spec.cache`. Raises RunnerUnavailable."""

    def obstacle(self) -> str | None:
        """Why no command can be started here now, as a sentence; None if one can. Asked before
        commands are claimed, so that they wait for a worker that can, or for this one."""

    def collision(self, layer: str, other: str) -> str | None:
        """A path that two layers over the same base both changed, each in its own way. None if
        they may lie on one another. Raises RunnerUnavailable."""


class Trees(Protocol):
    """Where a runner gets the files of a commit from."""

    def export(self, repository_id: str, commit: str, into: Path) -> str:
        """Write the commit's tree below `into` (exists, empty). Returns the tree's id."""

    def history(self, repository_id: str, commit: str, into: Path, *, depth: int) -> None:
        """Make `into/.git` (`into` exists): the commit, and as many generations of commits."""


class Artifacts(Protocol):
    """The contents of what commands kept: files for people, and layers of workspaces."""

    def read(self, sha256: str) -> Iterator[bytes]:
        """Raises NotFound, StoreUnavailable."""

    def layer(self, digest: str) -> Iterator[bytes]:
        """A workspace layer, as it is stored. Raises the same."""


class NetworkPolicies(Protocol):
    """The hosts that commands of a repository may ask for, of those that the server allows."""

    def get(self, repository_id: RepositoryId) -> Sequence[str] | None:
        """None: all of them; an empty list: none."""

    def put(self, repository_id: RepositoryId, hosts: Sequence[str]) -> None:
        """Make or replace the list."""

    def remove(self, repository_id: RepositoryId) -> bool:
        """False if there was none."""


class MemoStore(Protocol):
    """Results of commands for later runs. A memo goes when its run goes, so that the journal of
    that run keeps alive what the memo refers to; a run that takes it gives it a new home. Beyond
    `MemoLimits` it goes earlier."""

    def find(self, repository_id: RepositoryId, scopes: Sequence[str], key: str) -> Memo | None:
        """The memo of the first of these scopes that has one."""

    def put(self, repository_id: RepositoryId, scope: str, key: str, memo: Memo) -> None:
        """Keep a memo, instead of one that is there. Nothing happens when its run is gone."""

    def rehome(self, repository_id: RepositoryId, key: str, found: Memo, taken: Memo) -> bool:
        """Keep a memo that `find` gave as `taken`, for the run that took it. False: it has gone,
        or another one has its place."""
