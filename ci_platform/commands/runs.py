"""Commands on runs: start, pause, resume, cancel, restart, delete, send an event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ci_platform.commands.parts import Parts
from ci_platform.model import Actor, Json, Run, RunId, StepKey


@dataclass(frozen=True, slots=True)
class StartRun:
    """What to run. Left out: the only pipeline of the file, the default branch, its newest
    commit, no params, an id of ours, the policy of the pipeline."""

    pipeline: str | None = None
    ref: str | None = None  # a branch, a tag or a full ref
    commit: str | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    id: str | None = None
    resume: str | None = None
    trigger: str = "manual"


@dataclass(frozen=True, slots=True)
class Runs:
    parts: Parts

    def start(self, actor: Actor, owner: str, name: str, what: StartRun) -> Run:
        """Start a run. Raises RunExists naming the id, InvalidRequest naming the field."""
        raise NotImplementedError

    def start_many(
        self, actor: Actor, owner: str, name: str, what: Sequence[StartRun]
    ) -> list[Run]:
        """Start up to 100 runs, all or none; ids that exist are left out."""
        raise NotImplementedError

    def send_event(self, actor: Actor, run_id: RunId, type: str, payload: Json) -> Run:
        raise NotImplementedError

    def pause(self, actor: Actor, run_id: RunId) -> Run:
        raise NotImplementedError

    def resume(self, actor: Actor, run_id: RunId) -> Run:
        raise NotImplementedError

    def cancel(self, actor: Actor, run_id: RunId, *, rollback: bool = False) -> Run:
        raise NotImplementedError

    def restart(
        self,
        actor: Actor,
        run_id: RunId,
        *,
        from_step: StepKey | None = None,
        commit: str | None = None,
    ) -> Run:
        """Run a finished run again: a new run with the same params. Returns the new one."""
        raise NotImplementedError

    def delete(self, actor: Actor, run_id: RunId) -> None:
        """Remove a finished run with everything of it."""
        raise NotImplementedError
