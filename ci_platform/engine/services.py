"""Services in the journal: which are open, and what the commands inside their blocks need of them.

A service has no operation of its own. Each command carries the specs of those around it, and its
runner sees to it that they run. Used by accept.py and operations.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ci_platform.engine.decision import Pen
from ci_platform.engine.fold import RunView, StepView
from ci_platform.errors import LimitExceeded, PipelineError
from ci_platform.model import EntryKind, FinishAttempt, Json, StepKey, StepKind
from ci_platform.shell import SERVICES_MAX, CommandSpec, ServiceSpec


def check_services(view: RunView, key: StepKey, labels: Sequence[str]) -> None:
    """Refuse a command whose services are not open. Raises PipelineError."""
    if len(labels) > SERVICES_MAX:
        raise LimitExceeded(
            f"step {key.label!r} has {len(labels)} services around it; the limit is {SERVICES_MAX}",
            limit="services",
        )
    for label in labels:
        if _open(view, label) is None:
            raise PipelineError(
                f"step {key.label!r} was called inside the block of {str(label)[:300]!r}, which "
                "is not open any more"
            )


def end_service(pen: Pen, command: FinishAttempt) -> None:
    """The code has left the block of a service."""
    step = pen.view.open.get(command.key)
    if step is None or command.attempt != 1:
        raise PipelineError(f"service {command.key.name!r} was ended, but it is not open")
    pen.write(EntryKind.STEP_PASSED, {"value": None}, key=step.key, attempt=1)


def service_specs(
    view: RunView, labels: Sequence[str], *, env: Mapping[str, str]
) -> tuple[Mapping[str, Json], ...]:
    """What a command carries of the services around it, outermost first. `env` is the platform's,
    as far as it is the same for the whole run."""
    steps = (view.steps[StepKey.parse(label)] for label in labels)
    return tuple(asdict(_spec(view, step, env)) for step in steps)


def _spec(view: RunView, step: StepView, env: Mapping[str, str]) -> ServiceSpec:
    config = step.config
    given = {name: config[name] for name in _PASSED_ON if config.get(name) is not None}
    command = CommandSpec(
        repository_id=view.run.repository_id,
        run_id=view.run.id,
        step=str(step.key),
        commit=step.commit,
        base=tuple(view.layers[: step.base]),
        script=config["script"],
        env={**env, "CI_STEP_NAME": step.key.label, **(config.get("env") or {})},
        trusted=view.run.trusted,
        ref=view.run.ref,
        **given,
    )
    return ServiceSpec(
        name=step.key.name,
        command=asdict(command),
        ready=config.get("ready"),
        ready_ms=config.get("timeout_ms", READY_MS),
    )


READY_MS = 60_000
_PASSED_ON = ("shell", "cwd", "secrets", "network")


def _open(view: RunView, label: Json) -> StepView | None:
    try:
        key = StepKey.parse(label) if isinstance(label, str) else None
    except ValueError:
        return None
    return view.open.get(key) if key is not None and key.kind is StepKind.SERVICE else None
