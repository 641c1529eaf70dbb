"""Changes that people and other systems ask for: events, answers, pause, resume, cancel.

Each is a pure decision for `commands.py`, which has checked who asks. Raises RequestError when
the run's state does not allow it. An empty decision means that there is nothing left to change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ci_platform.effects import CloseApproval, DelayApprovals, RecordDecision, StopOperations
from ci_platform.engine.check import check_event_type
from ci_platform.engine.decision import Decision, Pen
from ci_platform.engine.endings import check_value, end_run
from ci_platform.engine.fold import RunView, StepView
from ci_platform.engine.limits import EVENTS_PENDING_MAX, Limits
from ci_platform.engine.operations import queue_held
from ci_platform.engine.rollback import begin, outcome, to_undo
from ci_platform.engine.settle import iso, match_event, overdue, time_out
from ci_platform.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    PipelineError,
    StepNotFound,
    TooLarge,
    TooMany,
)
from ci_platform.model import EntryKind, Json, RunState, StepKey, StepKind

APPROVE, REJECT = "approve", "reject"


@dataclass(frozen=True, slots=True)
class Answer:
    """One person's answer to an approval."""

    user_id: str
    user: str  # as shown
    decision: str  # approve | reject
    comment: str = ""
    way: str = "api"  # page, api, cli, link
    form: Mapping[str, Json] = field(default_factory=dict)


def event_sent(
    view: RunView,
    type: str,
    payload: Json,
    actor: str,
    now_ms: int,
    *,
    limits: Limits,
    id: str | None = None,
) -> Decision:
    """Add an event. The oldest wait for its type consumes it; else it is kept for a later one.

    Empty when the run has it already, by the `id` that its sender gave, also if the run has ended.
    """
    _check_event(type, payload, limits)
    if id is not None and id in view.sent:
        _check_same(view, id, type, payload)
        return Decision(view.seq)
    _check_alive(view, "receive events")
    pen = Pen(view, now_ms)
    for step in list(view.waiting.get(type, {}).values()):
        if overdue(view, step, now_ms):
            time_out(pen, step)  # else it would swallow an event that came too late for it
    if view.events_pending >= EVENTS_PENDING_MAX:
        raise TooMany(
            f"{view.run.id} holds {view.events_pending:,} events that nothing has consumed; "
            f"the limit is {EVENTS_PENDING_MAX:,}"
        )
    data: dict[str, Json] = {"type": type, "payload": payload, "actor": actor}
    pen.write(EntryKind.EVENT_RECEIVED, data if id is None else {**data, "id": id})
    key = next(iter(view.waiting.get(type, ())), None)
    if key is not None:
        match_event(pen, type, key)
    return pen.decision()


def _check_same(view: RunView, id: str, type: str, payload: Json) -> None:
    """As text: to Python, 1 and true are the same."""
    known = view.sent[id].data
    first, second = [known["type"], known.get("payload")], [type, payload]
    if json.dumps(first, sort_keys=True) != json.dumps(second, sort_keys=True):
        raise Conflict(
            f"{view.run.id} has had the event {id!r} with another type or payload; "
            "give each event an id of its own"
        )


def _check_event(type: str, payload: Json, limits: Limits) -> None:
    try:
        check_event_type("type", type)
        check_value(payload, "the event's payload", limits)
    except LimitExceeded as error:
        raise TooLarge(error.detail, field="payload") from error
    except PipelineError as error:
        named = "type" if error.detail.startswith("type") else "payload"
        raise InvalidRequest(error.detail, field=named) from error


def decided(view: RunView, key: StepKey, answer: Answer, now_ms: int) -> Decision:
    """Add a person's answer to an approval; with it the approval may be complete.

    Empty when this person has answered before: the first answer counts.
    """
    if answer.decision not in (APPROVE, REJECT):
        raise InvalidRequest(
            f"decision is {answer.decision!r}: approve or reject", field="decision"
        )
    step = view.steps.get(key)
    if step is None or key.kind is not StepKind.APPROVAL:
        raise StepNotFound(f"{view.run.id} has no approval {key.label!r}")
    if any(known["user_id"] == answer.user_id for known in step.decisions):
        return Decision(view.seq)
    _check_alive(view, "be approved or rejected")
    if step.ended or overdue(view, step, now_ms):
        outcome = step.state if step.ended else "expired"
        raise Conflict(f"the approval {key.label!r} of {view.run.id} is closed: {outcome}")
    pen = Pen(view, now_ms)
    pen.write(
        EntryKind.APPROVAL_DECIDED,
        {
            "decision": answer.decision,
            "actor": answer.user,
            "user_id": answer.user_id,
            "comment": answer.comment,
            "way": answer.way,
            "form": answer.form,
        },
        key=key,
    )
    pen.cause(
        RecordDecision(
            key=key,
            user_id=answer.user_id,
            user=answer.user,
            decision=answer.decision,
            comment=answer.comment,
            way=answer.way,
            form=answer.form,
        )
    )
    _close_if_answered(pen, step, answer)
    return pen.decision()


def _close_if_answered(pen: Pen, step: StepView, answer: Answer) -> None:
    if answer.decision == REJECT:
        error = {
            "type": "Rejected",
            "message": answer.comment or f"{answer.user} rejected {step.key.label!r}",
            "traceback": "",
            "data": {"user": answer.user, "comment": answer.comment},
        }
        pen.write(EntryKind.STEP_FAILED, {"error": error}, key=step.key, attempt=1)
        pen.cause(CloseApproval(step.key, "rejected"))
    elif len(step.decisions) >= int(step.config.get("required") or 1):
        value = {
            "approved": True,
            "decisions": _as_shown(step.decisions),
            "form": answer.form or _last_form(step.decisions),
        }
        pen.write(EntryKind.STEP_PASSED, {"value": value}, key=step.key, attempt=1)
        pen.cause(CloseApproval(step.key, "approved"))


def _as_shown(decisions: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    return [
        {
            "user": decision["actor"],
            "decision": decision["decision"],
            "comment": decision["comment"],
            "at": iso(decision["at_ms"]),
        }
        for decision in decisions
    ]


def _last_form(decisions: Sequence[Mapping[str, Json]]) -> Json:
    forms = [decision["form"] for decision in decisions if decision.get("form")]
    return forms[-1] if forms else {}


def pause(view: RunView, actor: str, now_ms: int) -> Decision:
    """Hold a run: steps in flight end, none starts. At once if nothing executes."""
    _check_alive(view, "be paused")
    if view.held:
        return Decision(view.seq)
    pen = Pen(view, now_ms)
    pen.write(EntryKind.PAUSE_REQUESTED, {"actor": actor})
    for step in view.open.values():
        if step.key.kind is StepKind.SH and step.retrying:
            pen.cause(StopOperations(step.key))  # its next attempt; `resume` queues it again
    if not view.leased and not view.commands:
        pen.write(EntryKind.RUN_PAUSED, {"reason": "user", "detail": f"by {actor}"})
    return pen.decision()


def resume(view: RunView, actor: str, now_ms: int) -> Decision:
    """Let a run go on. The time it was paused does not count for any of its timers."""
    _check_alive(view, "be resumed")
    if not view.held:
        raise Conflict(f"{view.run.id} is not paused")
    paused_ms = view.paused_ms
    shifted_ms = 0 if paused_ms is None else max(0, now_ms - paused_ms)
    pen = Pen(view, now_ms)
    pen.write(EntryKind.RUN_RESUMED, {"actor": actor, "shifted_ms": shifted_ms})
    if shifted_ms and any(step.key.kind is StepKind.APPROVAL for step in view.open.values()):
        pen.cause(DelayApprovals(shifted_ms))
    queue_held(pen)
    return pen.decision()


def cancel(
    view: RunView, actor: str, now_ms: int, *, reason: str = "user", rollback: bool = False
) -> Decision:
    """End a run now, whatever it does, or with `rollback` as soon as its steps are undone. Its
    commands are asked to stop; a worker that has it finds its lease gone.

    A run that is being undone already goes on with that, unless it is cancelled without rollback.
    """
    _check_alive(view, "be cancelled")
    if rollback and view.rollback is not None:
        return Decision(view.seq)
    pen = Pen(view, now_ms)
    data = {"actor": actor, "reason": reason, "rollback": rollback}
    pen.write(EntryKind.CANCEL_REQUESTED, data)
    ending: dict[str, Json] = {"reason": reason, "actor": actor}
    steps = to_undo(view) if rollback else []
    if steps:
        begin(pen, steps, EntryKind.RUN_CANCELLED, ending)
    elif rollback:
        end_run(pen, EntryKind.RUN_CANCELLED, {**ending, "rollback": outcome(None)})
    else:
        end_run(pen, EntryKind.RUN_CANCELLED, ending)
    return pen.decision()


def _check_alive(view: RunView, action: str) -> None:
    if view.terminal:
        state = view.state or RunState.PASSED
        raise Conflict(f"{view.run.id} has ended ({state}), so it cannot {action}")
