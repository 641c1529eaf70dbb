"""Effects: rows that change together with the entries that cause them.

Values, like those of model.py. The engine decides on them, `RunStore.append` carries them out in
the transaction that writes the entries, so that neither is ever without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ci_platform.model import Json, OperationId, StepKey


@dataclass(frozen=True, slots=True)
class OpenOperation:
    """Queue a command for the workers."""

    id: OperationId
    key: StepKey
    attempt: int
    spec: Mapping[str, Json]  # CommandSpec as JSON, see ports
    ready_ms: int  # not before; a retry's delay


@dataclass(frozen=True, slots=True)
class CloseOperation:
    """End a command that this worker holds; refused (LeaseLost) if `fence` has moved on."""

    id: OperationId
    fence: int


@dataclass(frozen=True, slots=True)
class StopOperations:
    """Ask for the end of the run's commands: queued ones go at once, running ones get `stop`."""

    key: StepKey | None = None  # None: all of the run


@dataclass(frozen=True, slots=True)
class OpenApproval:
    """Show a gate to people."""

    key: StepKey
    spec: Mapping[str, Json]  # approvers, required, allow_self, form, environment
    expires_ms: int | None


@dataclass(frozen=True, slots=True)
class RecordDecision:
    """Keep one person's answer; a second by the same person is refused (Conflict)."""

    key: StepKey
    user_id: str
    user: str
    decision: str  # approve | reject
    comment: str
    way: str  # page, api, cli, link
    form: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class CloseApproval:
    key: StepKey | None  # None: all of the run
    outcome: str  # approved, rejected, expired, cancelled


@dataclass(frozen=True, slots=True)
class DelayApprovals:
    """Move the ends of the run's open gates: the time that it was paused does not count."""

    by_ms: int


@dataclass(frozen=True, slots=True)
class ReleaseChildren:
    """Look at the run's children: a step that waited for one has ended before it."""


Effect: TypeAlias = (
    ReleaseChildren
    | DelayApprovals
    | OpenOperation
    | CloseOperation
    | StopOperations
    | OpenApproval
    | RecordDecision
    | CloseApproval
)
