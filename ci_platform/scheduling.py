"""The values of scheduling: a run's place in its group, what holds it back, how many may run.

Slots are never counted up or down: who has one follows from the rows of runs, so that none can be
lost. Used by model.py; the rules are in the store's `moves` and `slots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar

PRIORITY_MAX = 100

Named = TypeVar("Named")


class Hold(StrEnum):
    """Why a queued run is not offered to workers."""

    GROUP = "group"  # its concurrency group has no free slot
    LIMIT = "limit"  # its repository runs as many as it may


class OnNew(StrEnum):
    """What a new run does to the others of its group."""

    QUEUE = "queue"  # waits for its turn: every run is executed, in order of creation
    CANCEL_QUEUED = "cancel_queued"  # ends those that have not begun
    CANCEL_RUNNING = "cancel_running"  # ends all earlier ones


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands in the queue, fixed when it is created."""

    group: str | None = None  # within the repository; None: runs beside any other
    limit: int = 1  # runs of the group that may have begun and not ended
    on_new: OnNew = OnNew.QUEUE
    priority: int = 0  # 0 to 100: higher ones of the repository are taken first


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How many runs may be executing at once; one that waits is not executing. 0: any number."""

    repository: int = 0
    every: int = 0  # of all repositories together

    def __bool__(self) -> bool:
        return self.repository > 0 or self.every > 0


@dataclass(frozen=True, slots=True)
class Share:
    """How many runs of one repository a worker takes in hand, so that one that floods leaves places
    for others: who comes next must not wait behind what is claimed already."""

    each: int
    held: Mapping[str, int] = field(default_factory=dict)  # by repository: what it has in hand

    def of_others(self) -> Share:
        """The same, but nothing more for those that have anything in hand."""
        return Share(self.each, dict.fromkeys(self.held, self.each))

    @property
    def crowded(self) -> bool:
        """Whether a repository has all it may."""
        return any(count >= self.each for count in self.held.values())

    def first(self, due: Iterable[tuple[Named, str]]) -> list[Named]:
        """Of what is due, with its repositories, what may be taken; in the same order."""
        left: dict[str, int] = {}
        chosen = []
        for name, repository_id in due:
            room = left.get(repository_id, self.each - self.held.get(repository_id, 0))
            if room > 0:
                chosen.append(name)
            left[repository_id] = room - 1
        return chosen


@dataclass(frozen=True, slots=True)
class Standing:
    """What a queued run waits for."""

    ahead: int  # runs that come before it; counted to AHEAD_MAX
    holders: Sequence[int]  # numbers of the runs that have the slots, oldest first, a few of them
    every: int = 0  # so many runs execute, and all repositories together may have no more


AHEAD_MAX = 1000
QUEUED_MAX = 500  # commands of one run of which it is told where they stand
HOLDERS_MAX = 5


@dataclass(frozen=True, slots=True)
class Superseded:
    """Runs that a newer one of their group ends."""

    by: str  # its id
    number: int
    runs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Schedule:
    """One `on_schedule` of a pipeline at the head of its repository's default branch."""

    repository_id: str
    pipeline: str
    cron: str
    timezone: str
    next_ms: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from the others of its repository."""
        return self.pipeline, self.cron, self.timezone


class ScheduleStore(Protocol):
    def replace(self, repository_id: str, schedules: Sequence[Schedule]) -> None:
        """Make these the schedules of a repository; those it has keep their `next_ms`."""

    def of_repository(self, repository_id: str) -> Sequence[Schedule]: ...

    def due(self, now_ms: int, *, limit: int = 100) -> Sequence[Schedule]:
        """Those whose time has come, oldest first."""

    def move(self, schedule: Schedule, next_ms: int) -> bool:
        """Set when it is due next; False if somebody has done so since it was read."""


class Scheduling(Protocol):
    """The part of `RunStore` that says who waits for whom."""

    def standing(self, run_id: str) -> Standing | None:
        """What keeps a queued run; None when it does not wait for its turn."""

    def superseded(self, *, limit: int = 100) -> Sequence[Superseded]:
        """What new runs have to end, oldest first, until `superseded_done`."""

    def superseded_done(self, by: str) -> None:
        """The runs that this one supersedes have ended. Safe to call twice."""
