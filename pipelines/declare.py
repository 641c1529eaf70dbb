"""What a pipeline file declares: the Pipeline class, its triggers, inputs and policies.

Everything is checked when it is written down, with errors that name the argument. `describe` turns
a class into the JSON that is stored per commit. What a run does with it lives in step.py and
replay.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from pipelines.checks import TEXT_MAX, flag, one_of, text, texts, whole
from pipelines.durations import Duration, duration_ms
from pipelines.wire import PERIOD_MS_MAX, RETRIES_MAX, Json

if TYPE_CHECKING:
    from pipelines.env import Env
    from pipelines.step import Step
    from pipelines.values import Event, StepContext

TRIGGERS_MAX = 50  # of one pipeline
INPUTS_MAX = 50  # of one form
CACHE_KEY_MAX = 1_024  # characters
BACKOFFS = ("constant", "linear", "exponential")

Delay: TypeAlias = Duration | Callable[["StepContext", Exception], Json]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a failed step is tried again.

    `limit` counts re-tries: Retry(limit=2) makes up to three attempts. `delay` may be a function of
    (ctx, error) that returns a duration.
    """

    limit: int = 5
    delay: Delay = "10 s"
    backoff: str = "exponential"

    def __post_init__(self) -> None:
        whole("retries.limit", self.limit, least=0, most=RETRIES_MAX)
        one_of("retries.backoff", self.backoff, BACKOFFS)
        if not callable(self.delay):
            duration_ms(self.delay, "retries.delay")

    def config(self) -> dict[str, Json]:
        delay = None if callable(self.delay) else duration_ms(self.delay, "retries.delay")
        return {"limit": self.limit, "delay_ms": delay, "backoff": self.backoff}


@dataclass(frozen=True, slots=True)
class Rollback:
    """A handler that undoes a step, with retries and a timeout of its own.

    The handler takes what it names of ctx, error and output. For a command it may be a script.
    """

    handler: Callable[..., Json] | str
    retries: int | Retry = 5
    timeout: Duration = "10 minutes"


@dataclass(frozen=True, slots=True)
class Cache:
    """What a command's result depends on, so that a later run need not execute it again.

    `inputs` are patterns of files in the workspace, all of them unless said otherwise; `key` is any
    text of yours. Script, environment and the kind of machine count anyway.
    """

    inputs: Sequence[str] = ("**",)
    key: str = ""

    def __post_init__(self) -> None:
        for path in texts("cache.inputs", self.inputs):
            if path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"cache.inputs must be inside the workspace, got {path!r}")
        text("cache.key", self.key, most=CACHE_KEY_MAX, empty=True)

    def config(self) -> dict[str, Json]:
        return {"inputs": list(self.inputs), "key": self.key}


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many runs of a group go on at once; `group` may hold {ref}, {branch}, {pipeline}."""

    group: str = "{ref}"
    limit: int = 1
    on_new: str = "queue"

    def __post_init__(self) -> None:
        _check_group(text("concurrency.group", self.group, most=TEXT_MAX))
        whole("concurrency.limit", self.limit, least=1, most=10_000)
        one_of("concurrency.on_new", self.on_new, ("queue", "cancel_running", "cancel_queued"))


GROUP_FIELDS = ("ref", "branch", "tag", "pipeline", "event", "commit", "actor")


def _check_group(template: str) -> None:
    """Refuse a template that could not be filled in when a run is created."""
    known = ", ".join(f"{{{name}}}" for name in GROUP_FIELDS)
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"concurrency.group {template!r}: {error}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (name not in GROUP_FIELDS or spec or conversion):
            raise ValueError(f"concurrency.group may use {known}; got {{{name}}}")


# --- inputs: typed fields of a form -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text. Without a default it must be filled in."""

    default: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.default is not None:
            text("default", self.default, most=TEXT_MAX, empty=True)
        text("label", self.label, most=TEXT_MAX, empty=True)

    def form(self) -> dict[str, Json]:
        return {"type": "text", "default": self.default, "label": self.label}


@dataclass(frozen=True, slots=True)
class Boolean:
    """A yes or a no."""

    default: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        flag("default", self.default)
        text("label", self.label, most=TEXT_MAX, empty=True)

    def form(self) -> dict[str, Json]:
        return {"type": "boolean", "default": self.default, "label": self.label}


@dataclass(frozen=True, slots=True)
class Number:
    """A number, within bounds if they are given."""

    default: int | float | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    label: str = ""

    def __post_init__(self) -> None:
        for name in ("default", "minimum", "maximum"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")
        text("label", self.label, most=TEXT_MAX, empty=True)

    def form(self) -> dict[str, Json]:
        return {
            "type": "number",
            "default": self.default,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "label": self.label,
        }


class Choice:
    """One of some texts: Choice("staging", "production"). The first is the default."""

    __slots__ = ("default", "label", "options")

    def __init__(self, *options: str, default: str | None = None, label: str = "") -> None:
        if not options:
            raise ValueError("Choice needs at least one option")
        for option in options:
            text("options", option, most=TEXT_MAX)
        if len(set(options)) != len(options):
            raise ValueError("options must differ from each other")
        if default is not None and default not in options:
            raise ValueError(f"default must be one of the options, got {default!r}")
        text("label", label, most=TEXT_MAX, empty=True)
        self.options = options
        self.default = options[0] if default is None else default
        self.label = label

    def form(self) -> dict[str, Json]:
        return {
            "type": "choice",
            "options": list(self.options),
            "default": self.default,
            "label": self.label,
        }


Input: TypeAlias = Text | Boolean | Number | Choice
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


def form_of(argument: str, inputs: Mapping[str, Input] | None) -> dict[str, Json]:
    """Check a form's fields and turn them into data."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        raise TypeError(f'{argument} must be a dict such as {{"target": Choice("a", "b")}}')
    if len(inputs) > INPUTS_MAX:
        raise ValueError(f"{argument} may have {INPUTS_MAX} fields, got {len(inputs)}")
    found: dict[str, Json] = {}
    for name, field in inputs.items():
        if not isinstance(name, str) or not _FIELD.fullmatch(name):
            raise ValueError(f"{argument} has a bad field name {name!r}: use letters, digits and _")
        if not isinstance(field, (Text, Boolean, Number, Choice)):
            raise TypeError(
                f"{argument}[{name!r}] must be Text, Boolean, Number or Choice, "
                f"got {type(field).__name__}"
            )
        found[name] = field.form()
    return found


# --- triggers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trigger:
    """What starts a run. Made by the `on_…` functions."""

    kind: str
    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    cron: str | None = None
    timezone: str | None = None
    inputs: Mapping[str, Json] | None = None

    def description(self) -> dict[str, Json]:
        return {
            "kind": self.kind,
            "branches": list(self.branches),
            "tags": list(self.tags),
            "paths": list(self.paths),
            "cron": self.cron,
            "timezone": self.timezone,
            "inputs": dict(self.inputs or {}),
        }


def on_push(*, branches: Sequence[str] = (), paths: Sequence[str] = ()) -> Trigger:
    """Run when a branch is pushed; with `paths`, only when a file below them changed."""
    return Trigger("push", branches=texts("branches", branches), paths=texts("paths", paths))


def on_tag(*, tags: Sequence[str] = ()) -> Trigger:
    """Run when a tag is pushed."""
    return Trigger("tag", tags=texts("tags", tags))


def on_pull_request(*, branches: Sequence[str] = (), paths: Sequence[str] = ()) -> Trigger:
    """Run for pull requests into these branches."""
    return Trigger(
        "pull_request", branches=texts("branches", branches), paths=texts("paths", paths)
    )


def on_schedule(cron: str, *, timezone: str = "UTC") -> Trigger:
    """Run on a schedule of five cron fields, in a time zone such as Europe/Berlin."""
    text("cron", cron, most=256)
    if len(cron.split()) != 5:
        raise ValueError(f"cron must have five fields such as '0 3 * * *', got {cron!r}")
    text("timezone", timezone, most=64)
    return Trigger("schedule", cron=cron, timezone=timezone)


def on_manual(*, inputs: Mapping[str, Input] | None = None) -> Trigger:
    """Let people start runs, with a form for the params."""
    return Trigger("manual", inputs=form_of("inputs", inputs))


# --- the class ------------------------------------------------------------------------------------


class Pipeline:
    """Subclass this in `.ci/pipeline.py` and write `async def run(self, event, step)`."""

    triggers: ClassVar[Sequence[Trigger]] = ()
    resume: ClassVar[str] = "pinned"
    on_divergence: ClassVar[str] = "accept"
    concurrency: ClassVar[Concurrency | None] = None
    timeout: ClassVar[Duration | None] = None

    env: Env

    async def run(self, event: Event, step: Step) -> Json:
        """What the pipeline does. Its return value is the run's output.

        When it returns or raises, the run is over: tasks it left behind stop where they are, and
        steps they wait for are cancelled. A step that was called but never awaited fails the run.
        An error in a task that nobody awaits is printed to the log, and fails nothing.
        """
        raise TypeError(f"{type(self).__name__} has no method run(self, event, step)")


def describe(cls: type[Pipeline]) -> dict[str, Json]:
    """Check what a class declares and turn it into data. Errors name class and attribute."""
    name = cls.__name__
    try:
        if cls.run is Pipeline.run:
            raise TypeError("run is missing: write async def run(self, event, step)")
        one_of("resume", cls.resume, ("pinned", "latest"))
        one_of("on_divergence", cls.on_divergence, ("accept", "hold", "fail"))
        if cls.concurrency is not None and not isinstance(cls.concurrency, Concurrency):
            raise TypeError('concurrency must be Concurrency(group="{ref}", limit=1)')
        return {
            "name": text("the class's name", name, most=100),
            "triggers": [trigger.description() for trigger in _triggers(cls.triggers)],
            "resume": cls.resume,
            "on_divergence": cls.on_divergence,
            "concurrency": _concurrency(cls.concurrency),
            "timeout_ms": _run_timeout_ms(cls.timeout),
        }
    except (TypeError, ValueError) as error:
        raise type(error)(f"pipeline {name}: {error}") from error


def _triggers(triggers: Sequence[Trigger]) -> Sequence[Trigger]:
    if isinstance(triggers, Trigger) or not isinstance(triggers, (list, tuple)):
        raise TypeError("triggers must be a list such as [on_push()]")
    if len(triggers) > TRIGGERS_MAX:
        raise ValueError(f"triggers may have {TRIGGERS_MAX} entries, got {len(triggers)}")
    for trigger in triggers:
        if not isinstance(trigger, Trigger):
            hint = f": call it, {trigger.__name__}()" if trigger in _MAKERS else ""
            raise TypeError(f"triggers has {trigger!r}, which is no trigger{hint}")
    return triggers


_MAKERS = (on_push, on_tag, on_pull_request, on_schedule, on_manual)


def _concurrency(found: Concurrency | None) -> dict[str, Json] | None:
    if found is None:
        return None
    return {"group": found.group, "limit": found.limit, "on_new": found.on_new}


def _run_timeout_ms(timeout: Duration | None) -> int | None:
    if timeout is None:
        return None
    return duration_ms(timeout, "timeout", least_ms=1_000, most_ms=PERIOD_MS_MAX)
