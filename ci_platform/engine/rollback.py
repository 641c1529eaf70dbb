"""Undoing a run that failed or was cancelled: which steps, in which order, and how that ended.

Handlers are steps of their own, named by the platform, that the code of the run brings about. Here
is what the journal makes of them: `rollback_started` lists what has to be undone, and only those
handlers may start behind it, one after the other. Used by endings.py, accept.py and outside.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from ci_platform.effects import CloseApproval, ReleaseChildren, StopOperations
from ci_platform.engine.decision import Pen
from ci_platform.engine.fold import RunView, StepView
from ci_platform.errors import PipelineError
from ci_platform.model import EntryKind, Json, RollbackOutcome, StepKey, StepKind, StepState

NAME = "$rollback:"  # how the names of handlers begin
HANDLER_KINDS = frozenset({StepKind.DO, StepKind.SH})


def handler_name(key: StepKey) -> str:
    """The name of the step that undoes `key`; its occurrence is the same."""
    return f"{NAME}{key.kind}:{key.name}"


def to_undo(view: RunView) -> list[StepKey]:
    """The steps that began with a handler, however they ended, the last one first."""
    begun = [step.key for step in view.steps.values() if step.config.get("rollback")]
    return begun[::-1]


def begin(pen: Pen, steps: list[StepKey], end: EntryKind, data: Mapping[str, Json]) -> None:
    """Turn a run to undoing `steps`; afterwards it ends with the entry that is kept here."""
    listed = [[key.kind.value, key.name, key.occurrence] for key in steps]
    pen.write(EntryKind.ROLLBACK_STARTED, {"steps": listed, "end": end.value, "data": data})
    cancel_open(pen, "rollback")


def cancel_open(pen: Pen, reason: str) -> None:
    """End the steps that have not ended, with the rows that belong to them."""
    kinds = {step.key.kind for step in pen.view.open.values()}
    for key in list(pen.view.open):
        pen.write(EntryKind.STEP_CANCELLED, {"reason": reason}, key=key)
    if StepKind.SH in kinds:
        pen.cause(StopOperations())
    if StepKind.APPROVAL in kinds:
        pen.cause(CloseApproval(None, "cancelled"))
    if StepKind.RUN in kinds:
        pen.cause(ReleaseChildren())


def outcome(error: Mapping[str, Json] | None) -> dict[str, Json]:
    """How it ended, as the last entry says it."""
    word = RollbackOutcome.COMPLETE if error is None else RollbackOutcome.FAILED
    return {"outcome": word.value, "error": error}


def check_handler(view: RunView, key: StepKey) -> None:
    """Refuse what is not the next handler. Raises PipelineError."""
    due = next_undone(view)
    if due is None or key.kind not in HANDLER_KINDS:
        wanted = None
    else:
        wanted = (handler_name(due), due.occurrence)
    if (key.name, key.occurrence) != wanted:
        raise PipelineError(
            f"step {key.label!r} was asked for while the run is being rolled back: "
            "only the handlers of its steps run now"
        )


def next_undone(view: RunView) -> StepKey | None:
    """The step whose turn it is; None when all are undone."""
    rollback = view.rollback
    for key in rollback.steps if rollback is not None else ():
        handler = _handler(view, key)
        if handler is None or handler.state is not StepState.PASSED:
            return key
    return None


def _handler(view: RunView, key: StepKey) -> StepView | None:
    for kind in HANDLER_KINDS:
        found = view.steps.get(StepKey(kind, handler_name(key), key.occurrence))
        if found is not None:
            return found
    return None
