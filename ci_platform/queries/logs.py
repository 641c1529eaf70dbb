"""The logs of a run as people read them: also those of steps that another run executed.

A run that goes on from a step of another one has none of its own for what it shares; they are read
where they were written, and are gone with that run. Called by queries, which has checked who
asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.engine.fold import fold
from ci_platform.engine.summary import steps
from ci_platform.errors import InvalidRequest
from ci_platform.model import RUN_LOG, LogLine, RunId, Step, StepKey
from ci_platform.ports import Store

LINES_MAX = 5_000  # of one answer


@dataclass(frozen=True, slots=True)
class LogInfo:
    step: str  # $run, or str(StepKey)
    lines: int  # the number of the last line


@dataclass(frozen=True, slots=True)
class StepLogs:
    store: Store

    def read(self, run_id: RunId, step: str, *, after: int, limit: int) -> list[LogLine]:
        """Lines with numbers above `after`. Raises InvalidRequest."""
        name, limit = _log_name(step), max(1, min(limit, LINES_MAX))
        found = self.store.logs.read(run_id, name, after=after, limit=limit)
        if found or (origin := self._origin(run_id, name)) is None:
            return found
        return self.store.logs.read(origin, name, after=after, limit=limit)

    def tail(self, run_id: RunId, step: str, *, limit: int) -> list[LogLine]:
        name, limit = _log_name(step), max(1, min(limit, LINES_MAX))
        found = self.store.logs.tail(run_id, name, limit=limit)
        if found or (origin := self._origin(run_id, name)) is None:
            return found
        return self.store.logs.tail(origin, name, limit=limit)

    def infos(self, run_id: RunId, told: Sequence[Step] | None = None) -> list[LogInfo]:
        """The logs there are; `told` are the run's steps, where they are known already."""
        found = dict(self.store.logs.steps(run_id))
        if told is None:
            told = self._steps(run_id) if self._shares(run_id) else ()
        origins = {step.origin.run_id for step in told if step.origin is not None}
        theirs = {origin: self.store.logs.steps(origin) for origin in origins}
        for step in told:
            name = str(step.key)
            if step.origin is not None and (last := theirs[step.origin.run_id].get(name)):
                found.setdefault(name, last)
        return [LogInfo(step, lines) for step, lines in found.items()]

    def _origin(self, run_id: RunId, name: str) -> RunId | None:
        """The run that wrote this log, if the step is shared with one."""
        if name == RUN_LOG or self.store.logs.last(run_id, name) or not self._shares(run_id):
            return None
        shared = (step for step in self._steps(run_id) if str(step.key) == name)
        return next((step.origin.run_id for step in shared if step.origin is not None), None)

    def _shares(self, run_id: RunId) -> bool:
        return "shared" in self.store.runs.journal(run_id, limit=1)[0].data

    def _steps(self, run_id: RunId) -> list[Step]:
        return steps(fold(self.store.runs.get(run_id), self.store.runs.journal(run_id)))


def _log_name(step: str) -> str:
    """The name of a log, checked: it is part of a key."""
    if step == RUN_LOG:
        return step
    try:
        return str(StepKey.parse(step))
    except ValueError:
        raise InvalidRequest(
            "step must be $run, or kind:name such as sh:build#2", field="step"
        ) from None
