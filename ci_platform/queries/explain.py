"""What people are told about a run beyond its row and its steps: why it waits, whose steps it
shares, what its code changed on the way.

Values, and pure functions over what the stores answer; decides nothing. Called by queries, and
shown by api and web.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile

from ci_platform.engine.fold import error_of
from ci_platform.engine.summary import origin_of
from ci_platform.model import (
    Entry,
    EntryKind,
    ErrorInfo,
    Json,
    Origin,
    Run,
    Step,
    StepKey,
    StepState,
)
from ci_platform.ports.housekeeping import WorkerRecord
from ci_platform.scheduling import AHEAD_MAX, Hold, Standing

CHANGES_MAX = 200  # changes of a run's code that are told; the journal has all of them


# --- why it waits ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueView:
    """Where a queued run stands, or a queued command."""

    position: int  # 1: it is next; more than AHEAD_MAX: it is behind so many
    waits_for: str  # group, repository, everyone, no_worker, worker
    reason: str  # the same as a sentence's end

    @property
    def place(self) -> str:
        """The position for people."""
        return f"{AHEAD_MAX:,}+" if self.position > AHEAD_MAX else f"{self.position:,}"


@dataclass(frozen=True, slots=True)
class Stuck:
    """A command that no worker which is there can take."""

    step: StepKey
    reason: str


def queue_view(run: Run, standing: Standing, workers: Sequence[WorkerRecord]) -> QueueView:
    """`workers`: those that take what is new."""
    numbers = ", ".join(f"#{number}" for number in standing.holders)
    running = f": {numbers} {'is' if len(standing.holders) == 1 else 'are'} running"
    match run.hold:
        case Hold.GROUP:
            waits_for = "group"
            reason = f"waiting for group {run.place.group}{running if numbers else ''}"
        case Hold.LIMIT:
            waits_for = "repository"
            reason = f"waiting for the limit of its repository{running if numbers else ''}"
        case _ if standing.every:
            waits_for = "everyone"
            reason = f"waiting for the limit of all repositories: {standing.every} runs execute"
        case _ if not workers:
            waits_for, reason = "no_worker", "waiting for a worker: none is there"
        case _:
            waits_for, reason = "worker", "waiting for a free worker"
    return QueueView(standing.ahead + 1, waits_for, reason)


def command_queues(
    steps: Sequence[Step], ahead: Mapping[StepKey, int], workers: Sequence[WorkerRecord]
) -> dict[StepKey, QueueView]:
    """Where the commands stand that no worker has taken yet: `ahead` of each are so many."""
    found = {}
    for step in steps:
        if step.key in ahead:
            labels = sorted(step.config.get("labels") or ())
            what = "label" if len(labels) == 1 else "labels"
            named = f" with the {what} {', '.join(labels)}" if labels else ""
            reason = _nobody(labels, named, workers)
            waits_for = "worker" if reason is None else "no_worker"
            told = reason or f"waiting for a free worker{named}"
            found[step.key] = QueueView(ahead[step.key] + 1, waits_for, told)
    return found


def _nobody(labels: Sequence[str], named: str, workers: Sequence[WorkerRecord]) -> str | None:
    """Why none of the workers, who take what is new, can take a command; None: one can."""
    able = [worker for worker in workers if set(labels) <= set(worker.labels)]
    if not workers:
        return "no worker is there"
    if not able:
        return f"no worker{named} is there"
    if all(worker.draining and not worker.operations for worker in able):
        return f"every worker{named} is about to end"
    held_up = [one.obstacle for one in able if one.obstacle and not one.operations]
    return held_up[0] if len(held_up) == len(able) else None


def stuck(queues: Mapping[StepKey, QueueView]) -> list[Stuck]:
    """Those of the queued commands that no worker which is there can take."""
    return [Stuck(step, one.reason) for step, one in queues.items() if one.waits_for == "no_worker"]


def as_queued(steps: Sequence[Step], queues: Mapping[StepKey, QueueView]) -> list[Step]:
    """The steps, those of queued commands as such."""
    if not queues:
        return list(steps)
    return [replace(one, state=StepState.QUEUED) if one.key in queues else one for one in steps]


# --- what it shares -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Again:
    """A run that does another one again, from a step on or from the start."""

    origin: Origin
    step: str | None  # str(StepKey); None: all of it


def again(created: Mapping[str, Json]) -> Again | None:
    """What the first entry of a journal says of the run it does again."""
    if "shared" in created:
        origin = origin_of(created["shared"])
        return None if origin is None else Again(origin, created["shared"]["from"])
    origin = origin_of(created.get("again"))
    return None if origin is None else Again(origin, None)


# --- what its code changed ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CodeChange:
    """A commit that a run came to on its way, and how its steps differ from what had happened."""

    seq: int  # of the journal's entry
    at_ms: int
    commit: str
    inserted: Sequence[str] = ()  # labels: it has them before steps that had ended
    missing: Sequence[str] = ()  # labels: they had ended, and it does not come to them
    error: ErrorInfo | None = None  # it did not work: the run stayed where it was


def code_changes(entries: Sequence[Entry]) -> list[CodeChange]:
    """How the code of a run changed, oldest first; nothing for one that stayed at its commit. What
    it shares with another run was executed there: each of those steps names its commit."""
    found: list[CodeChange] = []
    inserted: list[str] = []
    missing: list[str] = []
    own = dropwhile(lambda entry: entry.kind is not EntryKind.RUN_CLAIMED, entries)
    for entry in own:
        if entry.kind is EntryKind.COMMIT_RESOLVED:
            inserted, missing = [], []
            commit = entry.data["commit"]
            found.append(CodeChange(entry.seq, entry.at_ms, commit, inserted, missing))
        elif entry.kind is EntryKind.DIVERGED and entry.data["change"] == "fell_back":
            error = error_of(entry.data.get("error") or {})
            commit = entry.data["commit"]
            found.append(CodeChange(entry.seq, entry.at_ms, commit, error=error))
        elif entry.kind is EntryKind.DIVERGED and entry.key is not None:
            last = next((one for one in reversed(found) if one.error is None), None)
            if last is None or last.commit != entry.data["commit"]:
                inserted, missing = [], []
                commit = entry.data["commit"]
                found.append(CodeChange(entry.seq, entry.at_ms, commit, inserted, missing))
            (inserted if entry.data["change"] == "inserted" else missing).append(entry.key.label)
    return found[-CHANGES_MAX:]
