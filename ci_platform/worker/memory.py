"""Memoised commands: finding what an earlier run came to, and keeping what this one did.

A memo is looked for under the run's own ref, then under the default branch; it is kept under the
run's own ref. So no branch can plant a result for another one, and untrusted code plants none. A
run that takes one becomes its home, so that what is used outlives the run that made it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from ci_platform.errors import SluiceError
from ci_platform.model import Json, LogLine, Operation
from ci_platform.shell import CommandResult, CommandSpec, Memo
from ci_platform.worker.lines import NOTE, StepLog
from ci_platform.worker.settings import Tools

LOG_LINES_MAX = 10_000  # of an earlier run's log, told again
_DIRECTORY = "directory "  # begins the key of a cache directory
_PAGE_LINES = 1_000
_log = logging.getLogger(__name__)
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
        return CommandResult(ended=None, detail="", from_run=origin(self.memo), **known)


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


def with_policy(tools: Tools, operation: Operation, spec: CommandSpec) -> CommandSpec:
    """The command and the services beside it, knowing what their repository lets them reach."""
    allowed = tools.store.networks.get(operation.repository_id)
    services = tuple(
        {**service, "command": {**service["command"], "allowed": allowed}}
        for service in spec.services
    )
    return replace(spec, allowed=allowed, services=services)


def tell(tools: Tools, memo: Memo, log: StepLog) -> Mapping[str, Json]:
    """Write the log of the step that a memo is of, the last of it if it is long. Returns where it
    is in the log it was written to, for those who will tell it from there."""
    log.note(f"from run #{origin(memo)}: nothing that this command depends on has changed")
    logs = tools.store.logs
    last = logs.last(memo.run_id, memo.step)
    begin = memo.result.get("log_after", 0)
    after = max(begin, last - LOG_LINES_MAX)
    cut = memo.result.get("log_cut", 0) + after - begin
    if cut:
        log.note(f"the first {cut:,} lines are in run #{origin(memo)}")
    told = {"log_after": log.last, "log_cut": cut}
    while lines := logs.read(memo.run_id, memo.step, after=after, limit=_PAGE_LINES):
        for line in lines:
            _say(log, line)
        after = lines[-1].number
    return told


def origin(memo: Memo) -> int:
    """The number of the run that executed it, which need not be the one that it is kept for."""
    return int(memo.result.get("from_run", memo.number))


def _say(log: StepLog, line: LogLine) -> None:
    if line.stream == NOTE:
        log.note(line.text)
    else:
        log.write(line.stream, line.text + "\n")


def taken(tools: Tools, operation: Operation, known: Recall, told: Mapping[str, Json]) -> None:
    """Keep a memo for the run that has just taken it: what is used does not go with the run that
    made it. Where it may be read stays the same."""
    assert known.memo is not None
    result = {**known.memo.result, "from_run": origin(known.memo), **told}
    memo = replace(known.memo, run_id=operation.run_id, step=str(operation.key), result=result)
    try:
        tools.store.memos.rehome(operation.repository_id, known.key, known.memo, memo)
    except SluiceError as error:  # it stays where it was
        _log.warning("%s: its memo stays with its run: %s", operation.id, error)


def remember(
    tools: Tools,
    operation: Operation,
    spec: CommandSpec,
    recalled: Recall | None,
    result: CommandResult,
) -> None:
    """Keep what a command that has just passed leaves for later runs. If that fails, they do it
    again."""
    if not spec.trusted or result.ended is not None or result.exit_code != 0:
        return
    try:
        for name, digest in result.caches.items():
            size = _stored(tools, digest)
            memo = Memo(
                operation.run_id, 0, str(operation.key), {"digest": digest}, "", size, digest
            )
            tools.store.memos.put(operation.repository_id, spec.ref, _DIRECTORY + name, memo)
        if recalled is not None:
            _keep(tools, operation, recalled, result)
    except SluiceError as error:
        _log.warning("%s: what it leaves is not kept: %s", operation.id, error)


def _keep(tools: Tools, operation: Operation, recalled: Recall, result: CommandResult) -> None:
    whole = asdict(result)
    kept = {name: whole[name] for name in _KEPT}
    size = sum(int(one.get("size", 0)) for one in result.artifacts)
    if result.layer is not None:
        size += _stored(tools, result.layer)
    memo = Memo(operation.run_id, 0, str(operation.key), kept, size=size)
    tools.store.memos.put(operation.repository_id, recalled.spec.ref, recalled.key, memo)


def _stored(tools: Tools, digest: str) -> int:
    return 0 if tools.layers is None else tools.layers.size(digest)
