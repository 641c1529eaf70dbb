"""The Protocols between the parts: the only abstract things here. Each has two implementations.

Contract of all of them: methods block, are safe to call from any thread, and raise only errors of
`errors.py`. Nothing here returns a database row, a socket or a file handle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.effects import Effect
from ci_platform.family import FamilyStore
from ci_platform.model import (
    Approval,
    AuditNote,
    Decision,
    Description,
    Draft,
    Entry,
    Json,
    NewRun,
    Operation,
    OperationId,
    RepositoryId,
    Run,
    RunId,
    RunState,
    RunUpdate,
    StepKey,
    WorkerId,
)
from ci_platform.ports.granting import ShelfStore
from ci_platform.ports.hooks import HookStore
from ci_platform.ports.housekeeping import DutyStore, Retention, WorkerStore
from ci_platform.ports.identity import IdentityStore
from ci_platform.ports.logs import LogStore
from ci_platform.scheduling import ScheduleStore, Scheduling, Share
from ci_platform.shell import MemoStore, NetworkPolicies


class Clock(Protocol):
    """The one clock. Tests advance theirs; nothing else asks the operating system for the time."""

    def now_ms(self) -> int: ...


# --- the store ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append:
    """Entries to add to a run's journal, with everything that changes because of them.

    Written whole or not at all, `note` and all. Refused without an error (`Appended.applied`
    False) when the journal has moved past `expected_seq`: read what is new, decide again. Refused
    with LeaseLost when `fence` is given and the run is not leased under it, or a CloseOperation's
    fence moved.
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
    note: AuditNote | None = None  # of whoever asked for it, for the audit log


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
        self,
        new: Sequence[NewRun],
        *,
        skip_existing: bool = False,
        notes: Sequence[AuditNote] = (),
    ) -> list[Run]:
        """Create runs, all or none; each queued, with its run_created entry, and due now.

        `notes`: none, or one for each of `new`, which the audit log has if the run is created.

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

    def claim(
        self, worker: WorkerId, *, limit: int, lease_ms: int, share: Share | None = None
    ) -> Sequence[Claim]:
        """Lease up to `limit` due runs, in round robin over repositories, higher priority first and
        then oldest due. Runs beyond a limit (`RunLimits`), or beyond the claimer's `share` for
        their repository, stay where they are.

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

    def due_since_ms(self) -> int | None:
        """When the run became due that has been due for longest; None if none is."""

    def delete(self, run_id: RunId, *, note: AuditNote | None = None) -> None:
        """Remove a terminal run with everything of it, and write the audit's note of that. Raises
        RunNotFound, Conflict."""


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

    def queued(self, run_id: RunId) -> Mapping[StepKey, int]:
        """The run's due commands that no worker has taken, at most QUEUED_MAX: how many of their
        repository come before each on the same workers, counted to AHEAD_MAX."""

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
