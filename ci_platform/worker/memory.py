"""Memoised commands: finding what an earlier run came to, and keeping what this one did.

A memo is looked for under the run's own ref, then under the default branch; it is kept under the
run's own ref. So no branch can plant a result for another one, and untrusted code plants none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ci_platform.model import LogLine, Operation
from ci_platform.shell import CommandResult, CommandSpec, Memo
from ci_platform.worker.lines import NOTE, StepLog
from ci_platform.worker.settings import Tools

LOG_LINES_MAX = 10_000  # of an earlier run's log, told again
_DIRECTORY = "directory "  # begins the key of a cache directory
_PAGE_LINES = 1_000
_KEPT = ("exit_code", "outputs", "output_tail", "layer", "duration_ms", "artifacts")


@dataclass(frozen=True, slots=True)
class Recall:
    """A memoised command's key, and what is known of it."""

    spec: CommandSpec
    key: str
    memo: Memo | None

    @property
    def result(self) -> CommandResult | None:
        if self.memo is None:
            return None
        known = {name: self.memo.result[name] for name in _KEPT if name in self.memo.result}
        return CommandResult(ended=None, detail="", from_run=self.memo.number, **known)


def recall(tools: Tools, operation: Operation, spec: CommandSpec) -> Recall | None:
    """What is known of a command; None if it is not memoised. Raises InternalError."""
    if spec.cache is None:
        return None
    repository_id = operation.repository_id
    key = tools.runner.fingerprint(spec)
    found = tools.store.memos.find(repository_id, scopes(tools, operation, spec), key)
    return Recall(spec, key, found)


def scopes(tools: Tools, operation: Operation, spec: CommandSpec) -> list[str]:
    """Whose results a command may read, its own first."""
    return list(dict.fromkeys([spec.ref, tools.source.default_ref(operation.repository_id)]))


def with_caches(tools: Tools, operation: Operation, spec: CommandSpec) -> CommandSpec:
    """The command, knowing what its cache directories shall hold."""
    if not spec.cache_dirs:
        return spec
    own, memos = scopes(tools, operation, spec), tools.store.memos
    found = {
        name: memos.find(operation.repository_id, own, _DIRECTORY + name)
        for name in spec.cache_dirs
    }
    return replace(
        spec, cached={name: memo.result["digest"] for name, memo in found.items() if memo}
    )


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
    tools: Tools,
    operation: Operation,
    spec: CommandSpec,
    recalled: Recall | None,
    result: CommandResult,
) -> None:
    """Keep what a command that has just passed leaves for later runs."""
    if not spec.trusted or result.ended is not None or result.exit_code != 0:
        return
    step = str(operation.key)
    for name, digest in result.caches.items():
        memo = Memo(operation.run_id, 0, step, {"digest": digest})
        tools.store.memos.put(operation.repository_id, spec.ref, _DIRECTORY + name, memo)
    if recalled is None or recalled.memo is not None:
        return
    whole = asdict(result)
    memo = Memo(operation.run_id, 0, step, {name: whole[name] for name in _KEPT})
    tools.store.memos.put(operation.repository_id, spec.ref, recalled.key, memo)
