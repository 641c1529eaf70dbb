"""What time has done to a run: timers, timeouts, delays, lost attempts, a pause taking hold.

Called under the run's lease: when it is claimed, and each time its code asks for what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ci_platform.effects import CloseApproval
from ci_platform.engine.decision import Decision, Pen
from ci_platform.engine.endings import end_run, fail_run
from ci_platform.engine.fold import LOST_WORKER, RunView, StepView
from ci_platform.engine.limits import LOST_LEASES_MAX
from ci_platform.engine.retry import attempts_max, delay_ms
from ci_platform.model import Entry, EntryKind, Json, StepKey, StepKind


def settle(view: RunView, now_ms: int) -> Decision:
    """Write what is due. Only for the holder of the run's lease."""
    pen = Pen(view, now_ms)
    if not _give_up(pen):
        lost = [step for step in view.bodies.values() if step.attempt_seq < view.claim_seq]
        _lose(pen, lost, "the worker was lost")
        if not view.held:
            _fire_timers(pen)
            _match_events(pen)
        if view.pause_requested and not view.in_flight:
            pen.write(EntryKind.RUN_PAUSED, {"reason": "user", "detail": ""})
    return pen.decision()


def _give_up(pen: Pen) -> bool:
    """End a run that is out of time, or that loses every worker that takes it."""
    view = pen.view
    if view.lost_leases >= LOST_LEASES_MAX:
        error = {
            "type": LOST_WORKER,
            "message": f"{view.lost_leases} activations in a row were lost; the last: "
            f"{view.lost_why}",
        }
        end_run(pen, EntryKind.RUN_ERRORED, {"error": error, "reason": "lost_worker"})
        return True
    if view.deadline_ms is not None and view.deadline_ms <= pen.now_ms:
        seconds = (view.run.timeout_ms or 0) / 1000
        error = {"type": "RunTimeout", "message": f"the run took longer than {seconds:g} s"}
        fail_run(pen, EntryKind.RUN_FAILED, {"error": error, "reason": "timeout"})
        return True
    return False


def bodies_lost(view: RunView, now_ms: int, why: str) -> Decision:
    """The sandbox is gone, and with it the bodies that executed in it."""
    pen = Pen(view, now_ms)
    _lose(pen, list(view.bodies.values()), why)
    return pen.decision()


def body_overran(view: RunView, key: StepKey, now_ms: int, *, asking: bool = False) -> Decision:
    """The body of `key`, or its delay function (`asking`), did not let go of the sandbox in time.

    The sandbox had to be dropped, and the bodies that executed beside it are lost with it.
    """
    pen = Pen(view, now_ms)
    step = view.bodies[key]
    others = [each for each in view.bodies.values() if each is not step]
    if asking:
        message = f"the delay function of {key.label} did not answer in time"
        error = {"type": "NonRetryableDelayError", "message": message}
    else:
        seconds = step.config.get("timeout_ms", 0) / 1000
        message = f"attempt {step.attempt} of {key.label!r} took longer than its {seconds:g} s"
        error = {"type": "StepTimeout", "message": message}
    wait_ms = delay_ms(step.config, step.attempt)
    fail_attempt(pen, step, error, retry_at_ms=now_ms + wait_ms, retryable=not asking)
    _lose(pen, others, f"{key.label!r} did not let go of the sandbox")
    return pen.decision()


def _lose(pen: Pen, steps: Sequence[StepView], why: str) -> None:
    """Attempts that were cut short are used up; the next ones are due at once."""
    for step in steps:
        message = f"{why} during attempt {step.attempt} of {step.key.label!r}"
        error = {"type": LOST_WORKER, "message": message}
        fail_attempt(pen, step, error, retry_at_ms=pen.now_ms)


def fail_attempt(
    pen: Pen, step: StepView, error: Json, *, retry_at_ms: int, retryable: bool = True
) -> bool:
    """Note a failed attempt: one more is due at `retry_at_ms`, or the step has failed (False)."""
    again = retryable and step.attempt < attempts_max(step.config)
    pen.write(
        EntryKind.ATTEMPT_FAILED if again else EntryKind.STEP_FAILED,
        {"error": error, "retry_at_ms": retry_at_ms} if again else {"error": error},
        key=step.key,
        attempt=step.attempt,
    )
    return again


def _fire_timers(pen: Pen) -> None:
    while (step := pen.view.next_timer()) is not None:
        if step.until_ms is None or step.until_ms > pen.now_ms:
            return
        if step.retrying:
            pen.write(EntryKind.ATTEMPT_STARTED, key=step.key, attempt=step.attempt + 1)
        elif step.key.kind in (StepKind.SLEEP, StepKind.TIMER):
            pen.write(EntryKind.STEP_PASSED, {"value": None}, key=step.key, attempt=1)
        else:
            time_out(pen, step)


def overdue(view: RunView, step: StepView, now_ms: int) -> bool:
    """Whether a wait's or approval's time is over; the time a run is paused does not count."""
    at_ms = now_ms if view.paused_ms is None else min(now_ms, view.paused_ms)
    return step.until_ms is not None and step.until_ms <= at_ms


def time_out(pen: Pen, step: StepView) -> None:
    """Fail a wait or an approval whose time is over."""
    if step.key.kind is StepKind.APPROVAL:
        message = f"nobody answered {step.key.label!r} in time"
        pen.cause(CloseApproval(step.key, "expired"))
    else:
        message = f"no event of type {step.config['type']!r} came in time for {step.key.label!r}"
    error = {"type": "WaitTimeout", "message": message}
    pen.write(EntryKind.STEP_FAILED, {"error": error}, key=step.key, attempt=1)


def _match_events(pen: Pen) -> None:
    """Give buffered events to waits. Both are matched as soon as they come, so this finds
    something only in a journal that was cut short between the two."""
    for type in sorted(pen.view.events.keys() & pen.view.waiting.keys()):
        for key in list(pen.view.waiting[type]):
            if not match_event(pen, type, key):
                break


def match_event(pen: Pen, type: str, key: StepKey) -> bool:
    """Let a wait consume the oldest event of its type, if there is one."""
    pending = pen.view.events.get(type)
    if not pending:
        return False
    event = pending[0]
    data = {"value": _event_value(event), "event": event.seq}
    pen.write(EntryKind.STEP_PASSED, data, key=key, attempt=1)
    return True


def _event_value(event: Entry) -> Json:
    return {
        "payload": event.data.get("payload"),
        "timestamp": iso(event.at_ms),
        "type": event.data["type"],
    }


def iso(ms: int) -> str:
    """An instant as authors and the API see it."""
    stamp = datetime.fromtimestamp(ms / 1000, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
