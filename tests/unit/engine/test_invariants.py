"""What must hold of every journal, whatever a guest, people, workers and time do to it.

Random moves are played against a journal; after each, the invariants are checked. Hypothesis
prints the moves of a failure, and shrinks them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ci_platform.effects import CloseOperation, OpenOperation, StopOperations
from ci_platform.engine import (
    Answer,
    accept,
    cancel,
    command_finished,
    command_lost,
    command_started,
    decided,
    event_sent,
    fold,
    pause,
    propose,
    resume,
    settle,
    update,
)
from ci_platform.engine.decision import Decision
from ci_platform.engine.fold import RunView
from ci_platform.errors import RequestError
from ci_platform.model import (
    AbandonStep,
    Command,
    Draft,
    Entry,
    EntryKind,
    ErrorInfo,
    FinishAttempt,
    Operation,
    OperationState,
    RunState,
    StepKey,
    StepKind,
    StepState,
    WorkerId,
)
from ci_platform.shell import CommandResult
from tests.unit.engine.journal import (
    COMMIT,
    LIMITS,
    NO_COLLISION,
    RUN,
    run_with,
    start_approval,
    start_do,
    start_sh,
    start_sleep,
    start_wait,
)

NAMES = st.sampled_from(["a", "b", "c"])
TYPES = st.sampled_from(["go", "stop"])
SHORT_MS = st.integers(1, 30_000)
RESULTS = st.sampled_from([(0, None), (1, None), (None, "timeout")])


class JournalMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run = run_with(timeout_ms=3_600_000)
        self.now_ms = 1_000
        self.entries: list[Entry] = []
        self.operations: dict[str, Operation] = {}
        self.row = update(self._added(EntryKind.RUN_CREATED, {"commit": COMMIT}), self.now_ms)

    # --- the world ---

    def _added(self, kind: EntryKind, data: dict[str, str] | None = None) -> RunView:
        self.entries.append(Entry(len(self.entries) + 1, kind, self.now_ms, data or {}))
        return self.view

    @property
    def view(self) -> RunView:
        return fold(self.run, self.entries)

    def decide(self, decide: Callable[[RunView, int], Decision | None]) -> bool:
        view = self.view
        decision = decide(view, self.now_ms)
        if not decision:
            return decision is not None
        assert decision.expected_seq == len(self.entries)
        self.entries += [
            Entry(seq, d.kind, self.now_ms, d.data, d.key, d.attempt)
            for seq, d in enumerate(decision.drafts, len(self.entries) + 1)
        ]
        self.row = propose(view, decision, self.now_ms).update
        assert view == self.view, "a decision moves its view as folding would"
        assert self.row == update(self.view, self.now_ms)
        for effect in decision.effects:
            match effect:
                case OpenOperation():
                    self._open(effect)
                case CloseOperation():
                    del self.operations[effect.id]
                case StopOperations(key):
                    for id in [i for i, o in self.operations.items() if key in (None, o.key)]:
                        del self.operations[id]
        return True

    def _open(self, effect: OpenOperation) -> None:
        assert effect.id not in self.operations
        self.operations[effect.id] = Operation(
            id=effect.id,
            run_id=RUN.id,
            repository_id=RUN.repository_id,
            key=effect.key,
            attempt=effect.attempt,
            spec=effect.spec,
            state=OperationState.QUEUED,
            fence=0,
            worker=WorkerId("w"),
            lease_until_ms=0,
            ready_ms=effect.ready_ms,
            stop=False,
        )

    def ask(self, *commands: Command) -> None:
        def both(view: RunView, now_ms: int) -> Decision:
            decision = accept(view, commands, now_ms, limits=LIMITS)
            return decision + settle(view, now_ms) if view.leased else decision

        self.decide(both)

    def next_key(self, kind: StepKind, name: str) -> StepKey:
        count = sum((k.kind, k.name) == (kind, name) for k in self.view.steps)
        return StepKey(kind, name, count + 1)

    # --- moves ---

    @rule(ms=st.sampled_from([0, 1, 500, 10_000, 40_000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @precondition(lambda self: self.row.ready_ms is not None)
    @rule()
    def a_worker_claims(self) -> None:
        if self.view.leased or self.row.ready_ms is None or self.row.ready_ms > self.now_ms:
            return
        self._added(EntryKind.RUN_CLAIMED)
        self.row = update(self.view, self.now_ms)
        self.decide(settle)

    @precondition(lambda self: self.view.leased)
    @rule()
    def the_worker_is_lost(self) -> None:
        self.row = update(self._added(EntryKind.LEASE_EXPIRED), self.now_ms)

    @precondition(lambda self: self.view.leased and not self.view.bodies)
    @rule()
    def the_code_suspends(self) -> None:
        def suspend(view: RunView, now_ms: int) -> Decision:
            first = settle(view, now_ms)
            if first or not view.leased:
                return first
            view.apply(Entry(view.seq + 1, EntryKind.RUN_SUSPENDED, now_ms))
            return Decision(first.expected_seq, (Draft(EntryKind.RUN_SUSPENDED),))

        self.decide(suspend)

    @precondition(lambda self: self.view.leased)
    @rule(name=NAMES, type=TYPES, ms=SHORT_MS, which=st.integers(0, 4))
    def the_code_starts_a_step(self, name: str, type: str, ms: int, which: int) -> None:
        command = (
            start_do(name),
            start_sleep(name, ms),
            start_wait(name, type, ms),
            start_approval(name, required=2, timeout_ms=ms),
            start_sh(name, retries={"limit": 1, "delay_ms": ms, "backoff": "constant"}),
        )[which]
        key = self.next_key(command.key.kind, name)
        self.ask(type_of(command)(key, command.config))

    @precondition(lambda self: self.view.leased and self.view.bodies)
    @rule(fails=st.booleans())
    def a_body_ends(self, fails: bool) -> None:
        step = next(iter(self.view.bodies.values()))
        error = ErrorInfo("OSError", "flaky") if fails else None
        self.ask(FinishAttempt(step.key, step.attempt, 1, error))

    @precondition(lambda self: self.view.leased and self.view.open)
    @rule()
    def the_code_gives_a_step_up(self) -> None:
        self.ask(AbandonStep(next(iter(self.view.open))))

    @precondition(lambda self: self.operations)
    @rule(result=RESULTS, lost=st.booleans())
    def a_command_executes(self, result: tuple[int | None, str | None], lost: bool) -> None:
        operation = next(iter(self.operations.values()))
        if operation.ready_ms > self.now_ms:
            return
        began = self.decide(lambda view, now: command_started(view, operation, now))
        if not began:
            del self.operations[operation.id]
            return
        code, ended = result
        outcome = CommandResult(code, ended, "", {}, "", "layer", 1)
        if lost:
            assert self.decide(lambda view, now: command_lost(view, operation, "gone", now))
        else:
            assert self.decide(
                lambda view, now: command_finished(
                    view, operation, outcome, now, limits=LIMITS, collision=NO_COLLISION
                )
            )

    @rule(type=TYPES)
    def somebody_sends_an_event(self, type: str) -> None:
        self._outside(lambda view, now: event_sent(view, type, None, "ada", now, limits=LIMITS))

    @rule(name=NAMES, user=NAMES, approve=st.booleans())
    def somebody_answers(self, name: str, user: str, approve: bool) -> None:
        answer = Answer(user, user, "approve" if approve else "reject")
        key = StepKey(StepKind.APPROVAL, name)
        self._outside(lambda view, now: decided(view, key, answer, now))

    @rule()
    def somebody_pauses(self) -> None:
        self._outside(lambda view, now: pause(view, "ada", now))

    @rule()
    def somebody_resumes(self) -> None:
        self._outside(lambda view, now: resume(view, "ada", now))

    @precondition(lambda self: len(self.entries) > 20)
    @rule()
    def somebody_cancels(self) -> None:
        self._outside(lambda view, now: cancel(view, "ada", now))

    def _outside(self, decide: Callable[[RunView, int], Decision]) -> None:
        with contextlib.suppress(RequestError):  # refused: nothing is written
            self.decide(decide)

    # --- invariants ---

    @invariant()
    def an_event_is_consumed_at_most_once(self) -> None:
        consumed = [e.data["event"] for e in self.entries if e.data.get("event") is not None]
        assert len(consumed) == len(set(consumed))

    @invariant()
    def no_wait_of_a_type_is_pending_while_an_event_of_it_is_kept(self) -> None:
        view = self.view
        for type, pending in view.waiting.items():
            assert not (pending and view.events.get(type))

    @invariant()
    def an_ended_run_holds_nothing(self) -> None:
        view = self.view
        if view.terminal:
            assert not view.open and not view.bodies and not view.commands and not self.operations
            assert (self.row.ready_ms, self.row.waits, self.row.hold) == (None, (), False)

    @invariant()
    def every_open_command_has_an_operation_unless_a_pause_took_it_back(self) -> None:
        view = self.view
        queued = {(operation.key, operation.attempt) for operation in self.operations.values()}
        for step in view.open.values():
            if step.key.kind is StepKind.SH:
                attempt = step.attempt + 1 if step.retrying else step.attempt
                assert (step.key, attempt) in queued or (view.held and step.retrying)

    @invariant()
    def a_run_sleeps_only_if_something_will_wake_it(self) -> None:
        view = self.view
        if view.terminal or view.leased or view.state is RunState.PAUSED:
            return
        if self.row.ready_ms is None:
            kinds = {step.key.kind for step in view.open.values() if not step.ended}
            waits = kinds & {StepKind.WAIT, StepKind.APPROVAL}
            assert view.commands or self.operations or waits or not view.open
        if any(step.state is StepState.RUNNING for step in view.bodies.values()):
            assert self.row.ready_ms is not None

    @invariant()
    def entries_are_numbered_without_holes(self) -> None:
        assert [entry.seq for entry in self.entries] == list(range(1, len(self.entries) + 1))


def type_of(command: Command) -> Callable[..., Command]:
    return type(command)


JournalMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestJournals = JournalMachine.TestCase
