"""The values and Protocols of housekeeping: old runs, workers, turns at duties, stored layers.

A part of the ports, under their contract; apart because only workers and the pages that show
them need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import RepositoryId, RunId, WorkerId

BEATS_MISSED_MAX = 3


@dataclass(frozen=True, slots=True)
class OldRun:
    """A run that retention lets go, with the commits it kept alive."""

    id: RunId
    repository_id: RepositoryId
    commits: Sequence[str]


@dataclass(frozen=True, slots=True)
class OldRuns:
    runs: Sequence[OldRun]
    cursor: int  # where to look on; 0 after the last run


class Retention(Protocol):
    """The part of `RunStore` that says what may be removed."""

    def old(self, *, before_ms: int, keep: int, after: int = 0, limit: int = 500) -> OldRuns:
        """Runs that ended before, and are not among the `keep` newest ended ones of their
        pipeline in their repository. Looks at `limit` runs at most, those created after `after`;
        so a page may be empty and have a cursor."""

    def commits_used(self, repository_id: RepositoryId, commits: Sequence[str]) -> set[str]:
        """Those of the commits that a run of the repository stands at."""

    def layers_used(self, digests: Sequence[str]) -> set[str]:
        """Those of the workspace layers that the journal of any run refers to."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker process, as it says of itself, and what it holds."""

    id: WorkerId
    host: str
    pid: int
    started_ms: int
    seen_ms: int  # its last heartbeat
    beat_ms: int  # how long it is until the next one
    labels: Sequence[str] = ()
    capacity: int = 0  # commands at once
    draining: bool = False  # it ends what it has, and takes nothing new
    runs: int = 0  # leased now; told by `list` alone
    operations: int = 0  # commands, likewise
    obstacle: str | None = None  # why it starts no command now

    def alive(self, now_ms: int) -> bool:
        """Whether it can be taken to be there: it has not missed several heartbeats."""
        return now_ms - self.seen_ms < BEATS_MISSED_MAX * self.beat_ms


class WorkerStore(Protocol):
    """Who is there to work. Rows for people: leases, not these, decide who may write."""

    def beat(self, record: WorkerRecord) -> bool:
        """Note that a worker is alive. Returns whether it was asked to drain, and then to end."""

    def drain(self, worker: WorkerId) -> bool:
        """Ask a worker to drain; it is told with its next heartbeat. False: there is none."""

    def gone(self, worker: WorkerId) -> None:
        """Drop the row of a worker that has stopped. Safe to call twice."""

    def list(self) -> list[WorkerRecord]:
        """By id, at most 1,000."""

    def forget(self, before_ms: int) -> int:
        """Drop workers whose last heartbeat is older: they died. Returns how many."""


class DutyStore(Protocol):
    """Turns at what one process at a time is enough for."""

    def take(self, name: str, *, every_ms: int) -> bool:
        """Whether it is the caller's turn: at most one caller gets True in `every_ms`. A turn is
        never given back; whoever dies in it is made up for by the next."""


class Layers(Protocol):
    """The stored workspace layers, for their sweep."""

    def size(self, digest: str) -> int:
        """Bytes stored of a layer; 0 if it is not there. Raises StoreUnavailable."""

    def stored(self, *, before_ms: int) -> Iterator[Sequence[str]]:
        """Digests of the layers that were last written before, page by page."""

    def remove(self, digests: Sequence[str], *, before_ms: int) -> int:
        """Remove those of them that were not written again since. Returns how many."""
