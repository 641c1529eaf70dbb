"""What a push starts: one command for git, the API's commits and webhooks.

Safe to tell twice: a run's id follows from the push, the ref and the pipeline. A push that could
not be finished stays in the git store's outbox, and `dispatch_pending` finishes it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

from ci_platform.commands.parts import Parts, check_json
from ci_platform.commands.schedules import Schedules
from ci_platform.commands.starting import (
    PIPELINE_FILE,
    create,
    described,
    load_failure,
    new_run,
)
from ci_platform.commands.telling import Telling
from ci_platform.commands.triggers import BRANCH, TAG, matching_trigger, skip_reason
from ci_platform.engine.ids import derived_id
from ci_platform.errors import InvalidRequest, NotFound, RepositoryNotFound, SourceError
from ci_platform.model import (
    SYSTEM,
    ErrorInfo,
    Json,
    NewRun,
    PipelineDescription,
    Push,
    RefUpdate,
    Repository,
    Run,
    RunId,
)
from ci_platform.ports.hosting import Commit

SAY = "sluice: "
MESSAGE_CHARS = 10_000  # of the commit message in the author's event
OUTBOX_MS = 24 * 3600 * 1000  # a push that cannot be dispatched for so long is given up

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Moved:
    """One ref of a push, with what was found at its new commit."""

    push: Push
    repository: Repository
    update: RefUpdate
    commit: Commit

    @property
    def trigger(self) -> str:
        return "tag" if self.update.ref.startswith(TAG) else "push"


@dataclass(frozen=True, slots=True)
class Pushes:
    parts: Parts

    def received(self, push: Push) -> list[str]:
        """Start what the push starts; returns lines for the pusher. Safe to tell twice."""
        repository = self.parts.repositories.by_id(push.repository_id)
        Telling(self.parts).pushed(push, repository)
        lines: list[str] = []
        moved = [one for one in push.updates if one.after and one.ref.startswith((BRANCH, TAG))]
        refs_max = self.parts.limits.refs_per_push
        for update in moved[:refs_max]:
            lines += self._ref_moved(push, repository, update)
            if update.ref == BRANCH + repository.default_branch:
                lines += [SAY + problem for problem in Schedules(self.parts).sync(repository)]
        if len(moved) > refs_max:
            lines.append(f"{SAY}{len(moved)} refs moved; only the first {refs_max} start runs")
        return lines

    def dispatch_pending(self) -> int:
        """Finish pushes of the outbox that nobody finished. Returns how many."""
        finished = 0
        for push in self.parts.outbox.pending():
            try:
                self.received(push)
            except RepositoryNotFound:
                log.info("push %s: its repository is gone", push.id)
            except Exception:
                # One push that cannot be dispatched must not hold up those behind it.
                log.exception("push %s could not be dispatched", push.id)
                if push.at_ms > self.parts.clock.now_ms() - OUTBOX_MS:
                    continue
                self.parts.audit(SYSTEM, "push given up", push.id, repository=push.repository_id)
            self.parts.outbox.done(push.id)
            finished += 1
        return finished

    def _ref_moved(self, push: Push, repository: Repository, update: RefUpdate) -> list[str]:
        assert update.after is not None
        try:
            commit = self.parts.source.commit(repository.id, update.after)
        except NotFound:
            return [f"{SAY}{update.ref} points at no commit, nothing to run"]
        moved = _Moved(push, repository, update, commit)
        if moved.trigger == "push":
            reason = skip_reason(commit.message, push.options)
            if reason is not None:
                return [f"{SAY}skipped: {reason}"]
        try:
            source = self.parts.source.load(repository.id, commit.sha)
        except SourceError as error:
            if error.missing:
                return [f"{SAY}{error.detail}, nothing to run"]
            return self._not_loaded(moved, ErrorInfo("SourceError", error.detail))
        description = described(self.parts, source)
        if description.error is not None:
            return self._not_loaded(moved, description.error)
        return self._started(moved, description.pipelines)

    def _not_loaded(self, moved: _Moved, error: ErrorInfo) -> list[str]:
        """Say so to the pusher, and leave a failed run for everybody else."""
        broken = PipelineDescription(name=PIPELINE_FILE, triggers=())
        new = self._new_run(moved, broken, failed=error)
        run = self._create([new])[0]
        what = error.message if error.type == "SourceError" else load_failure(error)
        return [f"{SAY}{what}", f"{SAY}run #{run.number} failed, {self.parts.run_url(run.id)}"]

    def _started(self, moved: _Moved, pipelines: Sequence[PipelineDescription]) -> list[str]:
        @cache
        def changed() -> Sequence[str]:
            return self._changed_paths(moved)

        ref = moved.update.ref
        new = [
            self._new_run(moved, pipeline)
            for pipeline in pipelines
            if matching_trigger(pipeline, ref, changed) is not None
        ]
        if not new:
            names = ", ".join(pipeline.name for pipeline in pipelines) or "none"
            return [f"{SAY}no pipeline matches {_short(ref)} (declared: {names})"]
        several = len(pipelines) > 1
        return [
            f"{SAY}run #{run.number} started, {self.parts.run_url(run.id)}"
            + (f" ({run.pipeline})" if several else "")
            for run in self._create(new)
        ]

    def _create(self, new: Sequence[NewRun]) -> list[Run]:
        created = {run.id: run for run in create(self.parts, new, skip_existing=True)}
        return [created.get(one.id) or self.parts.store.runs.get(one.id) for one in new]

    def _changed_paths(self, moved: _Moved) -> Sequence[str]:
        """Against what the ref was; a new ref against the default branch."""
        repository, before = moved.repository, moved.update.before
        if before is None:
            default = BRANCH + repository.default_branch
            if moved.update.ref != default:
                before = self.parts.source.resolve(repository.id, default)
        return self.parts.source.changed_paths(repository.id, before, moved.commit.sha)

    def _new_run(
        self, moved: _Moved, pipeline: PipelineDescription, *, failed: ErrorInfo | None = None
    ) -> NewRun:
        push, update = moved.push, moved.update
        run_id = derived_id("run", push.at_ms, push.id, update.ref, pipeline.name)
        new = new_run(
            RunId(run_id),
            moved.repository.id,
            pipeline,
            ref=update.ref,
            commit=moved.commit.sha,
            params={},
            resume=None,
            trigger=moved.trigger,
            event={
                "before": update.before,
                "message": moved.commit.message[:MESSAGE_CHARS],
                "actor": push.actor,
                "payload": self._payload(push, update),
            },
            actor=push.actor,
            actor_id=push.actor_id,
            trusted=push.trusted,
        )
        return new if failed is None else replace(new, failed=failed)

    def _payload(self, push: Push, update: RefUpdate) -> Mapping[str, Json]:
        """The raw trigger: a webhook's body if it is not too large, else what moved."""
        if push.payload:
            try:
                check_json(push.payload, field="payload", bytes_max=self.parts.limits.value_bytes)
                return push.payload
            except InvalidRequest as error:
                log.info("push %s: its payload is left out: %s", push.id, error.detail)
        return {**asdict(update), "pusher": push.actor, "options": list(push.options)}


def _short(ref: str) -> str:
    return ref.removeprefix(BRANCH) if ref.startswith(BRANCH) else ref
