"""What a journal means: a RunView, folded entry by entry. Everything else derives from it.

Owns the reading of entries; decides nothing. Used by every decision of the engine, by the worker
during an activation (which applies each entry once, and never folds twice), and for pages.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ci_platform.engine.transitions import move
from ci_platform.errors import InternalError
from ci_platform.model import (
    Entry,
    EntryKind,
    ErrorInfo,
    Json,
    Run,
    RunState,
    StepKey,
    StepKind,
    StepState,
)

LOST_WORKER = "LostWorker"  # the error type of an attempt whose worker went away
TIMED_KINDS = frozenset({StepKind.SLEEP, StepKind.TIMER, StepKind.WAIT, StepKind.APPROVAL})
ENDED = frozenset({StepState.PASSED, StepState.FAILED, StepState.CANCELLED})


class BrokenJournal(InternalError):
    """The journal holds something that no version of the platform writes."""


@dataclass(slots=True)
class StepView:
    """A step as the journal tells it so far."""

    key: StepKey
    state: StepState
    config: Mapping[str, Json]
    commit: str  # that its last attempt executes
    base: int  # how many workspace layers lay below when it started
    started_seq: int
    started_ms: int
    attempt: int = 1
    attempt_seq: int = 0  # of the entry that started the present attempt
    since_ms: int = 0  # when the present attempt, or the wait for the next one, began
    ended_ms: int | None = None
    until_ms: int | None = None  # when a sleep, wait, approval or retry delay is over
    retrying: bool = False  # waits for its next attempt
    losses: int = 0  # attempts lost with their worker
    value: Json = None
    error: Mapping[str, Json] | None = None
    decisions: list[Mapping[str, Json]] = field(default_factory=list)  # of an approval
    origin: Mapping[str, Json] | None = None  # {run, number} that executed it, if not this one

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def executing(self) -> bool:
        """An attempt of it executes now, or is queued for a worker."""
        return self.state is StepState.RUNNING


@dataclass(slots=True)
class RollbackView:
    """What a run that failed or was cancelled has to undo, and how it ends then."""

    steps: Sequence[StepKey]  # in the order in which they are undone
    end: EntryKind
    data: Mapping[str, Json]


@dataclass(slots=True)
class RunView:
    """A run as its journal tells it so far. `run` serves for what never changes: ids, timeout."""

    run: Run
    seq: int = 0
    state: RunState | None = None
    commit: str = ""
    steps: dict[StepKey, StepView] = field(default_factory=dict)  # in order of start
    open: dict[StepKey, StepView] = field(default_factory=dict)  # those that have not ended
    bodies: dict[StepKey, StepView] = field(default_factory=dict)  # `do` attempts that execute
    commands: dict[StepKey, StepView] = field(default_factory=dict)  # `sh` attempts in flight
    events: dict[str, deque[Entry]] = field(default_factory=dict)  # not consumed, by type
    events_pending: int = 0
    sent: dict[str, Entry] = field(default_factory=dict)  # events, by the id their sender gave
    waiting: dict[str, dict[StepKey, StepView]] = field(default_factory=dict)  # waits by type
    layers: list[str] = field(default_factory=list)  # workspace layers, lowest first
    step_commits: set[str] = field(default_factory=set)  # commits that steps were started by
    fell_back: set[str] = field(default_factory=set)  # commits that did not work (latest)
    divergences: set[tuple[StepKey | None, str, str]] = field(default_factory=set)
    divergence_accepted: set[str] = field(default_factory=set)  # commits a person let pass
    created_ms: int = 0
    queued_ms: int = 0  # since when the run is runnable
    claim_seq: int = 0
    first_claim_ms: int | None = None
    lost_leases: int = 0  # in a row, with nothing done in between
    lost_why: str = ""  # what is known of the last one
    pause_requested: bool = False
    cancel_requested: bool = False
    paused_ms: int | None = None
    shifted_ms: int = 0  # time spent paused, all in all
    rollback: RollbackView | None = None
    rolled_back: Mapping[str, Json] | None = None  # how that ended: {outcome, error}
    reason: str | None = None
    output: Json = None
    error: ErrorInfo | None = None
    ended_ms: int | None = None
    _timers: list[tuple[int, int, StepKey]] = field(default_factory=list, compare=False)

    @property
    def leased(self) -> bool:
        return self.state is RunState.RUNNING

    @property
    def terminal(self) -> bool:
        return self.state is not None and self.state.terminal

    @property
    def held(self) -> bool:
        """Nothing new may start: a pause is asked for, or has taken hold."""
        return self.pause_requested or self.state is RunState.PAUSED

    @property
    def in_flight(self) -> bool:
        """An attempt of a step executes somewhere."""
        return bool(self.bodies or self.commands)

    @property
    def deadline_ms(self) -> int | None:
        """When the whole run times out."""
        if self.run.timeout_ms is None or self.first_claim_ms is None or self.rollback is not None:
            return None  # what undoes a run is not cut short: its handlers have their own timeouts
        return self.first_claim_ms + self.run.timeout_ms + self.shifted_ms

    def next_timer(self) -> StepView | None:
        """The open step whose time comes first."""
        while self._timers:
            until_ms, _, key = self._timers[0]
            step = self.open.get(key)
            if step is not None and step.until_ms == until_ms:
                return step
            heapq.heappop(self._timers)
        return None

    def next_due_ms(self) -> int | None:
        """When time alone moves this run again."""
        timer = self.next_timer()
        until_ms = None if timer is None else timer.until_ms
        return min((ms for ms in (until_ms, self.deadline_ms) if ms is not None), default=None)

    def apply(self, entry: Entry) -> None:
        """Take in the next entry. Raises IllegalMove or BrokenJournal, leaving the view useless."""
        if entry.seq != self.seq + 1:
            raise BrokenJournal(f"{self.run.id}: entry {entry.seq} follows entry {self.seq}")
        before = self.state
        self.state = move(before, entry.kind)
        self.seq = entry.seq
        if self.state is RunState.QUEUED and before is not RunState.QUEUED:
            self.queued_ms = entry.at_ms
        reader = _READERS.get(entry.kind)
        if reader is not None:
            reader(self, entry)

    # --- used by the readers below ---

    def step_of(self, entry: Entry) -> StepView:
        step = self.open.get(entry.key) if entry.key is not None else None
        if step is None:
            raise BrokenJournal(f"{self.run.id}: entry {entry.seq} is about no open step")
        return step

    def watch(self, step: StepView) -> None:
        """Let time move this step at its `until_ms`."""
        if step.until_ms is not None:
            heapq.heappush(self._timers, (step.until_ms, step.started_seq, step.key))

    def execute(self, step: StepView) -> None:
        """Note that an attempt of a step begins."""
        step.state = StepState.RUNNING
        if step.key.kind is StepKind.DO:
            self.bodies[step.key] = step
        elif step.key.kind is StepKind.SH:
            self.commands[step.key] = step

    def rest(self, step: StepView) -> None:
        """Note that no attempt of a step executes."""
        self.bodies.pop(step.key, None)
        self.commands.pop(step.key, None)

    def close(self, step: StepView, state: StepState, at_ms: int) -> None:
        self.rest(step)
        if step.key.kind is StepKind.WAIT:
            pending = self.waiting.get(step.config["type"], {})
            pending.pop(step.key, None)
        step.state, step.ended_ms, step.until_ms, step.retrying = state, at_ms, None, False
        del self.open[step.key]

    def shift(self, by_ms: int) -> None:
        """Move every timer: the time spent paused does not count."""
        self.shifted_ms += by_ms
        self._timers.clear()
        for step in self.open.values():
            if step.until_ms is not None:
                step.until_ms += by_ms
                if not (step.retrying and step.key.kind is StepKind.SH):
                    self.watch(step)


def fold(run: Run, entries: Iterable[Entry]) -> RunView:
    """Read a journal from its first entry. Pure: the same entries give the same view."""
    view = RunView(run)
    for entry in entries:
        view.apply(entry)
    return view


def error_of(data: Mapping[str, Json]) -> ErrorInfo:
    """An error as the journal holds it, as a value."""
    return ErrorInfo(
        type=str(data.get("type", "Error")),
        message=str(data.get("message", "")),
        traceback=str(data.get("traceback", "")),
        data=data.get("data") or {},
    )


# --- one reader for each kind of entry that says more than its move -------------------------------


def _created(view: RunView, entry: Entry) -> None:
    view.created_ms = view.queued_ms = entry.at_ms
    view.commit = str(entry.data.get("commit", view.run.commit))
    if "shared" in entry.data:
        view.step_commits.add("")  # steps are missing from what it shares: match them by key


def _claimed(view: RunView, entry: Entry) -> None:
    view.claim_seq = entry.seq
    if view.first_claim_ms is None:
        view.first_claim_ms = entry.at_ms


def _lease_expired(view: RunView, entry: Entry) -> None:
    view.lost_leases += 1
    view.lost_why = str(entry.data.get("reason") or "its worker went silent")


def _suspended(view: RunView, entry: Entry) -> None:
    view.lost_leases = 0


def _commit_resolved(view: RunView, entry: Entry) -> None:
    view.commit = str(entry.data["commit"])


def _diverged(view: RunView, entry: Entry) -> None:
    change, commit = str(entry.data["change"]), str(entry.data["commit"])
    if change == "fell_back":
        view.fell_back.add(commit)
    else:
        view.divergences.add((entry.key, change, commit))


def _step_started(view: RunView, entry: Entry) -> None:
    key = entry.key
    if key is None or key in view.steps:
        raise BrokenJournal(f"{view.run.id}: entry {entry.seq} starts {key} again")
    step = StepView(
        key=key,
        state=StepState.RUNNING if key.kind is StepKind.SERVICE else StepState.WAITING,
        config=entry.data.get("config") or {},
        commit=view.commit,
        base=int(entry.data.get("base", 0)),
        started_seq=entry.seq,
        started_ms=entry.at_ms,
        attempt_seq=entry.seq,
        since_ms=entry.at_ms,
        until_ms=entry.data.get("until_ms"),
        origin=entry.data.get("origin"),
    )
    view.steps[key] = view.open[key] = step
    view.step_commits.add(view.commit)
    view.lost_leases = 0
    if key.kind in (StepKind.DO, StepKind.SH, StepKind.RUN):
        view.execute(step)
    if key.kind is StepKind.WAIT:
        view.waiting.setdefault(step.config["type"], {})[key] = step
    if key.kind in TIMED_KINDS:
        view.watch(step)


def _attempt_started(view: RunView, entry: Entry) -> None:
    step = view.step_of(entry)
    step.attempt = entry.attempt or step.attempt + 1
    step.attempt_seq, step.since_ms = entry.seq, entry.at_ms
    step.until_ms, step.retrying, step.commit = None, False, view.commit
    view.execute(step)


def _attempt_failed(view: RunView, entry: Entry) -> None:
    step = view.step_of(entry)
    view.rest(step)
    step.state, step.retrying = StepState.WAITING, True
    step.error, step.since_ms = entry.data.get("error"), entry.at_ms
    step.until_ms = int(entry.data["retry_at_ms"])
    step.losses += (step.error or {}).get("type") == LOST_WORKER
    if step.key.kind is not StepKind.SH:  # the next attempt of a command is due by its operation
        view.watch(step)


def _step_passed(view: RunView, entry: Entry) -> None:
    step = view.step_of(entry)
    step.value, step.error = entry.data.get("value"), None
    view.close(step, StepState.PASSED, entry.at_ms)
    view.lost_leases = 0
    if step.key.kind is StepKind.SH and step.value.get("layer"):
        view.layers.append(step.value["layer"])
    consumed = entry.data.get("event")
    if consumed is not None:
        _consume(view, str(step.config["type"]), int(consumed))


def _consume(view: RunView, type: str, seq: int) -> None:
    pending = view.events.get(type)
    if not pending or pending[0].seq != seq:
        raise BrokenJournal(f"{view.run.id}: event {seq} is not the next one of type {type!r}")
    pending.popleft()
    view.events_pending -= 1


def _step_failed(view: RunView, entry: Entry) -> None:
    step = view.step_of(entry)
    step.error = entry.data.get("error")
    step.losses += (step.error or {}).get("type") == LOST_WORKER
    view.close(step, StepState.FAILED, entry.at_ms)
    view.lost_leases = 0


def _step_cancelled(view: RunView, entry: Entry) -> None:
    view.close(view.step_of(entry), StepState.CANCELLED, entry.at_ms)


def _event_received(view: RunView, entry: Entry) -> None:
    view.events.setdefault(str(entry.data["type"]), deque()).append(entry)
    view.events_pending += 1
    if "id" in entry.data:
        view.sent[entry.data["id"]] = entry


def _approval_decided(view: RunView, entry: Entry) -> None:
    view.step_of(entry).decisions.append({**entry.data, "at_ms": entry.at_ms})


def _pause_requested(view: RunView, entry: Entry) -> None:
    view.pause_requested = True


def _paused(view: RunView, entry: Entry) -> None:
    view.pause_requested, view.paused_ms = False, entry.at_ms
    view.reason = str(entry.data.get("reason", "user"))
    view.lost_leases = 0


def _resumed(view: RunView, entry: Entry) -> None:
    if view.reason == "divergence":
        view.divergence_accepted.add(view.commit)
    view.pause_requested, view.paused_ms, view.reason = False, None, None
    view.shift(int(entry.data.get("shifted_ms", 0)))


def _cancel_requested(view: RunView, entry: Entry) -> None:
    view.cancel_requested = True


def _rollback_started(view: RunView, entry: Entry) -> None:
    steps = [StepKey(StepKind(kind), name, number) for kind, name, number in entry.data["steps"]]
    view.rollback = RollbackView(steps, EntryKind(entry.data["end"]), entry.data["data"])
    view.pause_requested, view.paused_ms, view.reason = False, None, None
    view.lost_leases = 0


def _ended(view: RunView, entry: Entry) -> None:
    view.ended_ms, view.pause_requested = entry.at_ms, False
    view.output, view.reason = entry.data.get("output"), entry.data.get("reason")
    view.rolled_back = entry.data.get("rollback")
    if entry.data.get("error") is not None:
        view.error = error_of(entry.data["error"])


_READERS: Final[Mapping[EntryKind, Callable[[RunView, Entry], None]]] = {
    EntryKind.RUN_CREATED: _created,
    EntryKind.RUN_CLAIMED: _claimed,
    EntryKind.LEASE_EXPIRED: _lease_expired,
    EntryKind.RUN_SUSPENDED: _suspended,
    EntryKind.COMMIT_RESOLVED: _commit_resolved,
    EntryKind.STEP_STARTED: _step_started,
    EntryKind.ATTEMPT_STARTED: _attempt_started,
    EntryKind.ATTEMPT_FAILED: _attempt_failed,
    EntryKind.STEP_PASSED: _step_passed,
    EntryKind.STEP_FAILED: _step_failed,
    EntryKind.STEP_CANCELLED: _step_cancelled,
    EntryKind.EVENT_RECEIVED: _event_received,
    EntryKind.APPROVAL_DECIDED: _approval_decided,
    EntryKind.PAUSE_REQUESTED: _pause_requested,
    EntryKind.RUN_PAUSED: _paused,
    EntryKind.RUN_RESUMED: _resumed,
    EntryKind.CANCEL_REQUESTED: _cancel_requested,
    EntryKind.ROLLBACK_STARTED: _rollback_started,
    EntryKind.DIVERGED: _diverged,
    EntryKind.RUN_PASSED: _ended,
    EntryKind.RUN_FAILED: _ended,
    EntryKind.RUN_ERRORED: _ended,
    EntryKind.RUN_CANCELLED: _ended,
}
