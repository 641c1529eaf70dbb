"""One activation: a leased run, its view, and what its code asks of the world.

The session is the ActivationHost that the sandbox talks to. It turns each `next` into one append,
optimistically: when people or commands have written to the journal meanwhile, it folds again and
decides again. It ends when the lease is let go, by a suspension, a pause, or the run's end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TypeAlias

from ci_platform.engine import Child, Decision, Pen, RunView, accept, fold, propose, refused, settle
from ci_platform.errors import InternalError, LeaseLost, PipelineError
from ci_platform.model import (
    RUN_LOG,
    AbandonStep,
    Command,
    Draft,
    Entry,
    EntryKind,
    FinishAttempt,
    Json,
    NoteDivergence,
    StartStep,
    StepKey,
    StepKind,
)
from ci_platform.ports import Claim
from ci_platform.ports.granting import Ask, Grant
from ci_platform.worker.lines import Spool, StepLog
from ci_platform.worker.settings import Tools

ASKS_MAX = 10_000  # uses of self.env in one activation
CHILDREN_MAX = 1_000  # runs that one run may start
APPENDS_MAX = 100  # refused appends in a row: someone floods the run's journal
NAMES_MAX = 20  # of steps that a run_suspended entry tells of
PRINTED_MAX = 16 << 20  # bytes printed by one activation to one log

_MOVES_CODE = frozenset({EntryKind.STEP_PASSED, EntryKind.STEP_FAILED, EntryKind.ATTEMPT_STARTED})
Decider: TypeAlias = Callable[[RunView, int], Decision]


class Crowded(InternalError):
    """Others write to the run's journal faster than this worker can."""


class Over(InternalError):
    """The code went on after its lease was let go; its sandbox is dropped."""


class Session:
    """Implements `ActivationHost` for one claim."""

    def __init__(self, tools: Tools, spool: Spool, claim: Claim) -> None:
        self._tools = tools
        self._spool = spool
        self._fence = claim.run.fence
        self._logs: dict[str, StepLog] = {}
        self._trial: str | None = None
        self.run = claim.run
        self.entries = list(claim.entries)
        self.view = fold(claim.run, self.entries)
        self.known = 0  # how many entries the guest has
        self.reached = False  # the code has replayed its journal and asked for more
        self.on_divergence = "accept"
        self.commit = claim.run.commit  # of the code that executes
        self._asked = 0
        self._children: dict[StepKey, Child] = {}
        self._held: Sequence[Command] = ()  # about steps that a pause kept from starting

    @property
    def over(self) -> bool:
        """The lease is let go: nothing more can be written."""
        return not self.view.leased

    def begin(self, trial: str | None, on_divergence: str) -> None:
        """A guest starts with all entries of now. `trial` becomes the run's commit as soon as its
        code has shown that it can replay the journal."""
        self.known = len(self.entries)
        self.reached = False
        self._trial = trial
        self._held = ()
        self.on_divergence = on_divergence

    def settle(self) -> None:
        """Write what time has brought."""
        self.write(settle)

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        """See ActivationHost. Raises LeaseLost when the run is another's now, Over after its
        end."""
        if self.over:
            raise Over
        commands = _joined(self._held, commands)
        self.write(lambda view, now_ms: self._decide(view, commands, now_ms), ends=_ends(commands))
        self._held = [
            each
            for each in commands
            if isinstance(each, StartStep | FinishAttempt) and each.key not in self.view.steps
        ]
        self.reached = True
        self._trial = None
        fresh = self.entries[self.known :]
        self.known = len(self.entries)
        return () if self.over else fresh

    def _start_children(self, view: RunView, commands: Sequence[Command]) -> None:
        """Create the runs that steps start, before these steps are journaled: their ids belong to
        the steps, so that they are found again if this worker does not live to write that down."""
        start = self._tools.start_child
        if start is None or view.held or view.rollback is not None:
            return
        wanted = {
            each.key: each.config
            for each in commands
            if isinstance(each, StartStep) and each.key.kind is StepKind.RUN
        }
        count = sum(key.kind is StepKind.RUN for key in view.steps) if wanted else 0
        for key, config in wanted.items():
            if key not in self._children and key not in view.steps:
                count += 1
                self._children[key] = (
                    start(self.run, self.commit, key, config)
                    if count <= CHILDREN_MAX
                    else Child("", 0, f"a run may start {CHILDREN_MAX:,} runs")
                )

    def conclude(self, decide: Decider, ends: Sequence[Command] = ()) -> None:
        """Write how the activation ended, unless a pause or an end came first. `ends`: how steps
        did, which comes before."""
        held = {each.key for each in self._held}
        ends = [each for each in ends if each.key not in held]

        def concluded(view: RunView, now_ms: int) -> Decision:
            if not ends:
                return self._resolve(view, now_ms) + decide(view, now_ms)
            decision = self._accepted(view, ends, now_ms)
            return decision + decide(view, now_ms) if view.leased else decision

        if not self.over:
            self.write(concluded, ends=ends)

    def hand_back(self, why: str) -> None:
        """Let the lease go so that the run is claimed again at once."""

        def decide(view: RunView, now_ms: int) -> Decision:
            pen = Pen(view, now_ms)
            pen.write(EntryKind.LEASE_EXPIRED, {"worker": self._tools.id, "reason": why})
            return pen.decision()

        self.conclude(decide)

    def _resolve(self, view: RunView, now_ms: int) -> Decision:
        """A commit on trial has replayed the journal: it is the run's from here on."""
        pen = Pen(view, now_ms)
        if self._trial is not None:
            pen.write(EntryKind.COMMIT_RESOLVED, {"commit": self._trial})
        return pen.decision()

    def _decide(self, view: RunView, commands: Sequence[Command], now_ms: int) -> Decision:
        self._start_children(view, commands)  # here, since a pause may end between two tries
        decision = self._accepted(view, commands, now_ms)
        may_end = any(isinstance(each, NoteDivergence) for each in commands)
        if view.leased and not may_end and not view.bodies and not self._moves_code(decision):
            # The guest would come straight back with nothing to ask. Suspending in the same
            # append saves a round trip and a commit; it sees these entries when it replays.
            # Not after the commands that a guest sends when its code has come to an end.
            pen = Pen(view, now_ms)
            names = [key.label for key in islice(view.open, NAMES_MAX)]
            pen.write(EntryKind.RUN_SUSPENDED, {"waits": names})
            decision += pen.decision()
        return decision

    def _accepted(self, view: RunView, commands: Sequence[Command], now_ms: int) -> Decision:
        """What the commands decide, and what is due besides."""
        limits = self._tools.settings.limits
        decision = self._resolve(view, now_ms) + accept(
            view,
            commands,
            now_ms,
            limits=limits,
            on_divergence=self.on_divergence,
            children=self._children,
        )
        return decision + settle(view, now_ms) if view.leased else decision

    def _refused(self, error: PipelineError, ends: Sequence[Command], now_ms: int) -> Decision:
        """Fail the run, of which steps have ended nevertheless, as `ends` says."""
        self.view = fold(self.run, self.entries)  # the refused decision had moved it half-way
        try:
            decision = self._accepted(self.view, ends, now_ms)
        except PipelineError:
            return self._refused(error, (), now_ms)
        return decision + refused(self.view, error, now_ms) if self.view.leased else decision

    def _moves_code(self, decision: Decision) -> bool:
        """Whether anything that the guest does not know yet lets its code go on."""
        return any(map(_moves, self.entries[self.known :])) or any(map(_moves, decision.drafts))

    def write(self, decide: Decider, *, ends: Sequence[Command] = ()) -> None:
        """Decide and append, again and again while others are faster. When the run fails instead,
        because of what its code asks for, `ends` is written still."""
        for _ in range(APPENDS_MAX):
            now_ms = self._tools.clock.now_ms()
            try:
                decision = decide(self.view, now_ms)
            except PipelineError as error:
                decision = self._refused(error, ends, now_ms)
            if not decision:
                return
            append = propose(self.view, decision, now_ms, fence=self._fence)
            appended = self._tools.store.runs.append(append)
            self.entries += appended.entries
            if appended.applied:
                return
            self.view = fold(self.run, self.entries)
            if self.over:
                raise LeaseLost(f"{self.run.id} was ended or taken over")
        raise Crowded(f"{APPENDS_MAX} appends in a row came too late")

    # --- what the author asks for besides ---

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        """See ActivationHost. The repository is the run's own, whatever the guest says."""
        if self.over:
            raise Over
        self._asked += 1
        if self._asked > ASKS_MAX:
            return _no("TooMany", f"one activation may use self.env {ASKS_MAX:,} times")
        capabilities = self._tools.capabilities
        if capabilities is None:
            return _no("NotGranted", "self.env is not available on this worker")
        run = self.run
        grant = Grant(
            repository_id=run.repository_id,
            commit=self.commit,
            before=run.event.get("before"),
            run=run,
            body=bool(self.view.bodies),
            trusted=run.trusted,
        )
        return capabilities.ask(grant, ask)

    # --- what the author prints ---

    def log(self, step: str, stream: str, text: str) -> None:
        log = self._logs.get(step)
        if log is None:
            # A hostile guest may name any step: what is not the log of a body of this run goes to
            # the run's own, so that there are no more logs than steps.
            name = step if self._prints(step) else RUN_LOG
            log = self._logs.get(name)
            if log is None:
                log = self._logs[name] = self._spool.open(self.run.id, name)
                log.bytes_max = min(log.bytes_max, PRINTED_MAX)
        log.write(stream, text)

    def _prints(self, step: str) -> bool:
        try:
            key = StepKey.parse(step)
        except ValueError:
            return False
        return key.kind is StepKind.DO and key in self.view.steps

    def close(self) -> None:
        """Write the rest of the logs."""
        for log in self._logs.values():
            self._spool.close(log)
        self._logs.clear()


def _joined(held: Sequence[Command], commands: Sequence[Command]) -> Sequence[Command]:
    """What was held back comes first, in the order in which the code asked for it: a replay asks
    for it there. What the code has given up meanwhile is as if it had never been asked for."""
    if not held:
        return commands
    given_up = {each.key for each in commands if isinstance(each, AbandonStep)}
    given_up &= {each.key for each in held}
    return [each for each in (*held, *commands) if each.key not in given_up]


def _moves(entry: Entry | Draft) -> bool:
    if entry.kind is EntryKind.STEP_STARTED:
        return entry.key is not None and entry.key.kind is StepKind.DO  # its body executes now
    return entry.kind in _MOVES_CODE and "early_ms" not in entry.data


def _no(kind: str, message: str) -> Mapping[str, Json]:
    return {"error": {"type": kind, "message": message}}


def _ends(commands: Sequence[Command]) -> Sequence[Command]:
    return [each for each in commands if isinstance(each, FinishAttempt)]
