"""The reference: what a journal may say, and what a run's row must say for it. Written from the
promises (docs, design), without a look at the engine, which it judges.

`Told` reads one run's entries one by one and raises Broken at the first that breaks a promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ci_platform.model import Entry, Run

ROLLBACK = "$rollback:"
IN_FLIGHT = {"do", "sh"}
ENDS = {"run_passed", "run_failed", "run_errored", "run_cancelled"}
LOST_IN_A_ROW = 10  # leases, until a run may be given up as errored
CLOSES = {"step_passed", "step_failed", "step_cancelled"}


class Broken(AssertionError):
    """A promise that was not kept."""


def holds(what: object, promise: str) -> None:
    if not what:
        raise Broken(promise)


@dataclass
class Known:
    """A step."""

    kind: str
    config: dict[str, Any]
    order: int
    attempt: int = 1
    executing: bool = False
    due_ms: int | None = None  # a timer, a timeout, or its next attempt
    result: Any = None
    state: str = "open"
    decisions: list[str] = field(default_factory=list)
    child: str | None = None


class Told:
    """One run, as its entries tell it."""

    def __init__(self, run: Run, *, slack_ms: int = 0) -> None:
        """`slack_ms`: by how much the clocks of those who write may differ."""
        self.run = run
        self.slack_ms = slack_ms
        self.entries: list[Entry] = []
        self.state = ""
        self.steps: dict[str, Known] = {}
        self.kept: dict[str, list[Entry]] = {}  # events nobody has consumed, by type
        self.fence = 0
        self.pausing = self.cancelled = self.undoing = False
        self.was_held = False  # somebody has paused it, now or earlier
        self.paused_ms: int | None = None
        self.to_undo: list[str] = []
        self.lost = 0  # leases in a row
        self.started_ms: int | None = None
        self.shifted_ms = 0
        self.commit = run.commit
        self.owed: str | None = None  # a lost command's attempt that must fail in the next entry

    # --- reading ---

    def hear(self, entries: Sequence[Entry]) -> None:
        """Read a journal on. What was read before must be there unchanged."""
        known = len(self.entries)
        holds(list(entries[:known]) == self.entries, "what is journaled never changes")
        for entry in entries[known:]:
            try:
                self._read(entry)
            except Broken as broken:
                raise Broken(f"{broken} — at {entry}, while {self.state}") from None
            self.entries.append(entry)

    def _read(self, entry: Entry) -> None:
        kind = entry.kind.value
        holds(entry.seq == len(self.entries) + 1, "entries are numbered without holes")
        holds(self.state not in ENDS, "nothing follows the end of a run")
        holds((self.state == "") == (kind == "run_created"), "run_created is first, and once")
        if not self._shared(entry):
            before = self.entries[-1].at_ms if self.entries else 0
            holds(entry.at_ms >= before - self.slack_ms, "time does not go back")
        if self.owed is not None:
            holds(kind == "attempt_failed" or kind == "step_failed", "a lost command only fails")
        getattr(self, f"_{kind}")(entry)

    def _shared(self, entry: Entry) -> bool:
        """Of what a run has in common with the one that it goes on from."""
        return (
            self.fence == 0
            and self.state == "queued"
            and bool(self.entries)
            and ("shared" in self.entries[0].data)
        )

    @property
    def leased(self) -> bool:
        return self.state == "running"

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    @property
    def open(self) -> dict[str, Known]:
        return {key: step for key, step in self.steps.items() if step.state == "open"}

    @property
    def executing(self) -> dict[str, Known]:
        return {key: one for key, one in self.open.items() if one.executing}

    @property
    def held(self) -> bool:
        return self.pausing or self.state == "paused"

    def _run_created(self, entry: Entry) -> None:
        self.state = "queued"
        self.commit = entry.data["commit"]

    def _run_claimed(self, entry: Entry) -> None:
        holds(self.state in ("queued", "waiting"), "only a run that nobody has is claimed")
        self.fence += 1
        holds(entry.data["fence"] == self.fence, "each claim has the next fencing number")
        self.state = "running"
        if self.started_ms is None:
            self.started_ms = entry.at_ms

    def _lease_expired(self, entry: Entry) -> None:
        holds(self.leased, "only a lease can run out")
        self.state = "queued"
        self.lost += 1

    def _run_suspended(self, entry: Entry) -> None:
        holds(self.leased, "only who has the lease suspends")
        bodies = [key for key in self.executing if key.startswith("do:")]
        holds(not bodies, "a run does not sleep while its code executes")
        holds(self.open, "a run does not sleep on nothing")
        self.state = "waiting"
        self.lost = 0

    def _commit_resolved(self, entry: Entry) -> None:
        holds(self.leased or self._shared(entry), "only who has the lease executes code")
        self.commit = entry.data["commit"]

    def _diverged(self, entry: Entry) -> None:
        holds(self.leased, "only who has the lease executes code")
        holds(self.run.resume == "latest" or "shared" in self.entries[0].data, "code was pinned")

    # --- steps ---

    def _step(self, entry: Entry) -> Known:
        step = self.steps.get(str(entry.key))
        if step is None or step.state != "open":
            raise Broken("an entry is about a step that is open")
        return step

    def _step_started(self, entry: Entry) -> None:
        shared = self._shared(entry)
        holds(self.leased or shared, "only who has the lease starts steps")
        holds(not self.held, "a pause starts nothing")
        key, kind = str(entry.key), str(entry.key and entry.key.kind)
        holds(key not in self.steps, "a step starts once")
        if self.undoing:
            holds(self.to_undo and not self.open, "handlers run one after the other")
            wanted = f"{ROLLBACK}{self.to_undo[0]}"
            holds(key.partition(":")[2] == wanted, f"handlers run in reverse: {wanted} is next")
        step = Known(kind, dict(entry.data.get("config") or {}), len(self.steps))
        step.executing = kind in IN_FLIGHT
        step.due_ms = entry.data.get("until_ms")
        step.child = (entry.data.get("child") or {}).get("id")
        self.steps[key] = step
        self.lost = 0

    def _attempt_started(self, entry: Entry) -> None:
        step = self._step(entry)
        holds(not step.executing, "attempts of a step do not overlap")
        holds(entry.attempt == step.attempt + 1, "attempts are counted")
        if not self._shared(entry):
            holds(
                step.due_ms is not None and entry.at_ms >= step.due_ms, "no retry before its time"
            )
            if step.kind == "do":
                holds(self.leased and not self.held, "a pause starts nothing")
            elif self.held:
                self.owed = str(entry.key)
        step.attempt += 1
        step.executing, step.due_ms = True, None

    def _fails(self, entry: Entry) -> Known:
        self.owed = None
        step = self._step(entry)
        if step.kind in IN_FLIGHT:
            # A command that asks for what it may not have fails without having begun.
            holds(step.executing, "what fails has executed")
            holds(entry.attempt == step.attempt, "the attempt that fails is the last one begun")
        step.executing = False
        return step

    def _attempt_failed(self, entry: Entry) -> None:
        self._fails(entry).due_ms = entry.data["retry_at_ms"]

    def _step_failed(self, entry: Entry) -> None:
        step = self._fails(entry)
        if entry.data["error"]["type"] == "WaitTimeout" and not self._shared(entry):
            holds(step.due_ms is not None and entry.at_ms >= step.due_ms, "no timeout too early")
        step.state = "failed"
        self._wakes()

    def _wakes(self) -> None:
        """The end of a step is news for the code."""
        self.lost = 0
        if self.state == "waiting":
            self.state = "queued"

    def _step_cancelled(self, entry: Entry) -> None:
        step = self._step(entry)
        step.state, step.executing = "cancelled", False

    def _step_passed(self, entry: Entry) -> None:
        step, value = self._step(entry), entry.data["value"]
        match step.kind:
            case "do" | "sh":
                holds(step.executing, "what passes has executed")
                holds(entry.attempt == step.attempt, "the attempt that passes is the last one")
            case "sleep" | "timer":
                early = step.due_ms is None or entry.at_ms < step.due_ms
                holds(self._shared(entry) or not early, "no timer fires too early")
            case "wait":
                self._consumes(entry, step)
            case "approval":
                holds(len(step.decisions) >= step.config["required"], "enough people approved")
                holds(set(step.decisions) == {"approve"}, "nobody rejected it")
        step.state, step.result, step.executing = "passed", value, False
        self._wakes()
        if self.undoing and self.to_undo:
            holds(str(entry.key).partition(":")[2] == ROLLBACK + self.to_undo[0], "in order")
            self.to_undo.pop(0)

    def _consumes(self, entry: Entry, step: Known) -> None:
        """First in, first out, by type; among waits too, the oldest is served first."""
        kind = step.config["type"]
        kept = self.kept.get(kind) or []
        holds(kept and kept[0].seq == entry.data["event"], "events are consumed in order, once")
        holds(entry.data["value"]["payload"] == kept[0].data["payload"], "what was sent arrives")
        rivals = [one for one in self.open.values() if one.kind == "wait"]
        older = [one for one in rivals if one.config["type"] == kind and one.order < step.order]
        holds(not older, "the oldest wait gets the event")
        kept.pop(0)

    def _event_received(self, entry: Entry) -> None:
        self.kept.setdefault(entry.data["type"], []).append(entry)

    def _approval_decided(self, entry: Entry) -> None:
        self._step(entry).decisions.append(entry.data["decision"])

    # --- holding and ending ---

    def _pause_requested(self, entry: Entry) -> None:
        holds(not self.held, "a pause is asked for once")
        self.pausing = self.was_held = True

    def _run_paused(self, entry: Entry) -> None:
        holds(entry.data["reason"] != "nondeterminism", f"replays agree: {entry.data['detail']}")
        if entry.data["reason"] == "user":
            holds(self.pausing and not self.executing, "a pause lets what executes end")
        self.pausing, self.state, self.paused_ms = False, "paused", entry.at_ms
        self.lost = 0

    def _run_resumed(self, entry: Entry) -> None:
        holds(self.held, "only what is held is resumed")
        shift = entry.data["shifted_ms"]
        waited = 0 if self.paused_ms is None else entry.at_ms - self.paused_ms
        holds(abs(shift - waited) <= self.slack_ms, "timers move by the time paused")
        for step in self.open.values():
            if step.due_ms is not None:
                step.due_ms += shift
        self.shifted_ms += shift
        if self.state != "running":
            self.state = "queued"
        self.pausing, self.paused_ms = False, None

    def _cancel_requested(self, entry: Entry) -> None:
        self.cancelled = True

    def _rollback_started(self, entry: Entry) -> None:
        holds(not self.undoing, "a run is undone once")
        listed = [
            f"{kind}:{name}" + (f"#{count}" if count > 1 else "")
            for kind, name, count in entry.data["steps"]
        ]
        began = [key for key, step in self.steps.items() if step.config.get("rollback")]
        holds(listed == began[::-1], "steps are undone in reverse order of their start")
        self.undoing, self.to_undo = True, listed
        self.state, self.pausing, self.paused_ms = "queued", False, None
        self.lost = 0

    def _ends(self, entry: Entry) -> None:
        holds(not self.open, "what is open ends with its run")
        kind = entry.kind.value
        if kind in ("run_passed", "run_failed"):
            holds(self.leased, "code ends under the lease")
        if kind == "run_cancelled":
            holds(self.cancelled, "nobody cancelled it")
        if kind == "run_errored" and not self.undoing:
            lost = any(
                one.kind.value == "step_failed" and one.data["error"]["type"] == "LostWorker"
                for one in self.entries
            )
            holds(self.lost >= LOST_IN_A_ROW or lost, f"the platform kept going: {entry.data}")
        undone = entry.data.get("rollback")
        holds((undone is not None) == self.undoing or self.cancelled, "rollback is told of")
        if undone is not None and undone["outcome"] == "complete":
            holds(not self.to_undo, "all handlers have run")
        self.state, self.pausing = kind, False

    _run_passed = _run_failed = _run_errored = _run_cancelled = _ends

    # --- what the row must say ---

    def due_ms(self) -> int | None:
        """When time alone moves a run that sleeps."""
        times = [
            one.due_ms for one in self.open.values() if one.due_ms is not None and one.kind != "sh"
        ]
        timeout_ms = self.run.timeout_ms
        if timeout_ms is not None and self.started_ms is not None and not self.undoing:
            times.append(self.started_ms + timeout_ms + self.shifted_ms)
        return min(times, default=None)

    def check_row(self, run: Run, now_ms: int) -> None:
        """What people and workers go by is what the journal tells."""
        holds(run.last_seq == len(self.entries), "the row counts its entries")
        holds(run.commit == self.commit, "the row names the commit")
        holds(run.fence == self.fence, "the row has the last fencing number")
        holds(run.pause_requested == self.pausing, "the row knows of a pause")
        holds(run.cancel_requested == self.cancelled, "the row knows of a cancel")
        holds((run.worker is not None) == self.leased, "the row knows its lease")
        shown = {run.state.value}
        commands = any(step.kind == "sh" for step in self.executing.values())
        match self.state:
            case "running" | "paused":
                holds(shown == {self.state} and run.ready_ms is None, "nobody claims it")
            case "queued" | "waiting" if self.pausing and commands:
                holds(shown == {"running"} and run.ready_ms is None, "its commands end first")
            case "queued":
                holds(shown == {"queued"}, "it waits for a worker")
                holds(run.ready_ms is not None or run.hold is not None, "it can be claimed")
            case "waiting" if self.pausing:
                holds(run.ready_ms is not None, "a pause takes hold")
            case "waiting":
                due_ms = self.due_ms()
                if run.hold is None and not (due_ms is not None and due_ms <= now_ms):
                    holds(run.ready_ms == due_ms, f"it is due at {due_ms}, not {run.ready_ms}")
                elif run.hold is None:  # it may have been held, and be offered again
                    holds(run.ready_ms is not None and run.ready_ms <= now_ms, "it is due")
                holds(shown <= {"queued", "running" if commands else "waiting"}, "it sleeps")
            case _:
                holds(f"run_{run.state}" == self.state and run.ready_ms is None, "it has ended")
                holds(run.output == self.entries[-1].data.get("output"), "its output is kept")
        if self.state in ("waiting", "paused"):
            names = [wait.name for wait in run.waits]
            told = [key.partition(":")[2] for key in self.open]
            holds(names == told, "it says what it waits for")
        for kind, kept in self.kept.items():
            wanted = [
                key
                for key, one in self.open.items()
                if one.kind == "wait" and one.config["type"] == kind
            ]
            holds(not (kept and wanted), "no wait is left beside an event of its type")
