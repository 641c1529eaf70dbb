"""Every question a screen or client may ask, answered as far as the actor may see.

Reads only; returns model values and the small frozen dataclasses below. Synchronous: async callers
use the thread pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ci_platform.engine.fold import RunView as Folded
from ci_platform.engine.fold import fold
from ci_platform.engine.summary import artifacts, rollback, shown, steps
from ci_platform.errors import (
    NotFound,
    NotSignedIn,
    RunNotFound,
    SourceError,
    StepNotFound,
)
from ci_platform.identity import Action, authorise, may, may_decide, readable, role_in
from ci_platform.model import (
    TERMINAL_STATES,
    Actor,
    Approval,
    Description,
    Entry,
    EntryKind,
    ErrorInfo,
    Json,
    LogLine,
    Repository,
    RepositoryId,
    Role,
    Rollback,
    Run,
    RunId,
    RunState,
    Step,
    StepKey,
    StepKind,
    User,
    UserId,
)
from ci_platform.ports import Clock, RunFilter, RunPage, Store
from ci_platform.ports.hooks import Hook
from ci_platform.ports.hosting import Commit
from ci_platform.ports.housekeeping import WorkerRecord
from ci_platform.ports.identity import Token
from ci_platform.ports.mirroring import Mirror, MirrorStore
from ci_platform.ports.repositories import Repositories, Source
from ci_platform.queries.explain import (
    Again,
    CodeChange,
    QueueView,
    Stuck,
    again,
    as_queued,
    code_changes,
    command_queues,
    queue_view,
    stuck,
)
from ci_platform.queries.home import newly_failing
from ci_platform.queries.logs import LogInfo, StepLogs
from ci_platform.shell import Artifact, Artifacts

ACTIVE = (RunState.QUEUED, RunState.RUNNING)
FINISHED = tuple(sorted(TERMINAL_STATES))
HOME_MAX = 20  # rows of each list of the home page
HOME_REPOSITORIES = 100
FINISHED_SCAN = 100  # finished runs looked at for what newly fails
LIST_MAX = 200
CHILDREN_SHOWN = 100
JOURNAL_MAX = 5_000


@dataclass(frozen=True, slots=True)
class ApprovalView:
    approval: Approval
    run: Run
    repository: Repository
    may_answer: bool  # this actor, now
    answered: str | None  # what this actor has answered: approve, reject
    step: Step | None = None  # on the page of its run


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
    mirror: Mirror | None = None
    may_sync: bool = False


@dataclass(frozen=True, slots=True)
class Relative:
    """A run that started this one, or that it started."""

    run: Run
    step: str  # of the parent, such as run:deploy


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
    queue: QueueView | None = None  # of a queued run
    parent: Relative | None = None
    children: Sequence[Relative] = ()  # in order of creation, at most CHILDREN_SHOWN
    artifacts: Sequence[Artifact] = ()
    again: Again | None = None  # the run that this one does again
    changes: Sequence[CodeChange] = ()  # of its code, while it ran
    queues: Mapping[StepKey, QueueView] = field(default_factory=dict)  # of its queued commands
    stuck: Sequence[Stuck] = ()  # those that no worker can take
    rollback: Rollback | None = None  # of a failed or cancelled run that has steps to undo


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries of a journal are asked for. Nothing named: all."""

    kinds: frozenset[EntryKind] = frozenset()
    steps: frozenset[StepKey] = frozenset()

    def wants(self, entry: Entry) -> bool:
        return (not self.kinds or entry.kind in self.kinds) and (
            not self.steps or entry.key in self.steps
        )


@dataclass(frozen=True, slots=True)
class EntryPage:
    entries: Sequence[Entry]
    cursor: int  # of the last entry that was looked at
    ended: bool  # none follows, now or later


@dataclass(frozen=True, slots=True)
class WorkerView:
    worker: str
    host: str
    alive: bool  # False: it has missed its heartbeats
    runs: int  # leased now
    operations: int  # commands, likewise
    labels: Sequence[str]
    capacity: int  # commands at once
    draining: bool  # it takes nothing new, and ends when what it does has ended
    started_ms: int
    seen_ms: int  # its last heartbeat


@dataclass(frozen=True, slots=True)
class SystemView:
    counts: Mapping[RunState, int]  # of runs that are not finished
    due: int  # queued runs: the depth of the queue
    oldest_due_ms: int | None
    next_ready_ms: int | None
    workers: Sequence[WorkerView]  # as they show themselves by their heartbeats
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
    kept: Artifacts | None = None  # contents of artifacts; none where no command runs
    mirrors: MirrorStore | None = None

    def home(self, actor: Actor) -> Home:
        """What needs this actor."""
        _signed_in(actor)
        ids = readable(actor)
        running = self._list(ids, states=ACTIVE, limit=HOME_MAX)
        finished = self._list(ids, states=FINISHED, limit=FINISHED_SCAN)
        runs = [*running, *finished]
        rows = self._rows(runs)
        failing = newly_failing(finished)
        return Home(
            approvals=[one for one in self.approvals(actor) if one.may_answer],
            running=[rows[run.id] for run in running if run.id in rows],
            finished=[rows[run.id] for run in finished[:HOME_MAX] if run.id in rows],
            failing=[rows[run.id] for run in failing[:HOME_MAX] if run.id in rows],
            repositories=self.repository_list(actor, limit=HOME_REPOSITORIES),
            may_create=may(actor, Action.CREATE_REPOSITORY),
        )

    def repository_list(
        self, actor: Actor, *, after: str = "", limit: int = 100
    ) -> Sequence[Repository]:
        """The repositories the actor sees, by full name, those after `after`."""
        _signed_in(actor)
        limit = max(1, min(limit, LIST_MAX))
        return self.repositories.list(after=after, limit=limit, among=readable(actor))

    def repository(self, actor: Actor, owner: str, name: str) -> Repository:
        _signed_in(actor)
        found = self.repositories.get(owner, name)
        authorise(actor, Action.READ_REPOSITORY, found.id)
        return found

    def repository_page(
        self, actor: Actor, owner: str, name: str, *, which: RunFilter, cursor: str | None = None
    ) -> RepositoryView:
        """`which.repository_ids` is ignored: it is this repository."""
        repository = self.repository(actor, owner, name)
        branches = self.repositories.branches(repository.id)
        head = self.source.resolve(repository.id, f"refs/heads/{repository.default_branch}")
        described = self._described(repository.id, head)
        gates = self.store.approvals.open([repository.id])
        return RepositoryView(
            repository=repository,
            role=role_in(actor, repository.id) or Role.READER,
            branches=branches,
            head=self._commit(repository.id, head) if head else None,
            has_pipeline=head is not None and self.source.has_pipeline(repository.id, head),
            pipelines=[pipeline.name for pipeline in described.pipelines],
            runs=self.store.runs.list(
                replace(which, repository_ids=[repository.id]), cursor=cursor
            ),
            approvals=self._gates(actor, gates),
            may_start=may(actor, Action.START_RUN, repository.id),
            may_configure=may(actor, Action.CONFIGURE_REPOSITORY, repository.id),
            described=described,
            mirror=None if self.mirrors is None else self.mirrors.get(repository.id),
            may_sync=may(actor, Action.WRITE_REPOSITORY, repository.id),
        )

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
        """Runs of one repository, newest first."""
        repository = self.repository(actor, owner, name)
        which = replace(which, repository_ids=[repository.id])
        return self.store.runs.list(which, cursor=cursor, limit=max(1, min(limit, LIST_MAX)))

    def run(self, actor: Actor, run_id: RunId) -> Run:
        """The row alone: cheap, for polling and live streams."""
        _signed_in(actor)
        try:
            found = self.store.runs.get(run_id)
            authorise(actor, Action.READ_REPOSITORY, found.repository_id)
        except NotFound:
            raise RunNotFound() from None
        return found

    def queued(self, actor: Actor, run_id: RunId) -> Mapping[StepKey, int]:
        """Its commands that no worker has taken, and how many come before each: cheap, too."""
        self.run(actor, run_id)
        return self.store.operations.queued(run_id)

    def run_by_number(self, actor: Actor, owner: str, name: str, number: int) -> Run:
        return self.store.runs.by_number(self.repository(actor, owner, name).id, number)

    def run_page(self, actor: Actor, run_id: RunId) -> RunView:
        """A run with everything its page shows, folded from its journal."""
        run = self.run(actor, run_id)
        entries = self.store.runs.journal(run_id)
        repository = self.repositories.by_id(run.repository_id)
        view = fold(run, entries)
        queues = self._queues(view)
        told = as_queued(steps(view), queues)
        return RunView(
            run=run,
            repository=repository,
            steps=told,
            rollback=rollback(view),
            again=again(entries[0].data),
            changes=code_changes(entries),
            queues=queues,
            stuck=stuck(queues),
            parent=self._parent(run_id),
            children=self._children(run_id),
            queue=self._queue(run),
            approvals=self._gates_of(actor, run_id, told),
            logs=StepLogs(self.store).infos(run_id, told),
            artifacts=artifacts(view),
            commit=self._commit(run.repository_id, run.commit),
            params=run.payload.get("params"),
            may_change=may(actor, Action.CHANGE_RUN, run.repository_id),
            may_delete=may(actor, Action.DELETE_RUN, run.repository_id),
            pause_requested_by=_last_actor(entries, EntryKind.PAUSE_REQUESTED),
            cancelled_by=_last_actor(entries, EntryKind.CANCEL_REQUESTED),
        )

    def artifacts(self, actor: Actor, run_id: RunId) -> list[Artifact]:
        """The files that a run's commands kept, in the order their steps started."""
        return artifacts(fold(self.run(actor, run_id), self.store.runs.journal(run_id)))

    def artifact(
        self, actor: Actor, run_id: RunId, sha256: str
    ) -> tuple[Artifact, Iterator[bytes]]:
        """A file that a run kept, and its content. Raises NotFound."""
        found = next((one for one in self.artifacts(actor, run_id) if one.sha256 == sha256), None)
        if found is None or self.kept is None:
            raise NotFound(f"run {run_id} kept no file with the SHA-256 {sha256[:64]}")
        return found, self.kept.read(sha256)

    def journal(
        self, actor: Actor, run_id: RunId, *, after: int = 0, limit: int = 1000
    ) -> Sequence[Entry]:
        self.run(actor, run_id)
        limit = max(1, min(limit, JOURNAL_MAX))
        entries = self.store.runs.journal(run_id, after=after, limit=limit)
        return [shown(entry) for entry in entries]

    def entries(
        self, actor: Actor, run_id: RunId, which: EntryFilter, *, after: int = 0, limit: int = 1000
    ) -> EntryPage:
        """Those of the next `limit` entries that are asked for."""
        run = self.run(actor, run_id)  # first: what it knows of, the journal has
        looked = self.journal(actor, run_id, after=after, limit=limit)
        cursor = looked[-1].seq if looked else after
        found = [entry for entry in looked if which.wants(entry)]
        return EntryPage(found, cursor, run.state.terminal and cursor >= run.last_seq)

    def log(
        self, actor: Actor, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000
    ) -> list[LogLine]:
        """Lines of a step (`$run`, or `sh:build#2`) with numbers above `after`."""
        self.run(actor, run_id)
        return StepLogs(self.store).read(run_id, step, after=after, limit=limit)

    def log_tail(
        self, actor: Actor, run_id: RunId, step: str, *, limit: int = 1000
    ) -> list[LogLine]:
        self.run(actor, run_id)
        return StepLogs(self.store).tail(run_id, step, limit=limit)

    def logs(self, actor: Actor, run_id: RunId) -> list[LogInfo]:
        self.run(actor, run_id)
        return StepLogs(self.store).infos(run_id)

    def approvals(self, actor: Actor) -> list[ApprovalView]:
        """Open gates of all repositories the actor sees, those it may answer first."""
        _signed_in(actor)
        gates = self._gates(actor, self.store.approvals.open(readable(actor)))
        return sorted(gates, key=lambda one: not one.may_answer)

    def approval(self, actor: Actor, run_id: RunId, name: str) -> ApprovalView:
        """One gate of a run by what people see: `deploy`, `deploy#2`."""
        self.run(actor, run_id)
        try:
            key = StepKey.parse(f"{StepKind.APPROVAL}:{name}")
        except ValueError:
            raise StepNotFound() from None
        gates = self._gates(actor, [self.store.approvals.get(run_id, key)])
        if not gates:
            raise StepNotFound()
        return gates[0]

    def system(self, actor: Actor) -> SystemView:
        authorise(actor, Action.READ_SYSTEM)
        now_ms = self.clock.now_ms()
        counts = self.store.runs.counts()
        return SystemView(
            counts=counts,
            due=counts.get(RunState.QUEUED, 0),
            oldest_due_ms=self.store.runs.due_since_ms(),
            next_ready_ms=self.store.runs.next_ready_ms(),
            workers=[_worker_view(one, now_ms) for one in self.store.workers.list()],
            approvals_open=len(self.store.approvals.open()),
            now_ms=now_ms,
        )

    def file(self, actor: Actor, owner: str, name: str, path: str, ref: str | None) -> FileView:
        repository, commit = self._at(actor, owner, name, ref)
        return FileView(path, commit, self.repositories.read_file(repository.id, commit, path))

    def tree(self, actor: Actor, owner: str, name: str, path: str, ref: str | None) -> TreeView:
        repository, commit = self._at(actor, owner, name, ref)
        return TreeView(path, commit, self.repositories.list_tree(repository.id, commit, path))

    def tokens(self, actor: Actor) -> list[Token]:
        """One's own; an admin's answer has all of them."""
        authorise(actor, Action.MANAGE_TOKENS)
        return self.store.identity.tokens(None if actor.admin else UserId(actor.id))

    def users(self, actor: Actor) -> list[User]:
        authorise(actor, Action.MANAGE_PEOPLE)
        return self.store.identity.users()

    def hooks(self, actor: Actor, owner: str, name: str) -> list[Hook]:
        repository = self.repository(actor, owner, name)
        authorise(actor, Action.CONFIGURE_REPOSITORY, repository.id)
        return self.store.hooks.of_repository(repository.id)

    def audit(self, actor: Actor, *, limit: int = 100) -> Sequence[Mapping[str, Json]]:
        authorise(actor, Action.MANAGE_PEOPLE)
        return self.store.audit.list(limit=max(1, min(limit, LIST_MAX)))

    def names(self, ids: Iterable[RepositoryId]) -> Mapping[RepositoryId, Repository]:
        """The repositories behind ids, without those that are gone. Asks no one's leave."""
        return {one.id: one for one in self.repositories.by_ids(ids)}

    def _at(self, actor: Actor, owner: str, name: str, ref: str | None) -> tuple[Repository, str]:
        """A repository, and the commit of a ref of it; the default branch if none is named."""
        repository = self.repository(actor, owner, name)
        wanted = ref or f"refs/heads/{repository.default_branch}"
        commit = self.source.resolve(repository.id, wanted)
        if commit is None:
            raise NotFound(f"{repository.full_name} has no {wanted[:256]!r}")
        return repository, commit

    def _list(
        self, ids: Sequence[RepositoryId] | None, *, states: Sequence[RunState], limit: int
    ) -> Sequence[Run]:
        if ids is not None and not ids:
            return []
        return self.store.runs.list(RunFilter(repository_ids=ids, states=states), limit=limit).runs

    def _queue(self, run: Run) -> QueueView | None:
        if run.state is not RunState.QUEUED:
            return None
        standing = self.store.runs.standing(run.id)
        return None if standing is None else queue_view(run, standing, self._workers())

    def _queues(self, view: Folded) -> dict[StepKey, QueueView]:
        """Where the run's commands stand that no worker has taken."""
        if not any(key.kind is StepKind.SH for key in view.open):
            return {}
        ahead = self.store.operations.queued(view.run.id)
        return command_queues(steps(view), ahead, self._workers()) if ahead else {}

    def _workers(self) -> list[WorkerRecord]:
        """Those that are there and take what is new."""
        now_ms, known = self.clock.now_ms(), self.store.workers.list()
        return [one for one in known if one.alive(now_ms) and not one.draining]

    def _rows(self, runs: Iterable[Run]) -> Mapping[RunId, RunRow]:
        runs = list(runs)
        names = self.names(run.repository_id for run in runs)
        return {
            run.id: RunRow(run, names[run.repository_id])
            for run in runs
            if run.repository_id in names
        }

    def _gates(self, actor: Actor, gates: Sequence[Approval]) -> list[ApprovalView]:
        names = self.names(gate.repository_id for gate in gates)
        found = []
        for gate in gates:
            with suppress(RunNotFound, KeyError):  # deleted while we looked
                run = self.store.runs.get(gate.run_id)
                repository = names[gate.repository_id]
                found.append(_approval_view(actor, gate, run, repository))
        return found

    def _gates_of(self, actor: Actor, run_id: RunId, told: Sequence[Step]) -> list[ApprovalView]:
        by_key = {step.key: step for step in told}
        gates = self._gates(actor, self.store.approvals.of_run(run_id))
        return [replace(gate, step=by_key.get(gate.approval.key)) for gate in gates]

    def _parent(self, run_id: RunId) -> Relative | None:
        link = self.store.family.parent(run_id)
        if link is not None:
            with suppress(RunNotFound):  # deleted while we looked
                return Relative(self.store.runs.get(RunId(link.kin.parent_id)), link.kin.step)
        return None

    def _children(self, run_id: RunId) -> list[Relative]:
        found = []
        for link in self.store.family.children(run_id)[:CHILDREN_SHOWN]:
            with suppress(RunNotFound):
                child = self.store.runs.get(RunId(link.child_id))
                found.append(Relative(child, link.kin.step))
        return found

    def _commit(self, repository_id: RepositoryId, sha: str) -> Commit | None:
        try:
            return self.source.commit(repository_id, sha)
        except NotFound:
            return None

    def _described(self, repository_id: RepositoryId, head: str | None) -> Description:
        """What the file at the head said of itself when it was pushed; asks no sandbox."""
        if head is None:
            return Description()
        try:
            source = self.source.load(repository_id, head)
        except SourceError as error:
            if not self.source.has_pipeline(repository_id, head):
                return Description()
            return Description(error=ErrorInfo("SourceError", error.detail))
        return self.store.descriptions.get(source.digest) or Description()


def _signed_in(actor: Actor) -> None:
    if actor.kind == "anonymous":
        raise NotSignedIn()


def _approval_view(actor: Actor, gate: Approval, run: Run, repository: Repository) -> ApprovalView:
    answers = [one.decision for one in gate.decisions if one.user_id == actor.id]
    answered = answers[0] if answers else None
    can = gate.outcome is None and answered is None and may_decide(actor, gate, run)
    return ApprovalView(gate, run, repository, may_answer=can, answered=answered)


def _last_actor(entries: Sequence[Entry], kind: EntryKind) -> str | None:
    for entry in reversed(entries):
        if entry.kind is kind:
            return str(entry.data.get("actor") or "") or None
    return None


def _worker_view(record: WorkerRecord, now_ms: int) -> WorkerView:
    return WorkerView(
        worker=record.id,
        host=record.host,
        alive=record.alive(now_ms),
        runs=record.runs,
        operations=record.operations,
        labels=record.labels,
        capacity=record.capacity,
        draining=record.draining,
        started_ms=record.started_ms,
        seen_ms=record.seen_ms,
    )
