"""The Protocol of logs: lines of steps, numbered from 1, as they are written, read and sealed.

A part of the ports, under their contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import LogLine, OperationId, RunId


@dataclass(frozen=True, slots=True)
class Held:
    """The lease under which a command writes its log."""

    operation_id: OperationId
    fence: int


class LogStore(Protocol):
    def append(
        self,
        run_id: RunId,
        step: str,
        lines: Sequence[LogLine],
        *,
        held: Held | None = None,
        shared: bool = False,
    ) -> None:
        """Add lines; numbers already there are ignored, so a repeated batch changes nothing.
        Refused with LeaseLost when `held` is given and that command has another holder, or none.
        `shared`: several write this log, none of whom knows the others' numbers: lines whose
        numbers are taken get the next ones."""

    def read(
        self, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000
    ) -> list[LogLine]: ...

    def tail(self, run_id: RunId, step: str, *, limit: int = 1000) -> list[LogLine]: ...

    def seal(self, run_id: RunId, step: str) -> bool:
        """Move a log whose step has ended out of the database, into one object. Reads stay the
        same, and more may be written. False: it stays, being small. Raises StoreUnavailable."""

    def unsealed(self, *, limit: int = 100) -> Sequence[tuple[RunId, str]]:
        """Logs that are worth sealing, of runs and commands that have ended; oldest run first."""

    def last(self, run_id: RunId, step: str) -> int:
        """The number of the last line, 0 if there is none."""

    def steps(self, run_id: RunId) -> Mapping[str, int]:
        """Each step that has a log -> the number of its last line."""
