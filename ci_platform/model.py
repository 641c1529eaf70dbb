"""The platform's values: runs, steps, journal entries and what derives from them. No I/O.

Every other module speaks in these. They are frozen, and their JSON-shaped parts are only ever
read. Instants are whole milliseconds since 1970 UTC (`…_ms`), because both databases order and
compare them exactly; the API shows them as ISO 8601.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType, TypeAlias

from ci_platform.family import Kin
from ci_platform.scheduling import Hold, Place

Json: TypeAlias = Any  # what json.loads returns; the only `Any` in the code base
RunId = NewType("RunId", str)
RepositoryId = NewType("RepositoryId", str)
WorkerId = NewType("WorkerId", str)
OperationId = NewType("OperationId", str)
UserId = NewType("UserId", str)


class RunState(StrEnum):
    """Where a run is; the words of the API, the database and the screen."""

    QUEUED = "queued"  # due: the next free worker takes it
    RUNNING = "running"  # its code executes, or a command of it does
    WAITING = "waiting"  # asleep until a time, an event or a person
    PAUSED = "paused"  # held by a person or by a safety stop; nothing of it executes
    PASSED = "passed"  # terminal: the pipeline returned
    FAILED = "failed"  # terminal: the author's code or command said no
    ERRORED = "errored"  # terminal: the platform broke its promise
    CANCELLED = "cancelled"  # terminal: someone or something stopped it

    @property
    def terminal(self) -> bool:
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset(
    {RunState.PASSED, RunState.FAILED, RunState.ERRORED, RunState.CANCELLED}
)


class StepState(StrEnum):
    """Where a step is, as folded from the journal."""

    QUEUED = "queued"  # its command waits for a worker: only shown, the journal does not say it
    RUNNING = "running"  # an attempt executes
    WAITING = "waiting"  # for a time, an event, a person, or its next attempt
    PASSED = "passed"
    FAILED = "failed"
    CANCELLED = "cancelled"  # the run ended, or the author's code stopped waiting for it


class StepKind(StrEnum):
    DO = "do"  # a function of the author, inside the sandbox
    SH = "sh"  # a shell command: an operation
    SERVICE = "service"  # a process beside the commands of a block, while that is open
    SLEEP = "sleep"
    WAIT = "wait"  # for an event
    APPROVAL = "approval"
    RUN = "run"  # a child run
    TIMER = "timer"  # a timer of the event loop itself, as asyncio.sleep makes


class RollbackOutcome(StrEnum):
    """How far the undoing of a failed or cancelled run has come."""

    RUNNING = "running"
    COMPLETE = "complete"  # every handler has passed
    FAILED = "failed"  # one failed, or could not be reached; those behind it did not run


class EntryKind(StrEnum):
    """Past tense: what has happened to a run. `data` of each is given behind it."""

    RUN_CREATED = "run_created"  # {trigger, actor, pipeline, ref, commit, shared?, again?}
    RUN_CLAIMED = "run_claimed"  # {worker, fence}
    LEASE_EXPIRED = "lease_expired"  # {worker}
    RUN_SUSPENDED = "run_suspended"  # {waits: [name, ...]}
    COMMIT_RESOLVED = "commit_resolved"  # {commit}: the code this and later attempts execute
    STEP_STARTED = "step_started"  # key, attempt 1; {config, until?, origin?, ...kind specific}
    ATTEMPT_STARTED = "attempt_started"  # key, attempt >= 2
    ATTEMPT_FAILED = "attempt_failed"  # key, attempt; {error, retry_at_ms}
    STEP_PASSED = "step_passed"  # key, attempt; {value, event?: seq of event_received}
    STEP_FAILED = "step_failed"  # key, attempt; {error}
    STEP_CANCELLED = "step_cancelled"  # key; {reason}
    EVENT_RECEIVED = "event_received"  # {type, payload, actor, id?}
    APPROVAL_DECIDED = "approval_decided"  # key; {decision, actor, comment, way, form}
    PAUSE_REQUESTED = "pause_requested"  # {actor}
    RUN_PAUSED = "run_paused"  # {reason, detail}
    RUN_RESUMED = "run_resumed"  # {actor, shifted_ms}
    CANCEL_REQUESTED = "cancel_requested"  # {actor, reason, rollback}
    ROLLBACK_STARTED = "rollback_started"  # {steps: [[kind, name, occurrence], ...], end, data}
    DIVERGED = "diverged"  # key; {change: "inserted" | "missing" | "fell_back", commit}
    RUN_PASSED = "run_passed"  # {output}
    RUN_FAILED = "run_failed"  # {error, reason?, rollback?: {outcome, error}}
    RUN_ERRORED = "run_errored"  # {error, reason?, rollback?}
    RUN_CANCELLED = "run_cancelled"  # {reason, actor, rollback?}


STEP_NAME_MAX = 256
_OCCURRENCE = re.compile(r"#\d+$")


@dataclass(frozen=True, slots=True, order=True)
class StepKey:
    """What identifies a step in a run: never its config or its position."""

    kind: StepKind
    name: str
    occurrence: int = 1

    def __str__(self) -> str:
        """`kind:name`, and `#2` for the second one: its form in URLs and in the log table."""
        return f"{self.kind}:{self.label}"

    @property
    def label(self) -> str:
        """What people see: `build`, `build#2`."""
        return self.name if self.occurrence == 1 else f"{self.name}#{self.occurrence}"

    @classmethod
    def parse(cls, text: str) -> StepKey:
        """Read `str(key)` back. Raises ValueError for anything else."""
        kind, colon, label = text.partition(":")
        if not colon or not label:
            raise ValueError(f"{text!r} is not a step: expected kind:name or kind:name#2")
        found = _OCCURRENCE.search(label)
        if found is None:
            return cls(StepKind(kind), label)
        return cls(StepKind(kind), label[: found.start()], int(found.group()[1:]))


RUN_LOG = "$run"  # the log of prints outside any step; step logs go by str(StepKey)


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry before the store has given it a number."""

    kind: EntryKind
    data: Mapping[str, Json] = field(default_factory=dict)
    key: StepKey | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a run's journal. Never edited once written."""

    seq: int  # 1, 2, 3, ... within the run, without holes
    kind: EntryKind
    at_ms: int
    data: Mapping[str, Json] = field(default_factory=dict)
    key: StepKey | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """What a run sleeps on. `kind` is sleep, wait, approval, operation, run, timer or retry."""

    kind: str
    name: str
    type: str | None  # the event's type
    since_ms: int
    until_ms: int | None


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception of the author, as data."""

    type: str
    message: str
    traceback: str = ""  # the author's frames only
    data: Mapping[str, Json] = field(default_factory=dict)  # e.g. CommandFailed: exit_code


@dataclass(frozen=True, slots=True)
class Rollback:
    """The undoing of a run, for people."""

    outcome: RollbackOutcome
    error: ErrorInfo | None  # of the handler that failed


class Resume(StrEnum):
    PINNED = "pinned"  # every activation runs the commit the run was created with
    LATEST = "latest"  # every activation resolves the ref again


@dataclass(frozen=True, slots=True)
class Run:
    """The run's row: its identity, and what the journal folds to, kept for queries."""

    id: RunId
    number: int  # 1, 2, 3, ... within the repository
    repository_id: RepositoryId
    pipeline: str  # the class's name
    ref: str  # refs/heads/main
    commit: str  # 40 hex digits: the commit of creation (pinned) or of the last activation
    resume: Resume
    trigger: str  # push, tag, manual, pull_request, schedule, api
    payload: Mapping[str, Json]  # the envelope: {"__dispatch": ..., "params": ...}
    event: Mapping[str, Json]  # {before, message, actor, payload}: the rest of the author's event
    actor: str  # who caused it, as shown
    actor_id: str | None  # the user to whom `allow_self` applies
    trusted: bool  # False for code of a fork: no secrets, no network
    created_ms: int
    state: RunState
    reason: str | None
    last_seq: int  # of the journal
    fence: int  # counts claims: the lease's fencing number
    worker: WorkerId | None  # who holds the lease
    lease_until_ms: int | None
    ready_ms: int | None  # when it is due: past = now, future = a timer, None = only an event
    waits: Sequence[Wait]
    started_ms: int | None
    ended_ms: int | None
    output: Json
    error: ErrorInfo | None
    pause_requested: bool
    cancel_requested: bool
    timeout_ms: int | None  # of the whole run, from its first claim
    place: Place = Place()
    hold: Hold | None = None  # why it is not offered to workers, while it is queued
    slot: bool = False  # it counts as executing, where there is a limit


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that another one does again, or that executed a step which another one shares."""

    run_id: RunId
    number: int


@dataclass(frozen=True, slots=True)
class Shared:
    """What a run has in common with the one that it does again."""

    run_id: RunId
    number: int
    step: str | None  # str(StepKey): it and what started after it are done again; None: all is
    entries: Sequence[Entry] = ()  # numbered from 2 on
    gates: Sequence[Approval] = ()  # of the approvals among them, as the other run has them


@dataclass(frozen=True, slots=True)
class AuditNote:
    """What somebody changed."""

    at_ms: int
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class NewRun:
    """All that is needed to create a run; the store adds number, state and times."""

    id: RunId
    repository_id: RepositoryId
    pipeline: str
    ref: str
    commit: str
    resume: Resume
    trigger: str
    payload: Mapping[str, Json]
    event: Mapping[str, Json]
    actor: str
    actor_id: str | None = None
    trusted: bool = True
    timeout_ms: int | None = None
    failed: ErrorInfo | None = None  # born failed: the pipeline file did not load
    kin: Kin | None = None  # the run that starts it, if one does
    shared: Shared | None = None  # it goes on from a step of another run
    place: Place = Place()


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """The columns of a run that its journal folds to; written with the entries that moved them.

    `hold` False drops the lease (the append was the last of this activation).
    """

    state: RunState
    reason: str | None
    ready_ms: int | None
    waits: Sequence[Wait]
    commit: str
    output: Json
    error: ErrorInfo | None
    pause_requested: bool
    cancel_requested: bool
    hold: bool


# --- rows beside the journal ---------------------------------------------------------------------


class OperationState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Operation:
    """A command of a run, as a worker claims it."""

    id: OperationId
    run_id: RunId
    repository_id: RepositoryId
    key: StepKey
    attempt: int
    spec: Mapping[str, Json]
    state: OperationState
    fence: int
    worker: WorkerId | None
    lease_until_ms: int | None
    ready_ms: int
    stop: bool
    pool: str = ""  # see labels.py
    lost_worker: WorkerId | None = None  # whose lease of it ran out before


@dataclass(frozen=True, slots=True)
class Decision:
    user_id: str
    user: str
    decision: str
    comment: str
    way: str
    form: Mapping[str, Json]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Approval:
    """A gate, open or answered."""

    run_id: RunId
    repository_id: RepositoryId
    key: StepKey
    spec: Mapping[str, Json]
    opened_ms: int
    expires_ms: int | None
    outcome: str | None  # None while open
    closed_ms: int | None
    decisions: Sequence[Decision]


# --- what the guest asks for ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartStep:
    """The author's code reached a step that the journal does not hold."""

    key: StepKey
    config: Mapping[str, Json]  # checked by the guest; durations already in milliseconds


@dataclass(frozen=True, slots=True)
class FinishAttempt:
    """A body of `step.do` returned or raised."""

    key: StepKey
    attempt: int
    value: Json = None
    error: ErrorInfo | None = None
    retryable: bool = True
    delay_ms: int | None = None  # computed by the author's delay function
    early_ms: int | None = None  # the code has gone on with the value, at this time on its clock


@dataclass(frozen=True, slots=True)
class AbandonStep:
    """The author's code stopped waiting for a step, as asyncio.timeout does."""

    key: StepKey


@dataclass(frozen=True, slots=True)
class NoteDivergence:
    """The code differs from the one that wrote the journal (resume = latest)."""

    key: StepKey
    change: str  # inserted | missing


Command: TypeAlias = StartStep | FinishAttempt | AbandonStep | NoteDivergence


# --- how an activation ends ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Suspended:
    """Every task of the author waits for something outside; the sandbox is gone."""


@dataclass(frozen=True, slots=True)
class Returned:
    output: Json
    commands: Sequence[Command] = ()  # ends of steps that come before it


@dataclass(frozen=True, slots=True)
class Raised:
    """The author's code failed: an uncaught exception, a file that does not load, a limit."""

    error: ErrorInfo
    limit: str | None = None  # memory, cpu, recursion, output... when the sandbox stopped it
    loading: bool = False  # the module itself did not load
    overran: StepKey | None = None  # a body that did not let go of its sandbox in time...
    overran_asking: bool = False  # ... or its delay function did not
    commands: Sequence[Command] = ()  # ends of steps that come before it


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A replay of the same commit took another way (nondeterminism)."""

    seq: int
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class Broke:
    """The sandbox itself failed; the run may be tried again."""

    detail: str


Outcome: TypeAlias = Suspended | Returned | Raised | Mismatch | Broke


# --- pipeline source -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The pipeline's files at a commit: path below the repository's root -> text."""

    repository_id: RepositoryId
    commit: str
    files: Mapping[str, str]  # ".ci/pipeline.py", ".ci/lib/helpers.py", ...
    digest: str  # of paths and contents: equal digests are equal code


@dataclass(frozen=True, slots=True)
class Trigger:
    kind: str  # push, tag, pull_request, schedule, manual
    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    cron: str | None = None
    timezone: str | None = None
    inputs: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PipelineDescription:
    name: str
    triggers: tuple[Trigger, ...]
    resume: Resume = Resume.PINNED
    on_divergence: str = "accept"
    concurrency: Mapping[str, Json] | None = None  # {group, limit, on_new}
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """What a pipeline file says of itself, or why it does not load. Kept per commit."""

    pipelines: tuple[PipelineDescription, ...] = ()
    error: ErrorInfo | None = None
    fetch: str | None = None  # who may call the file's own endpoint: token, public; None: no such


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One ref that a push moved."""

    ref: str  # refs/heads/main
    before: str | None  # None: the ref is new
    after: str | None  # None: the ref was deleted


@dataclass(frozen=True, slots=True)
class Push:
    """Refs that moved in a repository, whichever way: git, a web edit, a webhook.

    `id` is the same when the same push is told again, so that nothing starts twice.
    """

    id: str
    repository_id: RepositoryId
    at_ms: int
    actor: str  # as shown
    actor_id: str | None  # the user who pushed, if it is one of ours
    updates: Sequence[RefUpdate]
    options: Sequence[str] = ()  # git push -o
    payload: Mapping[str, Json] = field(default_factory=dict)  # of the webhook
    trusted: bool = True


# --- repositories, people, logs ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Repository:
    id: RepositoryId
    owner: str
    name: str
    default_branch: str
    description: str
    created_ms: int

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class Role(StrEnum):
    READER = "reader"
    WRITER = "writer"
    MAINTAINER = "maintainer"


@dataclass(frozen=True, slots=True)
class User:
    id: UserId
    name: str
    admin: bool
    created_ms: int


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a signed-in user, a token, or the platform itself. Only identity/ makes these."""

    kind: str  # user, token, console (the machine's owner), system, anonymous
    id: str
    name: str
    admin: bool = False
    scopes: frozenset[str] = frozenset()  # of a token: repo:read, repo:write, run, admin
    repository_id: RepositoryId | None = None  # a token bound to one repository
    roles: Mapping[RepositoryId, Role] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()
    token_id: str | None = None  # of a token; `id` is then its user, or the token if it has none


SYSTEM = Actor(kind="system", id="system", name="sluice", admin=True)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a step's output. Numbers count from 1 within (run, step)."""

    number: int
    at_ms: int
    stream: str  # stdout, stderr, group, endgroup, or note: said by the platform
    text: str  # without the line end; may hold ANSI escapes


@dataclass(frozen=True, slots=True)
class Step:
    """A step as folded from the journal, for people."""

    key: StepKey
    state: StepState
    attempts: int
    commit: str
    started_ms: int
    ended_ms: int | None
    config: Mapping[str, Json]
    value: Json = None
    error: ErrorInfo | None = None
    until_ms: int | None = None  # of a sleep, a wait, an approval, or the next attempt
    origin: Origin | None = None  # the run that executed it, where it was not this one
