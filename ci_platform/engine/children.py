"""Child runs: how a step of kind run begins, ends with its child, and gives it up. Pure.

The child exists before its step does: its id belongs to the parent and the step, so that creating
it again changes nothing. Used by accept.py, and by commands/family.py when one of them has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ci_platform.engine.decision import Decision, Pen
from ci_platform.engine.fold import RunView
from ci_platform.model import EntryKind, Json, Run, RunState, StepKey


@dataclass(frozen=True, slots=True)
class Child:
    """The run that was created for a step, or why none was."""

    id: str
    number: int
    refused: str | None = None


def start_child(pen: Pen, key: StepKey, config: Mapping[str, Json], child: Child) -> None:
    """Begin a step whose child exists. One that does not wait for it ends at once."""
    known = {"id": child.id, "number": child.number}
    data: dict[str, Json] = {"config": config}
    if child.refused is None:
        data["child"] = known
    pen.write(EntryKind.STEP_STARTED, data, key=key, attempt=1)
    if child.refused is not None:
        error = {
            "type": "StepFailed",
            "message": f"{key.label!r} started no run: {child.refused}",
            "data": {"type": "Refused"},
        }
        pen.write(EntryKind.STEP_FAILED, {"error": error}, key=key, attempt=1)
    elif not config.get("wait", True):
        pen.write(EntryKind.STEP_PASSED, {"value": known}, key=key, attempt=1)


def child_ended(view: RunView, key: StepKey, child: Run, now_ms: int) -> Decision | None:
    """End the step that waits for a run, now that this run has. None: the step has not begun yet;
    empty: nobody waits any more."""
    if view.terminal:
        return Decision(view.seq)
    step = view.steps.get(key)
    if step is None:
        return None
    pen = Pen(view, now_ms)
    if step.ended:
        return pen.decision()
    known: dict[str, Json] = {"id": child.id, "number": child.number, "state": child.state.value}
    if child.state is RunState.PASSED:
        value = {**known, "output": child.output}
        pen.write(EntryKind.STEP_PASSED, {"value": value}, key=key, attempt=1)
        return pen.decision()
    why = "" if child.error is None else f": {child.error.type}: {child.error.message}"
    cause = child.state.value if child.error is None else child.error.type
    error = {
        "type": "StepFailed",
        "message": f"run #{child.number} of {key.label!r} has {_ENDED[child.state]}{why}",
        "data": {"type": cause, **known},
    }
    pen.write(EntryKind.STEP_FAILED, {"error": error}, key=key, attempt=1)
    return pen.decision()


_ENDED = {
    RunState.FAILED: "failed",
    RunState.ERRORED: "errored",
    RunState.CANCELLED: "been cancelled",
}


def unwanted(view: RunView, key: StepKey, *, waits: bool) -> bool:
    """Whether a child that goes on should be cancelled: its parent was, or waits for it no more."""
    if view.state is RunState.CANCELLED:
        return True
    if not waits:
        return False
    step = view.steps.get(key)
    return view.terminal or (step is not None and step.ended)
