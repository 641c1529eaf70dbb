"""Commands of `step.sh`: how they are queued, begun, and what their results write.

Used by `accept` to start one, and by the worker that executes it, which holds the operation's
lease and not the run's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeAlias

from ci_platform.effects import CloseOperation, OpenOperation
from ci_platform.engine.decision import Decision, Pen
from ci_platform.engine.endings import check_value, error_json
from ci_platform.engine.fold import LOST_WORKER, RunView, StepView
from ci_platform.engine.ids import derived_id
from ci_platform.engine.limits import LOST_COMMANDS_MAX, Limits
from ci_platform.engine.retry import attempts_max, delay_ms
from ci_platform.engine.services import service_specs
from ci_platform.engine.settle import fail_attempt
from ci_platform.errors import PipelineError
from ci_platform.model import (
    EntryKind,
    Json,
    Operation,
    OperationId,
    StepKey,
    StepKind,
    StepState,
)
from ci_platform.shell import CommandResult, CommandSpec

LOST_RETRY_MS = 1_000  # pause before a command goes to another worker when this one cannot run it
LOST_BACKOFF = 5  # times as long before the next one, so that an outage of minutes ends no run
Collision: TypeAlias = Callable[[str, str], str | None]  # see Runner.collision
_BRANCH, _TAG = "refs/heads/", "refs/tags/"


def open_operation(view: RunView, step: StepView, *, attempt: int, ready_ms: int) -> OpenOperation:
    """Queue an attempt of a command."""
    return OpenOperation(
        id=OperationId(derived_id("op", ready_ms, view.run.id, step.key, attempt, view.seq)),
        key=step.key,
        attempt=attempt,
        spec=asdict(command_of(view, step, attempt)),
        ready_ms=ready_ms,
    )


def command_of(view: RunView, step: StepView, attempt: int) -> CommandSpec:
    """What an attempt of a command is told: on the workspace as it was when its step started."""
    config = step.config
    return CommandSpec(
        repository_id=view.run.repository_id,
        run_id=view.run.id,
        step=str(step.key),
        commit=view.commit,
        base=tuple(view.layers[: step.base]),
        script=config["script"],
        env={**platform_env(view, step, attempt), **(config.get("env") or {})},
        trusted=view.run.trusted,
        cache=_cache(view, config),
        ref=view.run.ref,
        services=_services(view, step, attempt),
        **{name: config[name] for name in _PASSED_ON if config.get(name) is not None},
    )


def _cache(view: RunView, config: Mapping[str, Json]) -> Mapping[str, Json] | None:
    """What a memoised command's result depends on, beside the command: the author's environment,
    and not the platform's, which differs from run to run, and the services around it."""
    cache = config.get("cache")
    if cache is None:
        return None
    found = {**cache, "env": config.get("env") or {}}
    if around := config.get("services"):
        found["services"] = [view.steps[StepKey.parse(one)].config for one in around]
    return found


def _services(view: RunView, step: StepView, attempt: int) -> tuple[Mapping[str, Json], ...]:
    labels = step.config.get("services") or ()
    if not labels:
        return ()
    env = platform_env(view, step, attempt)
    common = {name: value for name, value in env.items() if not name.startswith("CI_STEP_")}
    return service_specs(view, labels, env=common)


_PASSED_ON = (
    "shell",
    "cwd",
    "secrets",
    "timeout_ms",
    "network",
    "artifacts",
    "reports",
    "labels",
    "image",
    "cache_dirs",
    "git_depth",
)


def platform_env(view: RunView, step: StepView, attempt: int) -> dict[str, str]:
    """What a command may know of its run. A variable without a value is left out, not empty."""
    run = view.run
    branch = run.ref.removeprefix(_BRANCH) if run.ref.startswith(_BRANCH) else None
    tag = run.ref.removeprefix(_TAG) if run.ref.startswith(_TAG) else None
    values = {
        "CI": "true",
        "CI_SYSTEM_NAME": "sluice",
        "CI_COMMIT_SHA": view.commit,
        "CI_COMMIT_SHORT_SHA": view.commit[:8],
        "CI_COMMIT_REF": run.ref,
        "CI_COMMIT_REF_NAME": branch or tag,
        "CI_COMMIT_BRANCH": branch,
        "CI_COMMIT_TAG": tag,
        "CI_PREV_COMMIT_SHA": run.event.get("before"),
        "CI_PIPELINE_NAME": run.pipeline,
        "CI_RUN_ID": run.id,
        "CI_RUN_NUMBER": str(run.number),
        "CI_RUN_TRIGGER": run.trigger,
        "CI_STEP_NAME": step.key.label,
        "CI_STEP_ATTEMPT": str(attempt),
    }
    return {name: str(value) for name, value in values.items() if value}


def wanted(view: RunView, operation: Operation) -> StepView | None:
    """The step an operation still belongs to: not ended, and at this attempt or the one before."""
    step = view.open.get(operation.key)
    if view.terminal or step is None:
        return None
    attempt = step.attempt + 1 if step.retrying else step.attempt
    return step if attempt == operation.attempt else None


def command_started(view: RunView, operation: Operation, now_ms: int) -> Decision | None:
    """Before a claimed command executes: what to write first, if anything. None: nothing waits
    for it any more, and it must not execute."""
    step = wanted(view, operation)
    if step is None or operation.stop or (step.retrying and view.held):
        return None
    pen = Pen(view, now_ms)
    if step.retrying:
        pen.write(EntryKind.ATTEMPT_STARTED, key=step.key, attempt=operation.attempt)
    return pen.decision()


def command_finished(
    view: RunView,
    operation: Operation,
    result: CommandResult,
    now_ms: int,
    *,
    limits: Limits,
    collision: Collision,
) -> Decision | None:
    """What a command's end writes: a result, another attempt, or the step's failure. None as for
    `command_started`. `collision` is the runner's."""
    step = wanted(view, operation)
    if step is None:
        return None
    pen = Pen(view, now_ms)
    pen.cause(CloseOperation(operation.id, operation.fence))
    ran = result.ended is None and result.exit_code is not None
    collided = _collided(view, step, result.layer, collision)
    if collided is not None:
        error = {"type": "CommandFailed", "message": collided}
        fail_attempt(pen, step, error, retry_at_ms=now_ms, retryable=False)
    elif ran and (result.exit_code == 0 or step.config.get("allow_failure")):
        _pass(pen, step, result, limits)
    else:
        again_ms = now_ms + delay_ms(step.config, step.attempt)
        if fail_attempt(pen, step, _failure(step, result), retry_at_ms=again_ms):
            _queue_again(pen, step, again_ms)
    _pause_if_asked(pen)
    return pen.decision()


def command_lost(
    view: RunView, operation: Operation, detail: str, now_ms: int, *, delay_ms: int = 0
) -> Decision | None:
    """A command was cut short by no fault of its own: its worker went away, or could not run it.

    It gets another attempt whatever its retries say, since the author did nothing wrong, until
    LOST_COMMANDS_MAX, after `delay_ms`, which grows with each loss; unless its config wants a loss
    to count as its own failure, because what it does must not be done twice. None as for
    `command_started`.
    """
    step = wanted(view, operation)
    if step is None:
        return None
    pen = Pen(view, now_ms)
    pen.cause(CloseOperation(operation.id, operation.fence))
    if step.retrying:  # lost between its claim and its first entry
        pen.write(EntryKind.ATTEMPT_STARTED, key=step.key, attempt=operation.attempt)
    if step.config.get("on_lost") == "fail":
        _fail_lost(pen, step, detail, now_ms)
        _pause_if_asked(pen)
        return pen.decision()
    error = {"type": LOST_WORKER, "message": detail}
    data: dict[str, Json] = {"error": error}
    again_ms = now_ms + delay_ms * LOST_BACKOFF**step.losses
    again = step.losses + 1 < LOST_COMMANDS_MAX or step.attempt < attempts_max(step.config)
    if again:
        data["retry_at_ms"] = again_ms
    kind = EntryKind.ATTEMPT_FAILED if again else EntryKind.STEP_FAILED
    pen.write(kind, data, key=step.key, attempt=step.attempt)
    if again:
        _queue_again(pen, step, again_ms)
    _pause_if_asked(pen)
    return pen.decision()


def _fail_lost(pen: Pen, step: StepView, detail: str, now_ms: int) -> None:
    """It may have begun, so that only its author's own retries do it again."""
    message = f"{step.key.label!r}: {detail}"
    told = {"exit_code": None, "output_tail": "", "ended": "lost_worker"}
    error = {"type": "CommandFailed", "message": message, "traceback": "", "data": told}
    again_ms = now_ms + delay_ms(step.config, step.attempt)
    if fail_attempt(pen, step, error, retry_at_ms=again_ms):
        _queue_again(pen, step, again_ms)


def queue_held(pen: Pen) -> None:
    """Queue the commands whose next attempt was taken back when the run was paused."""
    for step in pen.view.open.values():
        if step.key.kind is StepKind.SH and step.retrying:
            _queue_again(pen, step, step.until_ms or pen.now_ms)


def _queue_again(pen: Pen, step: StepView, ready_ms: int) -> None:
    if not pen.view.held:  # else it is queued when the run is resumed
        pen.cause(open_operation(pen.view, step, attempt=step.attempt + 1, ready_ms=ready_ms))


def _pause_if_asked(pen: Pen) -> None:
    """The entry that ends the last step in flight lets a pause take hold."""
    view = pen.view
    if view.pause_requested and not view.leased and not view.in_flight:
        pen.write(EntryKind.RUN_PAUSED, {"reason": "user", "detail": ""})


def _pass(pen: Pen, step: StepView, result: CommandResult, limits: Limits) -> None:
    value: dict[str, Json] = {
        "exit_code": result.exit_code,
        "outputs": dict(result.outputs),
        "output_tail": result.output_tail,
        "layer": result.layer,
        "duration_ms": result.duration_ms,
    }
    if result.artifacts:
        value["artifacts"] = list(result.artifacts)
    if result.caches:
        value["caches"] = dict(result.caches)
    if result.from_run is not None:
        value["from_run"] = result.from_run
    try:
        check_value(value, f"the outputs of step {step.key.label!r}", limits)
    except PipelineError as error:
        data = {"error": {**error_json(error), "type": "CommandFailed"}}
        pen.write(EntryKind.STEP_FAILED, data, key=step.key, attempt=step.attempt)
    else:
        pen.write(EntryKind.STEP_PASSED, {"value": value}, key=step.key, attempt=step.attempt)


def _collided(view: RunView, step: StepView, layer: str | None, collision: Collision) -> str | None:
    """What to say if the step changed a file that a step beside it has changed too. Layers join
    in journal order, so the step that ends later is the one that cannot be joined."""
    if layer is None:
        return None
    for other in dict.fromkeys(view.layers[step.base :]):
        path = None if other == layer else collision(layer, other)
        if path is not None:
            beside = next(one for one in view.steps.values() if _layer_of(one) == other)
            return (
                f"{step.key.label!r} and {beside.key.label!r} ran at the same time, and both "
                f"changed {path}: let them write to different files, or one after the other"
            )
    return None


def _layer_of(step: StepView) -> str | None:
    passed = step.key.kind is StepKind.SH and step.state is StepState.PASSED
    return step.value.get("layer") if passed else None


def _failure(step: StepView, result: CommandResult) -> dict[str, Json]:
    if result.ended is not None:
        message = f"{step.key.label!r}: {result.detail or result.ended}"
    else:
        message = f"{step.key.label!r} exited with code {result.exit_code}"
    return {
        "type": "CommandFailed",
        "message": message,
        "traceback": "",
        "data": {
            "exit_code": result.exit_code,
            "output_tail": result.output_tail,
            "ended": result.ended,
            **({"artifacts": list(result.artifacts)} if result.artifacts else {}),
        },
    }
