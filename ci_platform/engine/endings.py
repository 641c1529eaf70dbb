"""How a run ends: whatever of it is still open ends with it, in the same append."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ci_platform.effects import CloseApproval, StopOperations
from ci_platform.engine import rollback
from ci_platform.engine.decision import Decision, Pen
from ci_platform.engine.fold import LOST_WORKER, RunView, StepView
from ci_platform.engine.limits import ERROR_TEXT_MAX, ERROR_TYPE_MAX, Limits
from ci_platform.errors import LimitExceeded, PipelineError, SluiceError
from ci_platform.model import (
    Draft,
    EntryKind,
    ErrorInfo,
    Json,
    Mismatch,
    Raised,
    Returned,
    Run,
    RunState,
    RunUpdate,
    StepState,
)
from ci_platform.ports import Append

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode  # as the guest counts
COMPARED_MAX = 1_000  # characters by which two messages are told apart
_CUT_SHORT = {"type": "Cancelled", "message": "the run was ended while it was being rolled back"}
_REASONS = {
    "Rejected": "rejected",
    "WaitTimeout": "expired",
    LOST_WORKER: "lost_worker",
    "LimitExceeded": "limit",
}


def end_run(pen: Pen, kind: EntryKind, data: Mapping[str, Json]) -> None:
    """Cancel the steps that are open, and end the run with an entry of `kind`."""
    rollback.cancel_open(pen, "run_ended")
    if pen.view.rollback is not None and "rollback" not in data:
        data = {**data, "rollback": rollback.outcome(data.get("error") or _CUT_SHORT)}
    pen.write(kind, data)


def fail_run(pen: Pen, kind: EntryKind, data: Mapping[str, Json]) -> None:
    """End a run badly: at once if it has nothing to undo, else when that is done. What fails while
    it is being undone is the failure of that."""
    view = pen.view
    if view.rollback is not None:
        _end_rollback(pen, data.get("error"))
    elif steps := rollback.to_undo(view):
        rollback.begin(pen, steps, kind, data)
    else:
        end_run(pen, kind, data)


def _end_rollback(pen: Pen, error: Mapping[str, Json] | None) -> None:
    """End a run as it would have ended before it was undone, and say how that went."""
    undoing = pen.view.rollback
    assert undoing is not None
    end_run(pen, undoing.end, {**undoing.data, "rollback": rollback.outcome(error)})


def returned(view: RunView, outcome: Returned, now_ms: int, limits: Limits) -> Decision:
    """The author's `run` came to its end, or the last handler of a rollback did."""
    pen = Pen(view, now_ms)
    if view.rollback is not None:
        left = rollback.next_undone(view)
        message = f"the handler of {left.label!r} did not run" if left is not None else ""
        _end_rollback(pen, {"type": "RollbackFailed", "message": message} if message else None)
        return pen.decision()
    try:
        check_value(outcome.output, "the pipeline's result", limits)
    except PipelineError as error:
        reason = "limit" if isinstance(error, LimitExceeded) else None
        fail_run(pen, EntryKind.RUN_FAILED, {"error": error_json(error), "reason": reason})
    else:
        end_run(pen, EntryKind.RUN_PASSED, {"output": outcome.output})
    return pen.decision()


def raised(view: RunView, outcome: Raised, now_ms: int, limits: Limits) -> Decision:
    """The author's code failed, or a limit of its sandbox ended it."""
    pen = Pen(view, now_ms)
    error = info_json(outcome.error, limits)
    reason = "limit" if outcome.limit else None
    if outcome.limit:
        error["data"] = {**error["data"], "limit": outcome.limit}
    elif (step := _let_through(view, outcome.error)) is not None:
        error["type"] = cause = str((step.error or {}).get("type"))
        reason = _REASONS.get(cause) or ("retries_exhausted" if step.attempt > 1 else None)
    # The platform, not the author, owes an explanation when a worker was lost too often.
    kind = EntryKind.RUN_ERRORED if reason == "lost_worker" else EntryKind.RUN_FAILED
    fail_run(pen, kind, {"error": error, "reason": reason})
    return pen.decision()


def _let_through(view: RunView, error: ErrorInfo) -> StepView | None:
    """The step whose failure the author's code did not catch, if that is what ended it."""
    for step in reversed(view.steps.values()):
        if step.state is not StepState.FAILED or step.error is None:
            continue
        # An error that has no class in the sandbox is raised there as StepFailed.
        same_type = error.type in (step.error.get("type"), "StepFailed")
        message = str(step.error.get("message"))
        if same_type and message[:COMPARED_MAX] == error.message[:COMPARED_MAX]:
            return step
    return None


def refused(view: RunView, error: PipelineError, now_ms: int) -> Decision:
    """The code asked for something that cannot be; only this run pays for it."""
    pen = Pen(view, now_ms)
    reason = "limit" if isinstance(error, LimitExceeded) else None
    fail_run(pen, EntryKind.RUN_FAILED, {"error": error_json(error), "reason": reason})
    return pen.decision()


def errored(view: RunView, error: SluiceError, now_ms: int, *, reason: str) -> Decision:
    """The platform cannot go on with this run."""
    pen = Pen(view, now_ms)
    end_run(pen, EntryKind.RUN_ERRORED, {"error": error_json(error), "reason": reason})
    return pen.decision()


def unreadable(run: Run, error: SluiceError, fence: int) -> Append:
    """End a run whose journal cannot be folded, so that no worker takes it up again."""
    data = {"error": error_json(error), "reason": "journal"}
    return Append(
        run_id=run.id,
        expected_seq=run.last_seq,
        drafts=(Draft(EntryKind.RUN_ERRORED, data),),
        update=RunUpdate(
            state=RunState.ERRORED,
            reason="journal",
            ready_ms=None,
            waits=(),
            commit=run.commit,
            output=None,
            error=ErrorInfo(type(error).__name__, error.detail),
            pause_requested=False,
            cancel_requested=run.cancel_requested,
            hold=False,
        ),
        fence=fence,
        effects=(StopOperations(), CloseApproval(None, "cancelled")),
        group=run.place.group,
    )


def mismatched(view: RunView, outcome: Mismatch, now_ms: int) -> Decision:
    """The same code took another way than its journal: hold the run, lose nothing."""
    detail = f"entry {outcome.seq}: expected {outcome.expected}, got {outcome.got}"
    pen = Pen(view, now_ms)
    pen.write(
        EntryKind.RUN_PAUSED,
        {"reason": "nondeterminism", "detail": detail[:ERROR_TEXT_MAX]},
    )
    return pen.decision()


def check_value(value: Json, what: str, limits: Limits) -> None:
    """Refuse what is not JSON or too large. Raises PipelineError, LimitExceeded."""
    try:
        size = len(_encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise PipelineError(f"{what} is not JSON: {error}") from error
    if size > limits.value_bytes:
        raise LimitExceeded(
            f"{what} has {size:,} bytes as JSON; the limit is {limits.value_bytes:,} (value_bytes)",
            limit="value_bytes",
        )


def error_json(error: SluiceError) -> dict[str, Json]:
    """An error of the platform, as the journal holds it."""
    data = {"limit": error.limit} if isinstance(error, LimitExceeded) else {}
    return {"type": type(error).__name__, "message": error.detail, "traceback": "", "data": data}


def info_json(error: ErrorInfo, limits: Limits) -> dict[str, Json]:
    """An author's error, as the journal holds it, cut to what is worth keeping."""
    data: Json = dict(error.data)
    try:
        check_value(data, "the error's data", limits)
    except PipelineError as problem:
        data = {"left_out": problem.detail}
    return {
        "type": _cut(error.type[:ERROR_TYPE_MAX]),
        "message": _cut(error.message),
        "traceback": _cut(error.traceback),
        "data": data,
    }


def _cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates
    if len(text) <= ERROR_TEXT_MAX:
        return text
    half = ERROR_TEXT_MAX // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
