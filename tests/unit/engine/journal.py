"""A journal under test: decisions are written into it as a store would, with a clock by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ci_platform.effects import Effect
from ci_platform.engine import Decision, Limits, RunView, accept, fold, propose, settle
from ci_platform.engine.operations import Collision
from ci_platform.model import (
    Command,
    Draft,
    Entry,
    EntryKind,
    FinishAttempt,
    Json,
    RepositoryId,
    Resume,
    Run,
    RunId,
    RunState,
    RunUpdate,
    StartStep,
    StepKey,
    StepKind,
)

LIMITS = Limits()
NO_COLLISION: Collision = lambda layer, other: None  # noqa: E731
COMMIT = "c" * 40
NEWER = "d" * 40

RUN = Run(
    id=RunId("run_1"),
    number=7,
    repository_id=RepositoryId("repo_1"),
    pipeline="CI",
    ref="refs/heads/main",
    commit=COMMIT,
    resume=Resume.PINNED,
    trigger="push",
    payload={},
    event={},
    actor="ada",
    actor_id="usr_ada",
    trusted=True,
    created_ms=1_000,
    state=RunState.QUEUED,
    reason=None,
    last_seq=1,
    fence=0,
    worker=None,
    lease_until_ms=None,
    ready_ms=1_000,
    waits=(),
    started_ms=None,
    ended_ms=None,
    output=None,
    error=None,
    pause_requested=False,
    cancel_requested=False,
    timeout_ms=None,
)

DO_CONFIG: Mapping[str, Json] = {
    "retries": {"limit": 2, "delay_ms": 10_000, "backoff": "exponential"},
    "timeout_ms": 600_000,
    "sensitive": False,
    "rollback": False,
}


@dataclass
class Journal:
    """Entries, and what the last append made of the run's row."""

    run: Run = RUN
    now_ms: int = 1_000
    entries: list[Entry] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    row: RunUpdate | None = None

    def __post_init__(self) -> None:
        if not self.entries:
            self.add(EntryKind.RUN_CREATED, {"commit": COMMIT})

    def add(self, kind: EntryKind, data: Mapping[str, Json] | None = None) -> None:
        self.entries.append(Entry(len(self.entries) + 1, kind, self.now_ms, data or {}))

    def claim(self) -> Journal:
        """Lease the run and settle, as a worker does."""
        self.add(EntryKind.RUN_CLAIMED, {"worker": "w", "fence": 1})
        self.decide(settle)
        return self

    def lose(self) -> Journal:
        self.add(EntryKind.LEASE_EXPIRED, {"worker": "w"})
        return self

    def suspend(self) -> Journal:
        view = self.view
        self.write(view, Decision(view.seq, (Draft(EntryKind.RUN_SUSPENDED),)))
        return self

    def ask(self, *commands: Command, on_divergence: str = "accept") -> list[Entry]:
        """What a guest's `next` does; answers the new entries."""
        before = len(self.entries)
        self.decide(
            lambda view, now_ms: (
                accept(view, commands, now_ms, limits=LIMITS, on_divergence=on_divergence)
                + settle_if_alive(view, now_ms)
            )
        )
        return self.entries[before:]

    def decide(self, decider: Callable[[RunView, int], Decision]) -> Decision:
        view = self.view
        decision = decider(view, self.now_ms)
        if decision:
            assert propose(view, decision, self.now_ms).expected_seq == len(self.entries)
            self.row = propose(view, decision, self.now_ms).update
            drafts = decision.drafts
            self.entries += [
                Entry(seq, d.kind, self.now_ms, d.data, d.key, d.attempt)
                for seq, d in enumerate(drafts, len(self.entries) + 1)
            ]
            self.effects += decision.effects
        return decision

    def write(self, view: RunView, decision: Decision) -> None:
        """Write drafts that no decision made."""
        base = len(self.entries)
        for seq, draft in enumerate(decision.drafts, base + 1):
            self.entries.append(Entry(seq, draft.kind, self.now_ms, draft.data))
        self.row = propose(self.view, Decision(base), self.now_ms).update

    @property
    def view(self) -> RunView:
        return fold(self.run, self.entries)

    @property
    def state(self) -> RunState:
        """As people see it, after the last append."""
        assert self.row is not None
        return self.row.state

    @property
    def ready_ms(self) -> int | None:
        assert self.row is not None
        return self.row.ready_ms

    @property
    def kinds(self) -> list[str]:
        return [entry.kind.value for entry in self.entries]

    def kinds_of(self, key: StepKey) -> list[str]:
        return [entry.kind.value for entry in self.entries if entry.key == key]


def settle_if_alive(view: RunView, now_ms: int) -> Decision:
    return settle(view, now_ms) if view.leased else Decision(view.seq)


def run_with(**changes: Json) -> Run:
    return replace(RUN, **changes)


def do(name: str, occurrence: int = 1) -> StepKey:
    return StepKey(StepKind.DO, name, occurrence)


def start_do(name: str, occurrence: int = 1, **config: Json) -> StartStep:
    return StartStep(do(name, occurrence), {**DO_CONFIG, **config})


def start_sleep(name: str, duration_ms: int) -> StartStep:
    return StartStep(StepKey(StepKind.SLEEP, name), {"duration_ms": duration_ms})


def start_wait(name: str, type: str, timeout_ms: int | None = None) -> StartStep:
    return StartStep(StepKey(StepKind.WAIT, name), {"type": type, "timeout_ms": timeout_ms})


def start_sh(name: str, **config: Json) -> StartStep:
    return StartStep(StepKey(StepKind.SH, name), {"script": "true", **config})


def start_approval(name: str, required: int = 1, timeout_ms: int | None = None) -> StartStep:
    config = {
        "approvers": [],
        "required": required,
        "allow_self": False,
        "form": None,
        "timeout_ms": timeout_ms,
        "environment": None,
    }
    return StartStep(StepKey(StepKind.APPROVAL, name), config)


def passed(name: str, value: Json = None, attempt: int = 1) -> FinishAttempt:
    return FinishAttempt(do(name), attempt, value)


def row(journal: Journal) -> RunUpdate:
    assert journal.row is not None
    return journal.row


def shown(journal: Journal) -> RunState:
    """`journal.state`, in a form that a type checker does not take for constant."""
    return row(journal).state
