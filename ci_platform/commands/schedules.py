"""What `on_schedule` starts: the default branch's pipelines, at their times.

A push to the default branch says which schedules there are; each has a row with the time it is due
next. A time that was missed, because nothing ran then, is made up for once: the latest one. Safe to
do twice: a run's id follows from the schedule and its time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from ci_platform.commands.cron import last_ms, next_ms
from ci_platform.commands.parts import Parts
from ci_platform.commands.starting import create, described, new_run
from ci_platform.commands.triggers import BRANCH
from ci_platform.engine.ids import derived_id
from ci_platform.errors import InvalidRequest, RepositoryNotFound, SourceError
from ci_platform.model import (
    Description,
    PipelineDescription,
    Repository,
    RepositoryId,
    RunId,
)
from ci_platform.scheduling import Schedule

BATCH_MAX = 100  # schedules fired in one turn
AGAIN_MS = 60_000  # after one that could not be fired
ACTOR = "schedule"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedules:
    parts: Parts

    def sync(self, repository: Repository) -> list[str]:
        """Make the rows what the head of the default branch declares; returns what is wrong with
        it, for the pusher. A file that does not load changes nothing."""
        found = self._head(repository, ask_again=False)
        if found is None:
            return []
        problems: list[str] = []
        wanted = list(self._declared(repository, found[1], problems))
        self.parts.store.schedules.replace(repository.id, wanted)
        return problems

    def fire_due(self) -> int:
        """Start what is due. Returns how many schedules that was."""
        now_ms = self.parts.clock.now_ms()
        due = self.parts.store.schedules.due(now_ms, limit=BATCH_MAX)
        for schedule in due:
            try:
                self._fire(schedule, now_ms)
            except RepositoryNotFound:
                self.parts.store.schedules.replace(schedule.repository_id, [])
            except Exception:
                # One that cannot be fired must not hold up those behind it.
                log.exception("schedule %s of %s", schedule.cron, schedule.repository_id)
                self.parts.store.schedules.move(schedule, now_ms + AGAIN_MS)
        return len(due)

    def _fire(self, schedule: Schedule, now_ms: int) -> None:
        repository = self.parts.repositories.by_id(RepositoryId(schedule.repository_id))
        found = self._head(repository)
        pipeline = None if found is None else _scheduled(found[1], schedule)
        if found is None or pipeline is None:
            log.info("%s: nothing to run for schedule %s", repository.full_name, schedule.cron)
        else:
            self._start(repository, found[0], pipeline, schedule, now_ms)
        after_ms = next_ms(schedule.cron, schedule.timezone, now_ms)
        if after_ms is not None:
            self.parts.store.schedules.move(schedule, after_ms)
        if pipeline is None or after_ms is None:
            self.sync(repository)

    def _start(
        self,
        repository: Repository,
        commit: str,
        pipeline: PipelineDescription,
        schedule: Schedule,
        now_ms: int,
    ) -> None:
        at_ms = last_ms(schedule.cron, schedule.timezone, now_ms) or schedule.next_ms
        run_id = derived_id("run", at_ms, repository.id, *schedule.key)
        payload = {"cron": schedule.cron, "timezone": schedule.timezone, "scheduled_ms": at_ms}
        new = new_run(
            RunId(run_id),
            repository.id,
            pipeline,
            ref=BRANCH + repository.default_branch,
            commit=commit,
            params={},
            resume=None,
            trigger="schedule",
            event={
                "before": None,
                "message": self.parts.source.commit(repository.id, commit).message[:10_000],
                "actor": ACTOR,
                "payload": payload,
            },
            actor=ACTOR,
            actor_id=None,
        )
        create(self.parts, [new], skip_existing=True)

    def _head(
        self, repository: Repository, *, ask_again: bool = True
    ) -> tuple[str, Description] | None:
        """The newest commit of the default branch and what it declares; None if it does not load,
        or there is none. `ask_again`: also a file that has not loaded before."""
        commit = self.parts.source.resolve(repository.id, BRANCH + repository.default_branch)
        if commit is None:
            return None
        try:
            source = self.parts.source.load(repository.id, commit)
        except SourceError as error:
            # Where the file is gone, its schedules are, too.
            return (commit, Description()) if error.missing else None
        known = self.parts.store.descriptions.get(source.digest)
        description = known if known and not ask_again else described(self.parts, source)
        return None if description.error is not None else (commit, description)

    def _declared(
        self, repository: Repository, description: Description, problems: list[str]
    ) -> Iterator[Schedule]:
        now_ms = self.parts.clock.now_ms()
        for pipeline in description.pipelines:
            for trigger in pipeline.triggers:
                if trigger.kind != "schedule" or trigger.cron is None:
                    continue
                timezone = trigger.timezone or "UTC"
                try:
                    first_ms = next_ms(trigger.cron, timezone, now_ms)
                except InvalidRequest as error:
                    problems.append(f"on_schedule of {pipeline.name}: {error.detail}")
                    continue
                if first_ms is not None:
                    name = pipeline.name
                    yield Schedule(repository.id, name, trigger.cron, timezone, first_ms)


def _scheduled(description: Description, schedule: Schedule) -> PipelineDescription | None:
    """The pipeline that still declares this schedule."""
    for pipeline in description.pipelines:
        if pipeline.name == schedule.pipeline and any(
            (trigger.kind, trigger.cron, trigger.timezone or "UTC")
            == ("schedule", schedule.cron, schedule.timezone)
            for trigger in pipeline.triggers
        ):
            return pipeline
    return None
