"""Undoing a run: the handlers that steps began with, run one by one when the platform says so.

The platform lists the steps (`rollback_started`); the code that ran before it has made their
handlers, in this activation or by replay. Each handler is a step of its own. The first that fails,
or that this code does not make any more, ends it. Handlers are declared in step.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pipelines import errors
from pipelines.bodies import Work
from pipelines.durations import Duration, duration_ms
from pipelines.errors import RollbackFailed, RunCancelled
from pipelines.history import Entry, Key
from pipelines.values import StepContext
from pipelines.wire import ROLLBACK_NAME, Json

GIVEN = ("ctx", "error", "output")  # what a handler may take, by keyword


@dataclass(frozen=True, slots=True)
class Undo:
    """How one step is undone: by a function, or else by a command with this config."""

    config: Mapping[str, Json]
    function: Callable[..., Json] | None = None
    delay: Callable[[StepContext, Exception], Json] | None = None
    takes: Sequence[str] = ()
    output: Callable[[Json], Json] = lambda value: value  # as its step returned it

    @property
    def kind(self) -> str:
        return "sh" if self.function is None else "do"


class Steps(Protocol):
    """What undoing needs of the activation."""

    undos: dict[Key, Undo]

    def result_of(self, key: Key) -> Json:
        """What a step passed with, None if it did not. Raises KeyError if the code did not come
        to it."""

    def request(
        self, key: Key, config: Mapping[str, Json], work: Work | None = None
    ) -> Awaitable[Json]: ...


Handler: TypeAlias = Callable[..., Json]


def taken(handler: Handler) -> list[str]:
    """Which of ctx, error and output a handler names. Raises TypeError for any other."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return list(GIVEN)
    for parameter in parameters:
        optional = parameter.default is not parameter.empty
        optional = optional or parameter.kind is parameter.VAR_POSITIONAL
        named = parameter.name in GIVEN and parameter.kind is not parameter.POSITIONAL_ONLY
        if not named and not optional:
            raise TypeError(
                f"a rollback handler may take ctx, error and output, but "
                f"{getattr(handler, '__name__', 'this one')} needs {parameter.name!r}"
            )
    return [parameter.name for parameter in parameters if parameter.name in GIVEN]


def timeout_ms(timeout: Duration) -> int:
    return duration_ms(timeout, "rollback.timeout", least_ms=1)


async def roll_back(steps: Steps, started: Entry) -> None:
    """Run the handlers that a rollback_started entry lists. Raises what the first failing one
    raised, RollbackFailed if there is none for a step."""
    data = started["data"]
    error = _cause(data)
    for kind, name, occurrence in data["steps"]:
        key: Key = (kind, name, occurrence)
        try:
            undo, value = steps.undos[key], steps.result_of(key)
        except KeyError:
            raise RollbackFailed(
                f"{kind}:{name} began with a rollback handler that this code does not make any more"
            ) from None
        output = None if value is None else undo.output(value)
        own: Key = (undo.kind, f"{ROLLBACK_NAME}{kind}:{name}", occurrence)
        await steps.request(own, undo.config, _work(undo, error, output))


def _work(undo: Undo, error: Exception, output: Json) -> Work | None:
    function = undo.function
    if function is None:
        return None

    def body(ctx: StepContext) -> Json:
        given = {"ctx": ctx, "error": error, "output": output}
        return function(**{name: given[name] for name in undo.takes})

    return Work(body, undo.delay)


def _cause(data: Mapping[str, Json]) -> Exception:
    """Why the run is undone."""
    ending = data["data"]
    if ending.get("error") is not None:
        return errors.revive(ending["error"], "run()")
    return RunCancelled(f"the run was cancelled by {ending.get('actor') or 'someone'}")
