"""What becomes of the commands of a guest: steps start, attempts end, divergence is noted.

Called by the worker under the run's lease, once for each `next` of the guest. Everything a guest
says is checked here; a PipelineError means that this run has failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

from ci_platform.effects import CloseApproval, OpenApproval, ReleaseChildren, StopOperations
from ci_platform.engine.check import check_config, check_key, whole
from ci_platform.engine.children import Child, start_child
from ci_platform.engine.decision import Decision, Pen
from ci_platform.engine.endings import check_value, error_json, fail_run, info_json
from ci_platform.engine.fold import RunView
from ci_platform.engine.limits import COMMANDS_MAX, DURATION_MS_MAX, ENTRIES_MAX, Limits
from ci_platform.engine.operations import open_operation
from ci_platform.engine.retry import DELAY_MS_MAX, delay_ms
from ci_platform.engine.rollback import check_handler
from ci_platform.engine.services import check_services, end_service
from ci_platform.engine.settle import fail_attempt, match_event
from ci_platform.errors import LimitExceeded, PipelineError
from ci_platform.model import (
    AbandonStep,
    Command,
    EntryKind,
    FinishAttempt,
    Json,
    NoteDivergence,
    RunState,
    StartStep,
    StepKey,
    StepKind,
)

_NO_CHILDREN: Mapping[StepKey, Child] = {}
_CHANGES = ("inserted", "missing")


def accept(
    view: RunView,
    commands: Sequence[Command],
    now_ms: int,
    *,
    limits: Limits,
    on_divergence: str = "accept",
    children: Mapping[StepKey, Child] = _NO_CHILDREN,
) -> Decision:
    """Decide what a guest's commands write. While the run is held, what would start is left out:
    the worker asks again, before what the guest asks for next. `children` are the runs that were
    created for steps of kind run. Raises PipelineError, LimitExceeded."""
    pen = Pen(view, now_ms)
    if len(commands) > COMMANDS_MAX:
        raise LimitExceeded(
            f"the pipeline asked for {len(commands):,} things at once; "
            f"the limit is {COMMANDS_MAX:,}",
            limit="commands_max",
        )
    if view.seq + len(commands) > ENTRIES_MAX:
        raise LimitExceeded(
            f"the run's journal has {view.seq:,} entries; the limit is {ENTRIES_MAX:,}",
            limit="entries_max",
        )
    for command in commands:
        if view.terminal or not view.leased:  # it has failed, and may have to be undone first
            break
        match command:
            case StartStep():
                _start(pen, command, limits, children)
            case FinishAttempt():
                _finish(pen, command, limits)
            case AbandonStep():
                _abandon(pen, command.key)
            case NoteDivergence():
                _diverge(pen, command, limits, on_divergence)
            case _:
                assert_never(command)
    return pen.decision()


def _start(pen: Pen, command: StartStep, limits: Limits, children: Mapping[StepKey, Child]) -> None:
    view, key, config = pen.view, command.key, command.config
    if view.held:
        return
    if view.rollback is not None:
        check_handler(view, key)
    else:
        check_key(key)
    if key in view.steps:
        raise PipelineError(f"step {key.label!r} was started twice")
    if len(view.steps) >= limits.steps_max and view.rollback is None:
        raise LimitExceeded(
            f"step {key.label!r} is one too many; the limit is {limits.steps_max:,} (steps_max)",
            limit="steps_max",
        )
    check_config(key, config, limits)
    match key.kind:
        case StepKind.DO:
            pen.write(EntryKind.STEP_STARTED, {"config": config}, key=key, attempt=1)
        case StepKind.SH:
            _start_command(pen, key, config)
        case StepKind.SERVICE:
            _start_service(pen, key, config)
        case StepKind.SLEEP | StepKind.TIMER:
            _write_timed(pen, key, config, config.get("duration_ms"))
        case StepKind.WAIT:
            _write_timed(pen, key, config, config.get("timeout_ms"))
            match_event(pen, config["type"], key)
        case StepKind.APPROVAL:
            _write_timed(pen, key, config, config.get("timeout_ms"))
            spec = {name: value for name, value in config.items() if name != "timeout_ms"}
            pen.cause(OpenApproval(key, spec, view.steps[key].until_ms))
        case StepKind.RUN:
            child = children.get(key)
            if child is None:
                raise PipelineError(f"step {key.label!r}: there is nobody here to start runs")
            start_child(pen, key, config, child)
        case _:
            assert_never(key.kind)


def _write_timed(pen: Pen, key: StepKey, config: Json, duration_ms: int | None) -> None:
    until_ms = config.get("until_ms") if duration_ms is None else pen.now_ms + duration_ms
    if until_ms is not None and until_ms > pen.now_ms + DURATION_MS_MAX:
        days = DURATION_MS_MAX // 86_400_000
        raise LimitExceeded(f"step {key.label!r} lasts more than {days} days", limit="duration")
    data = {"config": config, "until_ms": until_ms}
    pen.write(EntryKind.STEP_STARTED, data, key=key, attempt=1)


def _start_command(pen: Pen, key: StepKey, config: Json) -> None:
    view = pen.view
    check_services(view, key, config.get("services") or ())
    data = {"config": config, "base": len(view.layers)}
    pen.write(EntryKind.STEP_STARTED, data, key=key, attempt=1)
    for what in ("secrets", "network"):
        if config.get(what) and not view.run.trusted:
            message = f"{key.label!r} asks for {what}, which runs of untrusted code do not get"
            error = {"type": "CommandFailed", "message": message}
            pen.write(EntryKind.STEP_FAILED, {"error": error}, key=key, attempt=1)
            return
    pen.cause(open_operation(view, view.steps[key], attempt=1, ready_ms=pen.now_ms))


def _start_service(pen: Pen, key: StepKey, config: Json) -> None:
    """A service starts with the first command that needs it; its files are those of now."""
    for what in ("secrets", "network"):
        if config.get(what) and not pen.view.run.trusted:
            raise PipelineError(
                f"service {key.label!r} asks for {what}, which runs of untrusted code do not get"
            )
    data = {"config": config, "base": len(pen.view.layers)}
    pen.write(EntryKind.STEP_STARTED, data, key=key, attempt=1)


def _finish(pen: Pen, command: FinishAttempt, limits: Limits) -> None:
    key = command.key
    if key.kind is StepKind.SERVICE:
        if not pen.view.held or key in pen.view.steps:  # else it has been left out as well
            end_service(pen, command)
        return
    step = pen.view.bodies.get(key)
    if step is None or step.attempt != command.attempt:
        raise PipelineError(
            f"attempt {command.attempt} of step {key.name!r} was ended, but it does not run"
        )
    if command.error is not None:
        whole(0, DELAY_MS_MAX, none=True)(f"the delay of step {key.label!r}", command.delay_ms)
        wait_ms = delay_ms(step.config, step.attempt, command.delay_ms)
        fail_attempt(
            pen,
            step,
            info_json(command.error, limits),
            retry_at_ms=pen.now_ms + wait_ms,
            retryable=command.retryable,
        )
        return
    try:
        check_value(command.value, f"the result of step {key.label!r}", limits)
    except PipelineError as error:
        if command.early_ms is not None:
            raise  # the code has gone on with it: there is no way back
        fail_attempt(pen, step, error_json(error), retry_at_ms=pen.now_ms, retryable=False)
        return
    data = {"value": command.value}
    if step.config.get("sensitive"):
        data["sensitive"] = True  # for whoever shows this entry, see summary.shown
    if command.early_ms is not None:
        data["early_ms"] = command.early_ms
    pen.write(EntryKind.STEP_PASSED, data, key=key, attempt=step.attempt)


def _abandon(pen: Pen, key: StepKey) -> None:
    step = pen.view.steps.get(key)
    if step is None:
        raise PipelineError(f"step {key.name!r} was given up, but never started")
    if step.ended:  # it ended while the code was giving it up
        return
    pen.write(EntryKind.STEP_CANCELLED, {"reason": "abandoned"}, key=key)
    if key.kind is StepKind.SH:
        pen.cause(StopOperations(key))
    if key.kind is StepKind.APPROVAL:
        pen.cause(CloseApproval(key, "cancelled"))
    if key.kind is StepKind.RUN:
        pen.cause(ReleaseChildren())


def _diverge(pen: Pen, command: NoteDivergence, limits: Limits, on_divergence: str) -> None:
    view, key, change = pen.view, command.key, command.change
    if view.rollback is None:
        check_key(key)
    if change not in _CHANGES:
        raise PipelineError(f"divergence {change!r} of step {key.label!r} is not one of {_CHANGES}")
    note = (key, change, view.commit)
    if view.state is RunState.PAUSED or note in view.divergences:
        return
    if len(view.divergences) >= limits.steps_max:
        raise LimitExceeded(
            f"the code differs from the journal in more than {limits.steps_max:,} steps"
            " (steps_max)",
            limit="steps_max",
        )
    pen.write(EntryKind.DIVERGED, {"change": change, "commit": view.commit}, key=key)
    if view.commit in view.divergence_accepted:
        return
    detail = f"commit {view.commit[:12]}: step {key.label!r} is {change}"
    if on_divergence == "hold":
        pen.write(EntryKind.RUN_PAUSED, {"reason": "divergence", "detail": detail})
    elif on_divergence == "fail":
        error = {"type": "Diverged", "message": detail}
        fail_run(pen, EntryKind.RUN_FAILED, {"error": error, "reason": "diverged"})
