"""Commands on runs: start, pause, resume, cancel, restart, delete, send an event."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from ci_platform import envelope
from ci_platform.commands.changing import Decide, change
from ci_platform.commands.family import Family
from ci_platform.commands.inputs import check_inputs
from ci_platform.commands.parts import Parts, check_json, check_run_id, check_text
from ci_platform.commands.quota import check_quota
from ci_platform.commands.starting import (
    PIPELINE_FILE,
    chosen,
    create,
    described,
    let_go,
    new_run,
)
from ci_platform.commands.superseding import supersede
from ci_platform.commands.triggers import BRANCH, TAG
from ci_platform.engine import outside
from ci_platform.engine.fold import fold
from ci_platform.engine.ids import new_id
from ci_platform.engine.limits import Limits as EngineLimits
from ci_platform.engine.sharing import shared
from ci_platform.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    RequestError,
    RunNotFound,
    SourceError,
    StepNotFound,
)
from ci_platform.identity import Action
from ci_platform.model import (
    Actor,
    AuditNote,
    Json,
    NewRun,
    PipelineDescription,
    Repository,
    RepositoryId,
    Resume,
    Run,
    RunId,
    Shared,
    StepKey,
)

NEWEST = "newest"  # for a commit: the one that the run's ref is at now
MESSAGE_CHARS = 10_000  # of the commit message in the author's event
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class StartRun:
    """What to run. Left out: the only pipeline of the file, the default branch, its newest
    commit, no params, an id of ours, the policy of the pipeline."""

    pipeline: str | None = None
    ref: str | None = None  # a branch, a tag or a full ref
    commit: str | None = None
    params: Json = field(default_factory=dict)
    id: str | None = None
    resume: str | None = None
    trigger: str = "manual"
    priority: int = 0  # 0 to 100: higher ones of the repository go first


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of one run of a batch."""

    id: str
    problem: RequestError | None  # None: it is gone

    def told(self) -> dict[str, Json]:
        """As every door says it."""
        problem = self.problem
        return {
            "id": self.id,
            "deleted": problem is None,
            "status": 204 if problem is None else problem.status,
            "detail": None if problem is None else problem.detail,
        }


@dataclass(frozen=True, slots=True)
class _Target:
    """What runs: found out from what was asked for."""

    ref: str
    commit: str
    message: str
    pipeline: PipelineDescription


@dataclass(frozen=True, slots=True)
class Runs:
    parts: Parts

    def start(self, actor: Actor, owner: str, name: str, what: StartRun) -> Run:
        """Start a run. Raises RunExists naming the id, InvalidRequest naming the field."""
        repository = self.parts.repository(actor, Action.START_RUN, owner, name)
        check_quota(self.parts, repository)
        new = self._prepare(actor, repository, [what])
        return create(self.parts, new, notes=self._started(actor, repository, new))[0]

    def start_many(
        self, actor: Actor, owner: str, name: str, what: Sequence[StartRun]
    ) -> list[Run]:
        """Start up to 100 runs, all or none; ids that exist are left out."""
        repository = self.parts.repository(actor, Action.START_RUN, owner, name)
        runs_max = self.parts.limits.batch_runs
        if not 1 <= len(what) <= runs_max:
            raise InvalidRequest(
                f"a batch starts 1 to {runs_max} runs, this has {len(what)}", field="runs"
            )
        check_quota(self.parts, repository, len(what))
        new = list({one.id: one for one in self._prepare(actor, repository, what)}.values())
        notes = self._started(actor, repository, new)
        return create(self.parts, new, skip_existing=True, notes=notes)

    def _started(
        self, actor: Actor, repository: Repository, new: Sequence[NewRun]
    ) -> list[AuditNote]:
        name = repository.full_name
        return [self.parts.note(actor, "run started", one.id, repository=name) for one in new]

    def send_event(
        self, actor: Actor, run_id: RunId, type: str, payload: Json, *, id: str | None = None
    ) -> Run:
        """Give a run an event; it is kept until a wait for its type takes it.

        An `id` makes it safe to repeat: a run takes an event of that id once. Raises Conflict when
        that was another event.
        """
        if id is not None:
            check_text(id, field="id")
        limits = EngineLimits(value_bytes=self.parts.limits.value_bytes)
        check_json(payload, field="payload", bytes_max=limits.value_bytes)
        return self._change(
            actor,
            run_id,
            lambda view, now_ms: outside.event_sent(
                view, type, payload, actor.name, now_ms, limits=limits, id=id
            ),
            f"event {type} sent",
        )

    def pause(self, actor: Actor, run_id: RunId) -> Run:
        return self._change(
            actor,
            run_id,
            lambda view, now_ms: outside.pause(view, actor.name, now_ms),
            "run paused",
        )

    def resume(self, actor: Actor, run_id: RunId) -> Run:
        return self._change(
            actor,
            run_id,
            lambda view, now_ms: outside.resume(view, actor.name, now_ms),
            "run resumed",
        )

    def cancel(self, actor: Actor, run_id: RunId, *, rollback: bool = False) -> Run:
        return self._change(
            actor,
            run_id,
            lambda view, now_ms: outside.cancel(view, actor.name, now_ms, rollback=rollback),
            "run cancelled",
        )

    def restart(
        self,
        actor: Actor,
        run_id: RunId,
        *,
        from_step: StepKey | None = None,
        commit: str | None = None,
        id: str | None = None,
    ) -> Run:
        """Run a finished run again: a new run with the same params, at the same commit, or the
        newest one if it follows its ref. Returns the new one.

        From a step on: what had ended before it is shared, it and what came after is done again.
        `commit` is another one, or NEWEST. An `id` makes it safe to repeat: raises RunExists.
        """
        run = self.parts.run(actor, Action.CHANGE_RUN, run_id)
        if not run.state.terminal:
            raise Conflict(f"{run_id} is {run.state}; only a finished run can be restarted")
        check_quota(self.parts, self.parts.repositories.by_id(run.repository_id))
        _, params = envelope.unwrap(run.payload)
        if commit == NEWEST:
            commit = self._commit(run.repository_id, run.ref, None)
        elif commit is None and run.resume is Resume.LATEST:
            commit = self.parts.source.resolve(run.repository_id, run.ref)
        commit = self._commit(run.repository_id, run.ref, commit or run.commit)
        loaded = run.pipeline != PIPELINE_FILE  # else the only one of a file that now loads
        new = new_run(
            RunId(new_id("run", self.parts.clock.now_ms())) if id is None else check_run_id(id),
            run.repository_id,
            self._pipeline(run.repository_id, commit, run.pipeline if loaded else None),
            ref=run.ref,
            commit=commit,
            params=params,
            resume=run.resume,
            trigger=run.trigger,
            event=run.event,
            actor=actor.name,
            actor_id=actor.id,
            trusted=run.trusted,
            priority=run.place.priority,
        )
        new = replace(new, shared=self._shared(run, from_step, commit))
        note = self.parts.note(actor, "run restarted", run_id, new_run=new.id, commit=commit)
        return create(self.parts, [new], notes=[note])[0]

    def _shared(self, run: Run, step: StepKey | None, commit: str) -> Shared:
        if step is None:
            return Shared(run.id, run.number, None)
        entries = self.parts.store.runs.journal(run.id)
        try:
            kept = shared(fold(run, entries), entries, step, commit)
        except StepNotFound as error:
            raise InvalidRequest(error.detail, field="from") from None
        keys = {entry.key for entry in kept}
        gates = [gate for gate in self.parts.store.approvals.of_run(run.id) if gate.key in keys]
        return Shared(run.id, run.number, str(step), kept, gates)

    def delete(self, actor: Actor, run_id: RunId) -> None:
        """Remove a finished run with everything of it."""
        run = self.parts.run(actor, Action.DELETE_RUN, run_id)
        if run.state.terminal:
            Family(self.parts).tell(run)
        note = self.parts.note(actor, "run deleted", run_id, number=run.number)
        self.parts.store.runs.delete(run_id, note=note)
        let_go(self.parts, run.repository_id, run.commit)

    def delete_many(self, actor: Actor, owner: str, name: str, ids: Sequence[str]) -> list[Deleted]:
        """Remove finished runs of a repository, each on its own; says in order what became of
        them. A name that is there twice is gone the second time."""
        repository = self.parts.repository(actor, Action.DELETE_RUN, owner, name)
        runs_max = self.parts.limits.batch_runs
        if not 1 <= len(ids) <= runs_max:
            raise InvalidRequest(
                f"a batch deletes 1 to {runs_max} runs, this has {len(ids)}", field="ids"
            )
        return [Deleted(one, self._problem_deleting(actor, repository, one)) for one in ids]

    def _problem_deleting(
        self, actor: Actor, repository: Repository, run_id: str
    ) -> RequestError | None:
        try:
            run = self.parts.run(actor, Action.DELETE_RUN, check_run_id(run_id))
            if run.repository_id != repository.id:
                raise RunNotFound()
            self.delete(actor, run.id)
        except RequestError as error:
            return error
        return None

    def supersede_pending(self) -> int:
        """End runs that newer ones of their groups have made needless. Returns how many."""
        return supersede(self.parts)

    def _change(self, actor: Actor, run_id: RunId, decide: Decide, action: str) -> Run:
        self.parts.run(actor, Action.CHANGE_RUN, run_id)
        return change(self.parts, run_id, decide, note=self.parts.note(actor, action, run_id))[0]

    def _prepare(
        self, actor: Actor, repository: Repository, what: Sequence[StartRun]
    ) -> list[NewRun]:
        """Check all of them; what several have in common is looked up once."""

        @cache
        def target(ref: str | None, commit: str | None, pipeline: str | None) -> _Target:
            return self._target(repository, ref, commit, pipeline)

        return [
            self._new_run(actor, repository, one, target(one.ref, one.commit, one.pipeline))
            for one in what
        ]

    def _target(
        self, repository: Repository, ref: str | None, commit: str | None, pipeline: str | None
    ) -> _Target:
        full_ref = self._ref(repository, ref)
        sha = self._commit(repository.id, full_ref, commit)
        message = self.parts.source.commit(repository.id, sha).message
        return _Target(full_ref, sha, message, self._pipeline(repository.id, sha, pipeline))

    def _new_run(
        self, actor: Actor, repository: Repository, what: StartRun, target: _Target
    ) -> NewRun:
        value_bytes = self.parts.limits.value_bytes
        params = check_json(what.params, field="params", bytes_max=value_bytes)
        now_ms = self.parts.clock.now_ms()
        return new_run(
            RunId(new_id("run", now_ms)) if what.id is None else check_run_id(what.id),
            repository.id,
            target.pipeline,
            ref=target.ref,
            commit=target.commit,
            params=check_inputs(target.pipeline, params),
            resume=_policy(what.resume),
            trigger=what.trigger,
            event={
                "before": None,
                "message": target.message[:MESSAGE_CHARS],
                "actor": actor.name,
                "payload": {},
            },
            actor=actor.name,
            actor_id=actor.id,
            priority=what.priority,
        )

    def _ref(self, repository: Repository, ref: str | None) -> str:
        """The full name of a branch or tag."""
        if ref is None:
            return BRANCH + repository.default_branch
        check_text(ref, field="ref")
        if ref.startswith((BRANCH, TAG)):
            return ref
        for prefix in (BRANCH, TAG):
            if self.parts.source.resolve(repository.id, prefix + ref) is not None:
                return prefix + ref
        raise InvalidRequest(f"there is no branch or tag {ref!r}", field="ref")

    def _commit(self, repository_id: RepositoryId, ref: str, commit: str | None) -> str:
        """The commit asked for, or the newest of the ref; it is there."""
        if commit is None:
            found = self.parts.source.resolve(repository_id, ref)
            if found is None:
                raise InvalidRequest(f"{ref} does not exist", field="ref")
            return found
        if not _SHA.fullmatch(commit):
            raise InvalidRequest("commit must be 40 lower-case hex digits", field="commit")
        try:
            return self.parts.source.commit(repository_id, commit).sha
        except NotFound:
            problem = f"commit {commit} is not in the repository"
            raise InvalidRequest(problem, field="commit") from None

    def _pipeline(
        self, repository_id: RepositoryId, commit: str, name: str | None
    ) -> PipelineDescription:
        try:
            source = self.parts.source.load(repository_id, commit)
        except SourceError as error:
            raise InvalidRequest(error.detail, field="ref") from error
        return chosen(described(self.parts, source), name)


def _policy(resume: str | None) -> Resume | None:
    if resume is None:
        return None
    try:
        return Resume(resume)
    except ValueError:
        raise InvalidRequest("resume must be pinned or latest", field="resume") from None
