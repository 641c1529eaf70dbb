"""What a run's answer tells beyond its steps: related runs, why it waits, how its code changed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ci_platform.model import Origin
from ci_platform.queries import Relative
from ci_platform.queries.explain import Again, CodeChange, QueueView, Stuck


class Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class RelativeAnswer(Told):
    """The run that started this one, or one that it started; `step` is the parent's."""

    id: str
    number: int
    state: str
    step: str

    @classmethod
    def of(cls, relative: Relative) -> RelativeAnswer:
        run = relative.run
        return cls(id=run.id, number=run.number, state=run.state, step=relative.step)


class OriginAnswer(Told):
    """A run that may be gone by now."""

    id: str
    number: int

    @classmethod
    def of(cls, origin: Origin | None) -> OriginAnswer | None:
        return None if origin is None else cls(id=origin.run_id, number=origin.number)


class AgainAnswer(Told):
    """The run that this one does again: from a step on, or all of it."""

    id: str
    number: int
    step: str | None

    @classmethod
    def of(cls, again: Again | None) -> AgainAnswer | None:
        if again is None:
            return None
        return cls(id=again.origin.run_id, number=again.origin.number, step=again.step)


class QueueAnswer(Told):
    """Where a queued run stands, or a queued command."""

    position: int  # 1,001: behind 1,000 or more
    waits_for: str  # group | repository | everyone | no_worker | worker
    reason: str

    @classmethod
    def of(cls, view: QueueView | None) -> QueueAnswer | None:
        if view is None:
            return None
        return cls(position=view.position, waits_for=view.waits_for, reason=view.reason)


class StuckAnswer(Told):
    """A command that no worker which is there can take."""

    step: str
    reason: str

    @classmethod
    def of(cls, one: Stuck) -> StuckAnswer:
        return cls(step=str(one.step), reason=one.reason)


class ChangeAnswer(Told):
    """A commit that the run came to, and how its steps differ from what had happened."""

    seq: int  # of the journal's entry
    at: str
    commit: str
    inserted: list[str]
    missing: list[str]
    error: str | None  # it did not work: the run stayed where it was

    @classmethod
    def of(cls, change: CodeChange, at: str) -> ChangeAnswer:
        error = change.error
        return cls(
            seq=change.seq,
            at=at,
            commit=change.commit,
            inserted=list(change.inserted),
            missing=list(change.missing),
            error=None if error is None else f"{error.type}: {error.message}",
        )
