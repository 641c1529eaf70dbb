"""What is shown of a run, derived from its view: the columns of its row, and its steps.

The row is what workers claim by and lists are made of, so this is also where "due" is decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from ci_platform.engine.fold import RunView, StepView, error_of
from ci_platform.errors import InternalError
from ci_platform.model import (
    Entry,
    Json,
    Origin,
    Rollback,
    RollbackOutcome,
    RunId,
    RunState,
    RunUpdate,
    Step,
    StepKind,
    StepState,
    Wait,
)
from ci_platform.shell import Artifact

WAITS_MAX = 50  # kept in the row; a run that waits for more shows the first ones
REDACTED = "[REDACTED]"  # shown in place of what a step with sensitive=True returned

_WAIT_KINDS = {
    StepKind.SLEEP: "sleep",
    StepKind.WAIT: "wait",
    StepKind.APPROVAL: "approval",
    StepKind.SH: "operation",
    StepKind.RUN: "run",
    StepKind.TIMER: "timer",
    StepKind.DO: "operation",
}


def update(view: RunView, now_ms: int) -> RunUpdate:
    """The columns a run's journal folds to. Written with the entries that moved them."""
    state, ready_ms = _shown(view, now_ms)
    return RunUpdate(
        state=state,
        reason=view.reason,
        ready_ms=ready_ms,
        waits=() if view.leased or view.terminal else waits(view),
        commit=view.commit,
        output=view.output,
        error=view.error,
        pause_requested=view.pause_requested,
        cancel_requested=view.cancel_requested,
        hold=view.leased,
    )


def _shown(view: RunView, now_ms: int) -> tuple[RunState, int | None]:
    """The state that people see, and when the run is due."""
    match view.state:
        case None:
            raise InternalError(f"{view.run.id} has no journal")
        case RunState.QUEUED | RunState.WAITING if view.pause_requested and view.commands:
            # Nothing to do before its commands have ended: the entry that ends the last pauses it.
            return RunState.RUNNING, None
        case RunState.QUEUED:
            return RunState.QUEUED, view.queued_ms
        case RunState.WAITING if view.pause_requested:
            return RunState.QUEUED, now_ms
        case RunState.WAITING:
            due_ms = view.next_due_ms()
            if due_ms is not None and due_ms <= now_ms:
                return RunState.QUEUED, due_ms
            return (RunState.RUNNING if view.commands else RunState.WAITING), due_ms
        case _:
            return view.state, None


def waits(view: RunView) -> tuple[Wait, ...]:
    """What the run sleeps on, in the order its steps started. Nothing waits for a service."""
    steps = (step for step in view.open.values() if step.key.kind is not StepKind.SERVICE)
    return tuple(_wait(step) for step in islice(steps, WAITS_MAX))


def _wait(step: StepView) -> Wait:
    return Wait(
        kind="retry" if step.retrying else _WAIT_KINDS[step.key.kind],
        name=step.key.label,
        type=step.config.get("type") if step.key.kind is StepKind.WAIT else None,
        since_ms=step.since_ms,
        until_ms=step.until_ms,
    )


def shown(entry: Entry) -> Entry:
    """An entry as people may see it: everything that shows a journal goes through here.

    What a sensitive step returned is left out. Its errors are not: their authors write them for
    people to read.
    """
    if not entry.data.get("sensitive"):
        return entry
    return replace(entry, data=_redacted(entry.data))


def _redacted(data: Mapping[str, Json]) -> dict[str, Json]:
    return {name: REDACTED if name == "value" else value for name, value in data.items()}


def steps(view: RunView) -> list[Step]:
    """The run's steps for people, in the order they started."""
    return [
        Step(
            key=step.key,
            state=step.state,
            attempts=step.attempt,
            commit=step.commit,
            started_ms=step.started_ms,
            ended_ms=step.ended_ms,
            config=step.config,
            value=_shown_value(step),
            error=error_of(step.error) if step.error is not None else None,
            until_ms=step.until_ms,
            origin=origin_of(step.origin),
        )
        for step in view.steps.values()
    ]


def origin_of(data: Mapping[str, Json] | None) -> Origin | None:
    """A run as a journal names it."""
    return None if data is None else Origin(RunId(data["run"]), data["number"])


def artifacts(view: RunView) -> list[Artifact]:
    """The files that the run's commands kept, in the order their steps started."""
    found = []
    for step in view.steps.values():
        if step.key.kind is StepKind.SH and step.ended:
            value = step.value or (step.error or {}).get("data") or {}
            found += [Artifact(step=step.key, **one) for one in value.get("artifacts") or ()]
    return found


def rollback(view: RunView) -> Rollback | None:
    """How far the undoing of a failed or cancelled run has come; None if nothing is undone."""
    if view.rolled_back is not None:
        error = view.rolled_back.get("error")
        outcome = RollbackOutcome(view.rolled_back["outcome"])
        return Rollback(outcome, None if error is None else error_of(error))
    return None if view.rollback is None else Rollback(RollbackOutcome.RUNNING, None)


def _shown_value(step: StepView) -> Json:
    if step.config.get("sensitive") and step.state is StepState.PASSED:
        return REDACTED
    return step.value
