"""The duty of operations: claim commands, run them, stream their output, journal their results.

The worker holds the operation's lease, not the run's. A command whose lease moved on is killed and
writes nothing, neither a result nor a line of its log; one whose worker stops is handed back for
another attempt. A memoised command is looked up first, by any worker, and takes no place if its
result is known.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ci_platform.engine import (
    LOST_RETRY_MS,
    Decision,
    RunView,
    command_finished,
    command_lost,
    command_started,
    fold,
    propose,
)
from ci_platform.errors import (
    InternalError,
    LeaseLost,
    RunNotFound,
    SluiceError,
    StoreUnavailable,
)
from ci_platform.model import Operation
from ci_platform.ports.logs import Held
from ci_platform.shell import CommandResult, CommandSpec
from ci_platform.worker.holding import Holding
from ci_platform.worker.lines import Spool, StepLog
from ci_platform.worker.memory import (
    Recall,
    recall,
    remember,
    taken,
    tell,
    with_caches,
    with_policy,
)
from ci_platform.worker.settings import Tools
from ci_platform.worker.strays import Strays

APPENDS_MAX = 100  # refused appends in a row
STOP_POLL_MS = 500  # between two looks at whether the command is still wanted
SAID_SECONDS = 0.1  # a command that was ended after less has hardly run

_log = logging.getLogger(__name__)
Decider = Callable[[RunView, int], Decision | None]


@dataclass(slots=True)
class Watch:
    """Whether a running command should stop, and why."""

    tools: Tools
    operation: Operation
    draining: threading.Event
    unwanted: bool = False  # its step or run has ended
    _looked_ms: int = field(init=False)
    _held_ms: int = field(init=False)  # when the lease was known to be ours

    def __post_init__(self) -> None:
        self._looked_ms = self._held_ms = self.tools.clock.now_ms()

    def stop(self) -> bool:
        """Polled by the runner. Raises LeaseLost, at which it kills the command at once: another
        worker may be running it again."""
        now_ms = self.tools.clock.now_ms()
        if now_ms - self._looked_ms >= STOP_POLL_MS and not self.unwanted:
            self._looked_ms = now_ms
            self._look(now_ms)
        return self.unwanted or self.draining.is_set()

    def _look(self, now_ms: int) -> None:
        try:
            row = self.tools.store.operations.get(self.operation.id)
        except StoreUnavailable as error:
            if now_ms - self._held_ms > self.tools.settings.lease_ms:
                raise LeaseLost(f"{self.operation.id}: not renewed, the store is away") from error
            _log.warning("%s: cannot look at its row: %s", self.operation.id, error)
            return
        if row is None or row.fence != self.operation.fence or row.worker != self.tools.id:
            raise LeaseLost(f"{self.operation.id} has gone to another worker")
        self._held_ms = now_ms
        self.unwanted = row.stop


class Operations:
    """Claims commands and runs them. `execute` is safe to call from several threads."""

    def __init__(self, tools: Tools, spool: Spool, strays: Strays, holding: Holding) -> None:
        self._tools = tools
        self._spool = spool
        self._strays = strays
        self._holding = holding
        self.draining = threading.Event()  # set: commands stop and are handed back
        self.obstacle: str | None = None  # why no command is claimed

    def run_once(self) -> int:
        """Run what is due now, one after the other. Returns how many commands that was."""
        known = self.claim(self._tools.settings.recalls_max, recall=True)
        for operation in known:
            self.recall(operation)
        claimed = self.claim(self._tools.settings.operations_max)
        for operation in claimed:
            self.execute(operation)
        return len(known) + len(claimed)

    def claim(self, limit: int, *, recall: bool = False) -> list[Operation]:
        tools = self._tools
        if not recall and self._is_blocked():
            return []
        claimed = tools.store.operations.claim(
            tools.id,
            limit=limit,
            lease_ms=tools.settings.lease_ms,
            labels=tools.labels,
            recall=recall,
        )
        for operation in claimed:
            self._holding.take(operation)
        return claimed

    def _is_blocked(self) -> bool:
        """Whether commands had better wait, for another worker or for this one. Said once."""
        obstacle = self._tools.runner.obstacle()
        if obstacle is not None and self.obstacle is None:
            _log.warning("no command is started: %s", obstacle)
        self.obstacle = obstacle
        return obstacle is not None

    def execute(self, operation: Operation) -> None:
        """Run a claimed command. Never raises: whatever happens, the worker goes on."""
        self._safely(operation, self._execute)

    def recall(self, operation: Operation) -> None:
        """Give a memoised command the result that an earlier run came to, or pass it on to the
        workers that can run it. Never raises."""
        self._safely(operation, self._recall)

    def _safely(self, operation: Operation, work: Callable[[Operation], None]) -> None:
        try:
            work(operation)
        except LeaseLost as lost:
            _log.info("%s: let go: %s", operation.id, lost)
        except RunNotFound:
            _log.info("%s: its run is gone", operation.id)
        except InternalError as error:
            _log.warning("%s: the operation was cut short: %s", operation.id, error)
            self._stray(operation)
        except Exception:  # a bug of ours must not cost the worker all its commands
            _log.exception("%s: the operation failed", operation.id)
            self._stray(operation)
        finally:
            self._holding.drop(operation)

    def _stray(self, operation: Operation) -> None:
        why = "the operation was cut short"

        def give_back() -> None:
            self._write(operation, lambda view, now_ms: command_lost(view, operation, why, now_ms))

        self._strays.add(operation, give_back, failures=operation.attempt)

    def _execute(self, operation: Operation) -> None:
        if operation.lost_worker is not None:
            # It never said how it ended: the attempt is lost, and the next one is a new operation.
            why = f"worker {operation.lost_worker} was lost during attempt {operation.attempt}"
            with self._log(operation) as log:
                self._lost(operation, log, why, 0)
        elif self._begin(operation):
            with self._log(operation) as log:
                self._run(operation, log)
            self._seal(operation)

    @contextmanager
    def _log(self, operation: Operation) -> Iterator[StepLog]:
        """The log of a held command, in which nobody writes who does not hold it."""
        held = Held(operation.id, operation.fence)
        log = self._spool.open(operation.run_id, str(operation.key), held=held)
        try:
            yield log
        finally:
            self._spool.close(log)

    def _recall(self, operation: Operation) -> None:
        tools = self._tools
        spec = CommandSpec(**operation.spec)
        known = None
        try:
            known = None if operation.stop else recall(tools, operation, spec)
        except InternalError as error:  # this machine cannot say; those that can run it, can
            _log.warning("%s: its result cannot be looked for: %s", operation.id, error)
        if known is None or known.memo is None:
            self._pass_on(operation)
        elif self._begin(operation):
            with self._log(operation) as log:
                self._take(operation, spec, known, log)
            self._seal(operation)

    def _pass_on(self, operation: Operation) -> None:
        operations = self._tools.store.operations
        try:
            operations.pass_on(operation)
        except LeaseLost:  # or nobody waits for it
            operations.close(operation.id, fence=operation.fence)
            raise

    def _take(self, operation: Operation, spec: CommandSpec, known: Recall, log: StepLog) -> None:
        """Let the step end as the memo says."""
        tools = self._tools
        assert known.memo is not None and known.result is not None
        told = tell(tools, known.memo, log)
        log.close()
        if self._finished(operation, known.result) and spec.trusted:
            taken(tools, operation, known, told)

    def _seal(self, operation: Operation) -> None:
        """Move the log out of the database. If that fails it stays there, which is no harm."""
        try:
            self._tools.store.logs.seal(operation.run_id, str(operation.key))
        except SluiceError as error:
            _log.warning("%s: its log stays in the database: %s", operation.id, error)

    def _begin(self, operation: Operation) -> bool:
        """Journal that an attempt begins. The first one's entry was there before its operation, and
        a step that ended since would have taken the operation along."""
        if operation.attempt == 1 and not operation.stop:
            return True
        return self._write(operation, lambda view, now_ms: command_started(view, operation, now_ms))

    def _run(self, operation: Operation, log: StepLog) -> None:
        tools = self._tools
        watch = Watch(tools, operation, self.draining)
        if operation.attempt > 1:
            log.note(f"attempt {operation.attempt}")
        try:
            spec = with_caches(tools, operation, CommandSpec(**operation.spec))
            recalled = recall(tools, operation, spec)
            if recalled and recalled.memo:  # meanwhile somebody else has run it
                self._take(operation, spec, recalled, log)
                return
            asked = with_policy(tools, operation, spec)
            result = tools.runner.run(asked, output=log.write, stop=watch.stop)
        except LeaseLost:
            raise
        except InternalError as error:
            _log.warning("%s: could not run: %s", operation.id, error)
            self._lost(operation, log, f"the command could not be run: {error}", LOST_RETRY_MS)
            return
        if self.draining.is_set() and not watch.unwanted and result.ended == "cancelled":
            self._lost(operation, log, f"worker {tools.id} was stopped", 0)
            return
        if said := ending(result):
            log.note(said)
        log.close()  # the whole log is there before the step has ended
        if self._finished(operation, result):
            remember(tools, operation, spec, recalled, result)

    def _finished(self, operation: Operation, result: CommandResult) -> bool:
        """Journal a result. False: nothing waits for it any more."""
        tools = self._tools
        return self._write(
            operation,
            lambda view, now_ms: command_finished(
                view,
                operation,
                result,
                now_ms,
                limits=tools.settings.limits,
                collision=tools.runner.collision,
            ),
        )

    def _lost(self, operation: Operation, log: StepLog, why: str, delay_ms: int) -> None:
        log.note(why)
        log.close()
        self._write(
            operation,
            lambda view, now_ms: command_lost(view, operation, why, now_ms, delay_ms=delay_ms),
        )

    def _write(self, operation: Operation, decide: Decider) -> bool:
        """Decide and append until it holds. False: nothing waits for this command any more."""
        tools = self._tools
        runs = tools.store.runs
        for _ in range(APPENDS_MAX):
            run = runs.get(operation.run_id)
            view = fold(run, runs.journal(operation.run_id))
            now_ms = tools.clock.now_ms()
            decision = decide(view, now_ms)
            if decision is None:
                tools.store.operations.close(operation.id, fence=operation.fence)
                return False
            if not decision or runs.append(propose(view, decision, now_ms)).applied:
                return True
        raise InternalError(f"{APPENDS_MAX} appends in a row came too late")


def ending(result: CommandResult) -> str:
    """The last line of a command's log; none after a success, which the step's own end tells, nor
    after a refusal. Why a command was ended, its runner has said in the log."""
    seconds = result.duration_ms / 1000
    if result.ended is not None:
        return f"ended after {seconds:.1f} s" if seconds >= SAID_SECONDS else ""
    return f"exited with code {result.exit_code} after {seconds:.1f} s" if result.exit_code else ""
