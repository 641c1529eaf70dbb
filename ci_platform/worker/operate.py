"""The duty of operations: claim commands, run them, stream their output, journal their results.

The worker holds the operation's lease, not the run's. A command whose lease moved on writes
nothing; one whose worker stops is handed back for another attempt.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
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
from ci_platform.shell import CommandResult, CommandSpec
from ci_platform.worker.holding import Holding
from ci_platform.worker.lines import Spool, StepLog
from ci_platform.worker.memory import recall, remember, tell, with_caches
from ci_platform.worker.settings import Tools
from ci_platform.worker.strays import Strays

APPENDS_MAX = 100  # refused appends in a row
STOP_POLL_MS = 500  # between two looks at whether the command is still wanted

_log = logging.getLogger(__name__)
Decider = Callable[[RunView, int], Decision | None]


@dataclass(slots=True)
class Watch:
    """Whether a running command should stop, and why."""

    tools: Tools
    operation: Operation
    draining: threading.Event
    lost: bool = False  # the lease has moved on
    unwanted: bool = False  # its step or run has ended
    _looked_ms: int = field(default=0)

    def stop(self) -> bool:
        """Polled by the runner."""
        now_ms = self.tools.clock.now_ms()
        if now_ms - self._looked_ms >= STOP_POLL_MS and not (self.lost or self.unwanted):
            self._looked_ms = now_ms
            self._look()
        return self.lost or self.unwanted or self.draining.is_set()

    def _look(self) -> None:
        try:
            row = self.tools.store.operations.get(self.operation.id)
        except StoreUnavailable as error:  # the lease may yet be ours
            _log.warning("%s: cannot look at its row: %s", self.operation.id, error)
            return
        if row is None or row.fence != self.operation.fence or row.worker != self.tools.id:
            self.lost = True
        elif row.stop:
            self.unwanted = True


class Operations:
    """Claims commands and runs them. `execute` is safe to call from several threads."""

    def __init__(self, tools: Tools, spool: Spool, strays: Strays, holding: Holding) -> None:
        self._tools = tools
        self._spool = spool
        self._strays = strays
        self._holding = holding
        self.draining = threading.Event()  # set: commands stop and are handed back

    def run_once(self) -> int:
        """Run what is due now, one after the other. Returns how many commands that was."""
        claimed = self.claim(self._tools.settings.operations_max)
        for operation in claimed:
            self.execute(operation)
        return len(claimed)

    def claim(self, limit: int) -> list[Operation]:
        tools = self._tools
        claimed = tools.store.operations.claim(
            tools.id, limit=limit, lease_ms=tools.settings.lease_ms
        )
        for operation in claimed:
            self._holding.take(operation)
        return claimed

    def execute(self, operation: Operation) -> None:
        """Run a claimed command. Never raises: whatever happens, the worker goes on."""
        try:
            self._execute(operation)
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
        if operation.fence > 1:
            # Claimed before, and that worker never said how it ended: the attempt is lost, and
            # the next one is a new operation, with a log that says so.
            message = f"the worker was lost during attempt {operation.attempt}"
            self._write(
                operation, lambda view, now_ms: command_lost(view, operation, message, now_ms)
            )
            return
        if not self._begin(operation):
            return
        log = self._spool.open(operation.run_id, str(operation.key))
        try:
            self._run(operation, log)
        finally:
            self._spool.close(log)
        self._seal(operation)

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
        watch = Watch(tools, operation, self.draining, _looked_ms=tools.clock.now_ms())
        if operation.attempt > 1:
            log.note(f"attempt {operation.attempt}")
        try:
            spec = with_caches(tools, operation, CommandSpec(**operation.spec))
            recalled = recall(tools, operation, spec)
            result = recalled.result if recalled else None
            if recalled and recalled.memo and result:
                tell(tools, recalled.memo, log)
            else:
                result = tools.runner.run(spec, output=log.write, stop=watch.stop)
        except InternalError as error:
            _log.warning("%s: could not run: %s", operation.id, error)
            self._lost(operation, log, f"the command could not be run: {error}", LOST_RETRY_MS)
            return
        if watch.lost:
            raise LeaseLost(f"{operation.id} has gone to another worker")
        if self.draining.is_set() and not watch.unwanted and result.ended == "cancelled":
            self._lost(operation, log, "the worker was stopped", 0)
            return
        if result.from_run is None:
            log.note(ending(result))
        log.close()  # the whole log is there before the step has ended
        limits = tools.settings.limits
        wanted = self._write(
            operation,
            lambda view, now_ms: command_finished(
                view,
                operation,
                result,
                now_ms,
                limits=limits,
                collision=tools.runner.collision,
            ),
        )
        if wanted:
            remember(tools, operation, spec, recalled, result)

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
    """The last line of a command's log."""
    seconds = result.duration_ms / 1000
    if result.ended is not None:
        return f"{result.detail or result.ended} after {seconds:.1f} s"
    return f"exited with code {result.exit_code} after {seconds:.1f} s"
