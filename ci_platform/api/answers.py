"""The JSON of the API's answers, and how values of the platform become it.

Separate from model.py on purpose: what a client may rely on changes only here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict

from ci_platform.api.relatives import (
    AgainAnswer,
    ChangeAnswer,
    OriginAnswer,
    QueueAnswer,
    RelativeAnswer,
    StuckAnswer,
)
from ci_platform.api.requests import RunOf
from ci_platform.commands import Deleted
from ci_platform.model import (
    Actor,
    ErrorInfo,
    Json,
    LogLine,
    Repository,
    Rollback,
    Run,
    Step,
    User,
    Wait,
)
from ci_platform.ports.hooks import Hook
from ci_platform.ports.identity import Token
from ci_platform.queries import ApprovalView, RunView, SystemView, WorkerView
from ci_platform.queries.explain import QueueView
from ci_platform.scheduling import Hold

BRANCH = "refs/heads/"


def iso(at_ms: int) -> str:
    """2026-07-31T12:00:00.123Z"""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_or_none(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)


def without_password(url: str) -> str:
    """An address that may be shown: what is before the @ may be a secret."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{host}" if at and credentials else host))


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class RepositoryAnswer(Answer):
    id: str
    owner: str
    name: str
    full_name: str
    default_branch: str
    description: str
    created_at: str
    clone_url: str

    @classmethod
    def of(cls, repository: Repository, base_url: str) -> RepositoryAnswer:
        return cls(
            id=repository.id,
            owner=repository.owner,
            name=repository.name,
            full_name=repository.full_name,
            default_branch=repository.default_branch,
            description=repository.description,
            created_at=iso(repository.created_ms),
            clone_url=f"{base_url}/{repository.full_name}.git",
        )


class RepositoryList(Answer):
    repositories: list[RepositoryAnswer]
    cursor: str | None


class CommitAnswer(Answer):
    commit: str
    branch: str


class FileAnswer(Answer):
    """A file's content, or a directory's entries."""

    path: str
    commit: str
    kind: str  # file | dir
    encoding: str | None = None  # utf-8 | base64
    content: str | None = None
    entries: list[EntryName] | None = None


class EntryName(Answer):
    name: str
    kind: str  # file | dir | link | submodule


class WaitAnswer(Answer):
    kind: str
    name: str
    type: str | None
    since: str
    until: str | None

    @classmethod
    def of(cls, wait: Wait) -> WaitAnswer:
        return cls(
            kind=wait.kind,
            name=wait.name,
            type=wait.type,
            since=iso(wait.since_ms),
            until=iso_or_none(wait.until_ms),
        )


class ErrorAnswer(Answer):
    type: str
    message: str
    traceback: str
    data: dict[str, Json]

    @classmethod
    def of(cls, error: ErrorInfo | None) -> ErrorAnswer | None:
        if error is None:
            return None
        return cls(
            type=error.type,
            message=error.message,
            traceback=error.traceback,
            data=dict(error.data),
        )


class StepAnswer(Answer):
    kind: str
    name: str
    occurrence: int
    state: str
    attempts: int
    commit: str
    started_at: str
    ended_at: str | None
    until: str | None
    value: Json
    error: ErrorAnswer | None
    origin: OriginAnswer | None  # the run that executed it, where it was not this one
    queue: QueueAnswer | None  # of a command that no worker has taken yet

    @classmethod
    def of(cls, step: Step, queue: QueueView | None = None) -> StepAnswer:
        return cls(
            kind=step.key.kind,
            name=step.key.name,
            occurrence=step.key.occurrence,
            state=step.state,
            attempts=step.attempts,
            commit=step.commit,
            started_at=iso(step.started_ms),
            ended_at=iso_or_none(step.ended_ms),
            until=iso_or_none(step.until_ms),
            value=step.value,
            error=ErrorAnswer.of(step.error),
            origin=OriginAnswer.of(step.origin),
            queue=QueueAnswer.of(queue),
        )


class RunState(Answer):
    """What every change of a run answers."""

    id: str
    number: int
    url: str
    state: str
    reason: str | None
    pause_requested: bool

    @classmethod
    def of(cls, run: Run, base_url: str) -> RunState:
        return cls(
            id=run.id,
            number=run.number,
            url=f"{base_url}/runs/{run.id}",
            state=run.state,
            reason=run.reason,
            pause_requested=run.pause_requested,
        )


class RunStates(Answer):
    runs: list[RunState]


class Deletion(Answer):
    id: str
    deleted: bool
    status: int  # of a single deletion: 204, 404, 409
    detail: str | None

    @classmethod
    def of(cls, one: Deleted) -> Deletion:
        return cls(**one.told())


class Deletions(Answer):
    results: list[Deletion]


class RunSummary(RunState):
    """A run in a list."""

    pipeline: str
    ref: str
    branch: str | None
    commit: str
    resume: str
    trigger: str
    actor: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    waits: list[WaitAnswer]
    group: str | None
    priority: int

    @classmethod
    def of(cls, run: Run, base_url: str) -> RunSummary:
        return cls(
            **RunState.of(run, base_url).model_dump(),
            pipeline=run.pipeline,
            ref=run.ref,
            branch=run.ref.removeprefix(BRANCH) if run.ref.startswith(BRANCH) else None,
            commit=run.commit,
            resume=run.resume,
            trigger=run.trigger,
            actor=run.actor,
            created_at=iso(run.created_ms),
            started_at=iso_or_none(run.started_ms),
            ended_at=iso_or_none(run.ended_ms),
            waits=[WaitAnswer.of(wait) for wait in (*_held(run), *run.waits)],
            group=run.place.group,
            priority=run.place.priority,
        )


def _held(run: Run) -> list[Wait]:
    """A queued run's wait for its turn."""
    if run.hold is None:
        return []
    name = run.place.group if run.hold is Hold.GROUP else "runs_max_per_repository"
    return [Wait(run.hold, name or "", None, run.created_ms, None)]


class RunList(Answer):
    runs: list[RunSummary]
    cursor: str | None


class RollbackAnswer(Answer):
    """How far the undoing of a failed or cancelled run has come."""

    outcome: str  # running | complete | failed
    error: ErrorAnswer | None

    @classmethod
    def of(cls, rollback: Rollback | None) -> RollbackAnswer | None:
        if rollback is None:
            return None
        return cls(outcome=rollback.outcome, error=ErrorAnswer.of(rollback.error))


class RunAnswer(RunSummary):
    repository: str
    steps: list[StepAnswer]  # a page of them, in the order they started
    steps_cursor: int | None  # `steps_after` of the next page; None: these are the last
    output: Json
    error: ErrorAnswer | None
    rollback: RollbackAnswer | None
    parent: RelativeAnswer | None
    children: list[RelativeAnswer]
    queue: QueueAnswer | None
    stuck: list[StuckAnswer]
    again: AgainAnswer | None
    changes: list[ChangeAnswer]
    payload: Json

    @classmethod
    def of_view(cls, view: RunView, base_url: str, page: RunOf) -> RunAnswer:
        run = view.run
        end = page.steps_after + page.steps
        steps = view.steps[page.steps_after : end]
        summary = RunSummary.of(run, base_url)
        return cls(
            # Not model_dump: it would turn the waits, already checked, into dicts and back.
            **dict(summary),
            repository=view.repository.full_name,
            steps=[StepAnswer.of(step, view.queues.get(step.key)) for step in steps],
            steps_cursor=end if end < len(view.steps) else None,
            output=run.output,
            error=ErrorAnswer.of(run.error),
            rollback=RollbackAnswer.of(view.rollback),
            parent=None if view.parent is None else RelativeAnswer.of(view.parent),
            children=[RelativeAnswer.of(one) for one in view.children],
            queue=QueueAnswer.of(view.queue),
            stuck=[StuckAnswer.of(one) for one in view.stuck],
            again=AgainAnswer.of(view.again),
            changes=[ChangeAnswer.of(one, iso(one.at_ms)) for one in view.changes],
            payload=dict(run.payload),
        )


class LineAnswer(Answer):
    number: int
    at: str
    stream: str
    text: str

    @classmethod
    def of(cls, line: LogLine) -> LineAnswer:
        return cls(number=line.number, at=iso(line.at_ms), stream=line.stream, text=line.text)


class LogName(Answer):
    step: str
    lines: int  # the number of its last line


class LogPage(Answer):
    step: str
    lines: list[LineAnswer]
    logs: list[LogName]  # the logs this run has; ask for one by `step`


class DecisionAnswer(Answer):
    user: str
    decision: str
    comment: str
    way: str
    at: str


class ApprovalAnswer(Answer):
    run: str
    repository: str
    name: str
    approvers: list[str]
    required: int
    environment: str | None
    form: Json
    opened_at: str
    expires_at: str | None
    outcome: str | None
    may_answer: bool
    decisions: list[DecisionAnswer]

    @classmethod
    def of(cls, view: ApprovalView) -> ApprovalAnswer:
        gate = view.approval
        return cls(
            run=gate.run_id,
            repository=view.repository.full_name,
            name=gate.key.label,
            approvers=list(gate.spec.get("approvers") or ()),
            required=int(gate.spec.get("required") or 1),
            environment=gate.spec.get("environment"),
            form=gate.spec.get("form"),
            opened_at=iso(gate.opened_ms),
            expires_at=iso_or_none(gate.expires_ms),
            outcome=gate.outcome,
            may_answer=view.may_answer,
            decisions=[
                DecisionAnswer(
                    user=one.user,
                    decision=one.decision,
                    comment=one.comment,
                    way=one.way,
                    at=iso(one.at_ms),
                )
                for one in gate.decisions
            ],
        )


class ApprovalList(Answer):
    approvals: list[ApprovalAnswer]


class Decided(RunState):
    """The run after an answer; `decision` is the one that counts, the first of this person."""

    decision: str
    first: bool
    outcome: str | None  # of the gate; None: it asks for more people


class TokenAnswer(Answer):
    id: str
    name: str
    scopes: list[str]
    user_id: str | None
    repository_id: str | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None

    @classmethod
    def of(cls, token: Token) -> TokenAnswer:
        return cls(
            id=token.id,
            name=token.name,
            scopes=sorted(token.scopes),
            user_id=token.user_id,
            repository_id=token.repository_id,
            created_at=iso(token.created_ms),
            expires_at=iso_or_none(token.expires_ms),
            last_used_at=iso_or_none(token.last_used_ms),
        )


class NewTokenAnswer(TokenAnswer):
    secret: str  # shown this once


class TokenList(Answer):
    tokens: list[TokenAnswer]


class UserAnswer(Answer):
    id: str
    name: str
    admin: bool
    created_at: str

    @classmethod
    def of(cls, user: User) -> UserAnswer:
        return cls(id=user.id, name=user.name, admin=user.admin, created_at=iso(user.created_ms))


class UserList(Answer):
    users: list[UserAnswer]


class Whoami(Answer):
    kind: str
    id: str
    name: str
    admin: bool
    scopes: list[str]
    repository_id: str | None
    roles: dict[str, str]

    @classmethod
    def of(cls, actor: Actor) -> Whoami:
        return cls(
            kind=actor.kind,
            id=actor.id,
            name=actor.name,
            admin=actor.admin,
            scopes=sorted(actor.scopes),
            repository_id=actor.repository_id,
            roles={str(repository): str(role) for repository, role in actor.roles.items()},
        )


class HookAnswer(Answer):
    id: str
    provider: str
    remote_url: str | None
    created_at: str
    url: str

    @classmethod
    def of(cls, hook: Hook, base_url: str) -> HookAnswer:
        return cls(
            id=hook.id,
            provider=hook.provider,
            remote_url=None if hook.remote_url is None else without_password(hook.remote_url),
            created_at=iso(hook.created_ms),
            url=f"{base_url}/hooks/{hook.id}",
        )


class NewHookAnswer(HookAnswer):
    secret: str  # shown this once


class HookList(Answer):
    hooks: list[HookAnswer]


class WorkerAnswer(Answer):
    worker: str
    host: str
    alive: bool
    runs: int
    operations: int
    labels: list[str]
    capacity: int
    draining: bool
    started_at: str
    last_seen_at: str

    @classmethod
    def of(cls, view: WorkerView) -> WorkerAnswer:
        return cls(
            worker=view.worker,
            host=view.host,
            alive=view.alive,
            runs=view.runs,
            operations=view.operations,
            labels=list(view.labels),
            capacity=view.capacity,
            draining=view.draining,
            started_at=iso(view.started_ms),
            last_seen_at=iso(view.seen_ms),
        )


class DrainingAnswer(Answer):
    worker: str


class SystemAnswer(Answer):
    runs: dict[str, int]  # those not finished, by state
    due: int
    oldest_due_at: str | None
    next_ready_at: str | None
    workers: list[WorkerAnswer]
    approvals_open: int
    now: str

    @classmethod
    def of(cls, view: SystemView) -> SystemAnswer:
        return cls(
            runs={str(state): count for state, count in view.counts.items()},
            due=view.due,
            oldest_due_at=iso_or_none(view.oldest_due_ms),
            next_ready_at=iso_or_none(view.next_ready_ms),
            workers=[WorkerAnswer.of(one) for one in view.workers],
            approvals_open=view.approvals_open,
            now=iso(view.now_ms),
        )


class AuditList(Answer):
    entries: list[dict[str, Json]]
