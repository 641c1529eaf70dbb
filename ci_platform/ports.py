"""The Protocols between the parts: the only abstract things here. Each has two implementations.

Contract of all of them: methods block, are safe to call from any thread, and raise only errors of
`errors.py`. Nothing here returns a database row, a socket or a file handle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.effects import Effect
from ci_platform.family import FamilyStore
from ci_platform.granting import Ask, ShelfStore
from ci_platform.hosting import Commit as Commit
from ci_platform.hosting import Hosting
from ci_platform.housekeeping import DutyStore, Retention, WorkerStore
from ci_platform.log_store import LogStore
from ci_platform.model import (
    Approval,
    AuditNote,
    Command,
    Decision,
    Description,
    Draft,
    Entry,
    Json,
    NewRun,
    Operation,
    OperationId,
    Outcome,
    Push,
    Repository,
    RepositoryId,
    Role,
    Run,
    RunId,
    RunState,
    RunUpdate,
    SourceFiles,
    StepKey,
    User,
    UserId,
    WorkerId,
)
from ci_platform.scheduling import ScheduleStore, Scheduling
from ci_platform.shell import MemoStore, NetworkPolicies


class Clock(Protocol):
    """The one clock. Tests advance theirs; nothing else asks the operating system for the time."""

    def now_ms(self) -> int: ...


# --- the store ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append:
    """Entries to add to a run's journal, with everything that changes because of them.

    Written whole or not at all. Refused without an error (`Appended.applied` False) when the
    journal has moved past `expected_seq`: read what is new, decide again. Refused with LeaseLost
    when `fence` is given and the run is not leased under it, or a CloseOperation's fence moved.
    Once a run is deleted its id may be given again: with another `identity` (repository and
    number) the run that was meant is gone, so the answer is LeaseLost with a fence, else
    RunNotFound.
    Raises Conflict when the run has ended and the caller has seen its end. The end of a run also
    ends what it left open: queued operations, gates; running operations are told to stop.
    `update.ready_ms` is kept only while the run may be claimed: not while leased, paused or ended.
    """

    run_id: RunId
    expected_seq: int
    drafts: Sequence[Draft]
    update: RunUpdate
    fence: int | None = None  # given by the lease's holder; None for people and operations
    effects: Sequence[Effect] = ()
    identity: tuple[RepositoryId, int] | None = None  # as of the run that was decided about
    group: str | None = None  # that the run is in, which is locked before its row


@dataclass(frozen=True, slots=True)
class Appended:
    applied: bool
    entries: Sequence[Entry]  # applied: those just written; else: those after expected_seq
    run: Run


@dataclass(frozen=True, slots=True)
class Claim:
    """A run this worker now leases; `entries` is its whole journal, ending with run_claimed."""

    run: Run
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class RunFilter:
    repository_ids: Sequence[RepositoryId] | None = None  # None: all
    pipeline: str | None = None
    states: Sequence[RunState] = ()
    branch: str | None = None
    commit: str | None = None
    trigger: str | None = None
    actor: str | None = None  # as shown
    created_after_ms: int | None = None  # at it, or later
    created_before_ms: int | None = None  # earlier than it


@dataclass(frozen=True, slots=True)
class RunPage:
    runs: Sequence[Run]  # newest first
    cursor: str | None  # where to look on, though this page may be short or empty; None: the end


class RunStore(Retention, Scheduling, Protocol):
    """Runs and their journals.

    `append` is the only way a run changes after its creation, apart from the two moves of a lease
    (`claim`, `expire`), which write their own entry. Concurrent appends of one process may share
    one commit; each is answered after that commit. Every commit that makes something due rings
    the bell (`Bell.ring`).
    """

    def create(
        self, new: Sequence[NewRun], *, skip_existing: bool = False, note: AuditNote | None = None
    ) -> list[Run]:
        """Create runs and the audit's note of it, all or none; each queued, with its run_created
        entry, and due now.

        A NewRun with `failed` is created in state failed, with a run_failed entry. Raises
        RunExists naming the id; with skip_existing an existing id is left out instead.
        """

    def get(self, run_id: RunId) -> Run:
        """Raises RunNotFound."""

    def by_number(self, repository_id: RepositoryId, number: int) -> Run:
        """Raises RunNotFound."""

    def list(self, which: RunFilter, *, cursor: str | None = None, limit: int = 50) -> RunPage: ...

    def counts(self) -> Mapping[RunState, int]:
        """How many runs are in each state that is not terminal."""

    def journal(
        self, run_id: RunId, *, after: int = 0, limit: int | None = None
    ) -> Sequence[Entry]:
        """Entries with seq > after, in order. Raises RunNotFound."""

    def claim(self, worker: WorkerId, *, limit: int, lease_ms: int) -> Sequence[Claim]:
        """Lease up to `limit` due runs, in round robin over repositories, higher priority first and
        then oldest due. Runs beyond a limit (`RunLimits`) stay where they are.

        Due: state queued or waiting, or running without a lease, with ready_ms in the past. A
        claimed run is `running` under a new fence, has a run_claimed entry, and no ready_ms.
        Never hands one run to two callers.
        """

    def append(self, append: Append) -> Appended: ...

    def renew(
        self, worker: WorkerId, *, lease_ms: int, held: Collection[str] | None = None
    ) -> None:
        """Lengthen the leases that this worker still holds, of runs and of operations: of those
        with the ids `held`, which it works on, or of all."""

    def expire(self, *, limit: int = 100) -> int:
        """Take back leases that ran out: runs become queued with a lease_expired entry, operations
        queued for the next worker. Returns how many."""

    def release(self, worker: WorkerId | None) -> int:
        """Take back, as `expire` does but at once, all leases of a worker known to be dead; None:
        of every worker, when nothing else runs on this store. Returns how many."""

    def next_ready_ms(self, labels: Collection[str] | None = None) -> int | None:
        """When the next run or operation is due; None if none ever will be without an event.
        With `labels`: those operations alone that a worker with these can do something about."""

    def delete(self, run_id: RunId) -> None:
        """Remove a terminal run with everything of it. Raises RunNotFound, Conflict."""


class OperationStore(Protocol):
    def claim(
        self,
        worker: WorkerId,
        *,
        limit: int,
        lease_ms: int,
        labels: Collection[str] = (),
        recall: bool = False,
    ) -> list[Operation]:
        """Lease up to `limit` due operations under a new fence; round robin over repositories.

        Those that need no more than these labels; `recall`: instead, memoised ones whose result
        nobody has looked for yet, whatever they need.
        """

    def get(self, operation_id: OperationId) -> Operation | None: ...

    def pass_on(self, operation: Operation) -> None:
        """Queue a held one, whose result is not known, for workers that can run it. Raises
        LeaseLost."""

    def close(self, operation_id: OperationId, *, fence: int) -> None:
        """End a command whose step or run has ended, so that there is no entry to write: its row
        is done. Changes nothing when `fence` has moved on. (Else it ends by CloseOperation.)"""


class ApprovalStore(Protocol):
    """Read only: gates change with `RunStore.append`."""

    def get(self, run_id: RunId, key: StepKey) -> Approval:
        """Raises StepNotFound."""

    def of_run(self, run_id: RunId) -> list[Approval]: ...

    def open(self, repository_ids: Sequence[RepositoryId] | None = None) -> list[Approval]:
        """All open gates, oldest first, at most 200."""

    def decision(self, run_id: RunId, key: StepKey, user_id: str) -> Decision | None: ...


@dataclass(frozen=True, slots=True)
class Token:
    id: str
    name: str
    user_id: UserId | None
    scopes: frozenset[str]
    repository_id: RepositoryId | None
    created_ms: int
    expires_ms: int | None
    last_used_ms: int | None


class IdentityStore(Protocol):
    """Users, password hashes, tokens and roles; knows nothing of what they allow."""

    def create_user(self, name: str, password_hash: str | None, *, admin: bool) -> User:
        """Raises Conflict if the name is taken."""

    def user(self, user_id: UserId) -> User | None: ...

    def user_by_name(self, name: str) -> tuple[User, str | None] | None:
        """The user and their password hash."""

    def users(self) -> list[User]: ...

    def set_password(self, user_id: UserId, password_hash: str) -> None: ...

    def set_role(self, user_id: UserId, repository_id: RepositoryId, role: Role | None) -> None: ...

    def roles(self, user_id: UserId) -> Mapping[RepositoryId, Role]: ...

    def add_token(self, token: Token, digest: str) -> None: ...

    def token(self, digest: str) -> Token | None:
        """By the SHA-256 of the secret, in hex."""

    def tokens(self, user_id: UserId | None = None) -> list[Token]: ...

    def revoke_token(self, token_id: str) -> None: ...

    def touch_token(self, token_id: str, at_ms: int) -> None: ...

    def put_link(self, digest: str, purpose: str, expires_ms: int) -> None:
        """Keep a one-time link by the digest of its secret; replaces one of the same purpose."""

    def take_link(self, digest: str, now_ms: int) -> str | None:
        """Use a link up: its purpose, or None if unknown, used or expired. At most one caller
        ever gets it."""

    def forget_links(self, now_ms: int) -> int:
        """Drop links that have expired. Returns how many."""


@dataclass(frozen=True, slots=True)
class Hook:
    """An inbound webhook of a repository, and where its commits are fetched from."""

    id: str
    repository_id: RepositoryId
    provider: str  # github, gitlab, gitea, bitbucket
    secret: bytes  # stored encrypted
    remote_url: str | None
    created_ms: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A verified delivery of a webhook, kept until its work is done."""

    hook_id: str
    id: str  # the provider's; the same when it is sent again
    event: str  # push, ...
    body: bytes  # as received
    received_ms: int
    tries: int = 0  # how often its work was put off


class HookStore(Protocol):
    def add(self, hook: Hook) -> None: ...

    def get(self, hook_id: str) -> Hook:
        """Raises HookNotFound."""

    def of_repository(self, repository_id: RepositoryId) -> list[Hook]: ...

    def remove(self, hook_id: str) -> None: ...

    def first_delivery(self, hook_id: str, delivery_id: str, at_ms: int) -> bool:
        """Note a delivery; False if this id was noted before."""

    def enqueue(self, delivery: Delivery) -> bool:
        """Note a delivery and keep it until `finish`; False if this id was noted before."""

    def pending(self, now_ms: int, *, limit: int = 100) -> list[Delivery]:
        """Kept deliveries that are due, oldest first."""

    def defer(self, hook_id: str, delivery_id: str, until_ms: int) -> None:
        """Put one off: it is due again at `until_ms`, with one try more."""

    def finish(self, hook_id: str, delivery_id: str, outcome: str) -> None:
        """Drop the body; the id and the outcome stay. Safe to call twice."""

    def forget(self, now_ms: int, *, limit: int = 500) -> int:
        """Drop finished deliveries that are older than a repetition can be (30 days), at most
        `limit`. Returns how many."""


class DescriptionStore(Protocol):
    """What pipeline files said of themselves, by code digest and platform version."""

    def get(self, digest: str) -> Description | None: ...

    def put(self, digest: str, description: Description) -> None: ...


class AuditStore(Protocol):
    def record(
        self, at_ms: int, actor: str, action: str, subject: str, detail: Mapping[str, Json]
    ) -> None: ...

    def list(self, *, limit: int = 100) -> list[Mapping[str, Json]]: ...


class Bell(Protocol):
    """Wakes sleepers after a commit, across threads and processes. A hint: it may ring for
    nothing, and a lost ring is made up for by the listener's own slow poll."""

    def ring(self) -> None: ...

    def wait(self, timeout_s: float) -> bool:
        """Return True when rung since the last call, False after the timeout."""

    def close(self) -> None: ...


class Store(Protocol):
    """All tables of the platform, one attribute per concern."""

    @property
    def runs(self) -> RunStore: ...
    @property
    def operations(self) -> OperationStore: ...
    @property
    def approvals(self) -> ApprovalStore: ...
    @property
    def logs(self) -> LogStore: ...
    @property
    def family(self) -> FamilyStore: ...
    @property
    def memos(self) -> MemoStore: ...
    @property
    def identity(self) -> IdentityStore: ...
    @property
    def hooks(self) -> HookStore: ...
    @property
    def descriptions(self) -> DescriptionStore: ...
    @property
    def audit(self) -> AuditStore: ...
    @property
    def workers(self) -> WorkerStore: ...
    @property
    def duties(self) -> DutyStore: ...
    @property
    def schedules(self) -> ScheduleStore: ...
    @property
    def shelves(self) -> ShelfStore: ...
    @property
    def networks(self) -> NetworkPolicies: ...
    def bell(self, *, work: bool = False) -> Bell:
        """A new listener; the caller closes it. `work`: it hears only what may make work due."""

    def close(self) -> None: ...


# --- the sandbox ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Activation:
    """One stretch of pipeline code to execute."""

    source: SourceFiles
    pipeline: str
    event: Mapping[str, Json]  # what the author gets as `event`
    seed: str  # of the run's randomness: the same in every activation of a run
    entries: Sequence[Entry]  # the journal so far
    strict: bool  # True: a replay that differs is a Mismatch. False: it is noted (latest)
    trusted: bool = True
    always_hibernate: bool = False  # testing: suspend at every await


class ActivationHost(Protocol):
    """What the code of one activation may ask of the world. Called from one thread."""

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        """Journal what the commands decide; answer all entries since the last that the guest knows.

        Called when no task of the guest can go on. No new entries: the guest suspends.
        """

    def log(self, step: str, stream: str, text: str) -> None:
        """Text the author printed, in pieces of any size."""

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        """What the code wants of `self.env`: {"value": …}, or {"error": {"type", "message"}} that
        it may catch. The guest stands still meanwhile, so this takes seconds at most."""


class Sandbox(Protocol):
    """Runs pipeline code with no ambient authority. Safe to call from many threads."""

    def describe(self, source: SourceFiles) -> Description:
        """Load the files and ask the module what it declares. Never raises for the author's
        mistakes: they come back as `Description.error`. Raises SandboxUnavailable."""

    def activate(self, activation: Activation, host: ActivationHost) -> Outcome:
        """Run until the code returns, fails or suspends. If `host.next` raises, the sandbox is
        dropped and that error is raised here."""

    def close(self) -> None: ...


# --- repositories ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileChange:
    """A write (`content`), a move (`moved_from`), or a deletion (neither) of one file."""

    path: str
    content: bytes | None
    executable: bool = False
    moved_from: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import brought."""

    refs: int  # branches and tags that moved
    refused: Mapping[str, str]  # ref -> why it was not taken over


@dataclass(frozen=True, slots=True)
class Proof:
    """What reading a whole repository found. It is whole if there are no problems."""

    packs: int
    objects: int
    refs: int
    problems: Sequence[str]


class Source(Protocol):
    """Pipeline code, read from the git store."""

    def load(self, repository_id: RepositoryId, commit: str) -> SourceFiles:
        """The `.ci/**/*.py` of a commit. Raises SourceError (no .ci/pipeline.py, not a file, too
        large, not UTF-8), naming path and limit."""

    def has_pipeline(self, repository_id: RepositoryId, commit: str) -> bool: ...

    def resolve(self, repository_id: RepositoryId, ref: str) -> str | None:
        """The commit a ref points at (refs/heads/x, refs/tags/x peeled, HEAD); None if gone."""

    def default_ref(self, repository_id: RepositoryId) -> str:
        """refs/heads/… of the default branch. Raises NotFound."""

    def keep(self, repository_id: RepositoryId, commit: str) -> None:
        """Keep a commit alive by a hidden ref until `release`. Cheap when it is kept already."""

    def release(self, repository_id: RepositoryId, commit: str) -> None:
        """Let go of it. Whoever asks has made sure that no run is left that needs it."""

    def commit(self, repository_id: RepositoryId, sha: str) -> Commit:
        """Raises NotFound."""

    def changed_paths(
        self, repository_id: RepositoryId, before: str | None, after: str
    ) -> list[str]: ...

    def fetch(self, repository_id: RepositoryId, url: str, commit: str, ref: str) -> None:
        """Fetch `ref` from a remote until `commit` is here. Raises InvalidRequest."""


class Pushes(Protocol):
    """The outbox of the git store: pushes whose refs have moved, until their runs exist."""

    def pending(self, *, limit: int = 100) -> list[Push]:
        """Oldest first."""

    def done(self, push_id: str) -> None:
        """Safe to call twice."""


class Repositories(Hosting, Protocol):
    def create(
        self, owner: str, name: str, *, default_branch: str = "main", description: str = ""
    ) -> Repository:
        """Raises RepositoryExists, InvalidRequest."""

    def get(self, owner: str, name: str) -> Repository:
        """Raises RepositoryNotFound."""

    def by_id(self, repository_id: RepositoryId) -> Repository:
        """Raises RepositoryNotFound."""

    def by_ids(self, ids: Iterable[RepositoryId]) -> Sequence[Repository]:
        """In no order, without those that are gone."""

    def list(
        self, *, after: str = "", limit: int = 100, among: Iterable[RepositoryId] | None = None
    ) -> list[Repository]:
        """By full name, ascending; `among`: only those of these ids."""

    def delete(self, repository_id: RepositoryId) -> None: ...

    def fork(self, repository_id: RepositoryId, owner: str, name: str) -> Repository:
        """A copy that shares what is stored. Raises as `create`."""

    def import_remote(
        self,
        repository_id: RepositoryId,
        url: str,
        *,
        credentials: tuple[str, str] | None,
        prune: bool,
        options: Sequence[str],
        pusher_id: str | None,
        pusher: str,
    ) -> Imported:
        """Make a remote's branches and tags those of the repository, as one push: listeners hear
        of it. `prune` drops those the remote does not have. Raises InvalidRequest, TooLarge,
        Conflict, TooMany."""

    def collect_garbage(self, repository_id: RepositoryId) -> int:
        """Drop what no ref has reached for a while. Returns how many objects."""

    def prove(self, repository_id: RepositoryId) -> Proof:
        """Read every object and follow every reference."""

    def archive(
        self, repository_id: RepositoryId, commit: str, *, kind: str, prefix: str
    ) -> Iterator[bytes]:
        """A commit's files as one archive in pieces; `kind` is "tar.gz" or "zip". Raises
        NotFound, TooLarge, also while it is read."""

    def branches(self, repository_id: RepositoryId) -> Mapping[str, str]:
        """Short name -> commit, at most 1,000."""

    def read_file(self, repository_id: RepositoryId, commit: str, path: str) -> bytes:
        """Raises NotFound, TooLarge."""

    def list_tree(
        self, repository_id: RepositoryId, commit: str, path: str
    ) -> Sequence[tuple[str, str]]:
        """(name, "file" | "dir" | "link" | "submodule") of a directory. Raises NotFound."""

    def commit_files(
        self,
        repository_id: RepositoryId,
        *,
        branch: str,
        changes: Sequence[FileChange],
        message: str,
        author: str,
        expected_parent: str | None,
        pusher_id: str | None = None,
        pusher: str = "sluice",
    ) -> str:
        """Commit changes on a branch, as a push would: listeners hear of it. Returns the commit.
        Raises Conflict when the branch is not at expected_parent (None: do not check)."""
