"""Every question a screen or client may ask, answered as far as the actor may see.

Reads only; returns model values and the small frozen dataclasses below. Synchronous: async callers
use the thread pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ci_platform.model import (
    Actor,
    Approval,
    Description,
    Entry,
    Json,
    LogLine,
    Repository,
    RepositoryId,
    Role,
    Run,
    RunId,
    RunState,
    Step,
    User,
)
from ci_platform.ports import (
    Clock,
    Commit,
    Hook,
    Repositories,
    RunFilter,
    RunPage,
    Source,
    Store,
    Token,
)


@dataclass(frozen=True, slots=True)
class ApprovalView:
    approval: Approval
    run: Run
    repository: Repository
    may_answer: bool  # this actor, now
    answered: str | None  # what this actor has answered: approve, reject


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a list."""

    run: Run
    repository: Repository


@dataclass(frozen=True, slots=True)
class Home:
    approvals: Sequence[ApprovalView]  # waiting for this actor
    running: Sequence[RunRow]  # queued, running
    finished: Sequence[RunRow]  # newest first
    failing: Sequence[RunRow]  # newest of its pipeline and ref failed, the one before did not
    repositories: Sequence[Repository]
    # so that an empty page can say what to do next
    may_create: bool


@dataclass(frozen=True, slots=True)
class RepositoryView:
    repository: Repository
    role: Role
    branches: Mapping[str, str]  # name -> commit
    head: Commit | None  # of the default branch
    has_pipeline: bool  # at the head of the default branch
    pipelines: Sequence[str]  # names at the head of the default branch, as far as described
    runs: RunPage
    approvals: Sequence[ApprovalView]
    may_start: bool
    may_configure: bool
    described: Description  # of the head of the default branch: manual inputs, or why it fails


@dataclass(frozen=True, slots=True)
class LogInfo:
    step: str  # $run, or str(StepKey)
    lines: int  # the number of the last line


@dataclass(frozen=True, slots=True)
class RunView:
    run: Run
    repository: Repository
    steps: Sequence[Step]
    approvals: Sequence[ApprovalView]
    logs: Sequence[LogInfo]
    commit: Commit | None  # None: it is gone
    params: Json
    may_change: bool
    may_delete: bool
    pause_requested_by: str | None
    cancelled_by: str | None


@dataclass(frozen=True, slots=True)
class WorkerView:
    worker: str
    runs: int  # held now
    lease_until_ms: int


@dataclass(frozen=True, slots=True)
class SystemView:
    counts: Mapping[RunState, int]  # of runs that are not finished
    due: int  # queued runs: the depth of the queue
    oldest_due_ms: int | None
    next_ready_ms: int | None
    workers: Sequence[WorkerView]  # as seen in leases; an idle worker is not seen
    approvals_open: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class FileView:
    path: str
    commit: str
    content: bytes


@dataclass(frozen=True, slots=True)
class TreeView:
    path: str
    commit: str
    entries: Sequence[tuple[str, str]]  # (name, file | dir | link | submodule)


@dataclass(frozen=True, slots=True)
class Queries:
    store: Store
    source: Source
    repositories: Repositories
    clock: Clock

    def home(self, actor: Actor) -> Home:
        raise NotImplementedError

    def repository_list(
        self, actor: Actor, *, after: str = "", limit: int = 100
    ) -> list[Repository]:
        raise NotImplementedError

    def repository(self, actor: Actor, owner: str, name: str) -> Repository:
        raise NotImplementedError

    def repository_page(
        self, actor: Actor, owner: str, name: str, *, which: RunFilter, cursor: str | None = None
    ) -> RepositoryView:
        """`which.repository_ids` is ignored: it is this repository."""
        raise NotImplementedError

    def runs(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        which: RunFilter,
        cursor: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        raise NotImplementedError

    def run(self, actor: Actor, run_id: RunId) -> Run:
        """The row alone: cheap, for polling and live streams."""
        raise NotImplementedError

    def run_by_number(self, actor: Actor, owner: str, name: str, number: int) -> Run:
        raise NotImplementedError

    def run_page(self, actor: Actor, run_id: RunId) -> RunView:
        raise NotImplementedError

    def journal(
        self, actor: Actor, run_id: RunId, *, after: int = 0, limit: int = 1000
    ) -> list[Entry]:
        raise NotImplementedError

    def log(
        self, actor: Actor, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000
    ) -> list[LogLine]:
        raise NotImplementedError

    def log_tail(
        self, actor: Actor, run_id: RunId, step: str, *, limit: int = 1000
    ) -> list[LogLine]:
        raise NotImplementedError

    def logs(self, actor: Actor, run_id: RunId) -> list[LogInfo]:
        raise NotImplementedError

    def approvals(self, actor: Actor) -> list[ApprovalView]:
        """Open gates of all repositories the actor sees, those it may answer first."""
        raise NotImplementedError

    def system(self, actor: Actor) -> SystemView:
        raise NotImplementedError

    def file(self, actor: Actor, owner: str, name: str, path: str, ref: str | None) -> FileView:
        raise NotImplementedError

    def tree(self, actor: Actor, owner: str, name: str, path: str, ref: str | None) -> TreeView:
        raise NotImplementedError

    def tokens(self, actor: Actor) -> list[Token]:
        raise NotImplementedError

    def users(self, actor: Actor) -> list[User]:
        raise NotImplementedError

    def hooks(self, actor: Actor, owner: str, name: str) -> list[Hook]:
        raise NotImplementedError

    def audit(self, actor: Actor, *, limit: int = 100) -> list[Mapping[str, Json]]:
        raise NotImplementedError

    def names(self, ids: Sequence[RepositoryId]) -> Mapping[RepositoryId, Repository]:
        raise NotImplementedError
