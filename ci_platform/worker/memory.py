"""Memoised commands: finding what an earlier run came to, and keeping what this one did.

A memo is looked for under the run's own ref, then under the default branch; it is kept under the
run's own ref. So no branch can plant a result for another one, and untrusted code plants none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ci_platform.model import Json, LogLine, Memo, Operation
from ci_platform.ports import CommandResult, CommandSpec
from ci_platform.worker.lines import NOTE, StepLog
from ci_platform.worker.settings import Tools

LOG_LINES_MAX = 10_000  # of an earlier run's log, told again
_PAGE_LINES = 1_000
_KEPT = ("exit_code", "outputs", "output_tail", "layer", "duration_ms")


@dataclass(frozen=True, slots=True)
class Recall:
    """A memoised command's key, and what is known of it."""

    spec: CommandSpec
    cache: Mapping[str, Json]
    key: str
    memo: Memo | None

    @property
    def result(self) -> CommandResult | None:
        if self.memo is None:
            return None
        known = {name: self.memo.result[name] for name in _KEPT}
        return CommandResult(ended=None, detail="", from_run=self.memo.number, **known)


def recall(tools: Tools, operation: Operation, spec: CommandSpec) -> Recall | None:
    """What is known of a command; None if it is not memoised. Raises InternalError."""
    if spec.cache is None:
        return None
    repository_id = operation.repository_id
    key = tools.runner.fingerprint(spec)
    scopes = list(dict.fromkeys([spec.cache["ref"], tools.source.default_ref(repository_id)]))
    return Recall(spec, spec.cache, key, tools.store.memos.find(repository_id, scopes, key))


def tell(tools: Tools, memo: Memo, log: StepLog) -> None:
    """Write the log of the step that a memo is of, the last of it if it is long."""
    log.note(f"from run #{memo.number}: nothing that this command depends on has changed")
    logs = tools.store.logs
    last = logs.last(memo.run_id, memo.step)
    after = max(0, last - LOG_LINES_MAX)
    if after:
        log.note(f"the first {after:,} lines are in run #{memo.number}")
    while lines := logs.read(memo.run_id, memo.step, after=after, limit=_PAGE_LINES):
        for line in lines:
            _say(log, line)
        after = lines[-1].number


def _say(log: StepLog, line: LogLine) -> None:
    if line.stream == NOTE:
        log.note(line.text)
    else:
        log.write(line.stream, line.text + "\n")


def remember(
    tools: Tools, operation: Operation, recalled: Recall | None, result: CommandResult
) -> None:
    """Keep the result of a memoised command that has just passed, for later runs."""
    if recalled is None or recalled.memo is not None or not recalled.spec.trusted:
        return
    if result.ended is not None or result.exit_code != 0:
        return
    whole = asdict(result)
    memo = Memo(operation.run_id, 0, str(operation.key), {name: whole[name] for name in _KEPT})
    ref = recalled.cache["ref"]
    tools.store.memos.put(operation.repository_id, ref, recalled.key, memo)
