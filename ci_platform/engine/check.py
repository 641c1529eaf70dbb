"""Checks of what a guest asks for. A guest is hostile: nothing it sends is believed.

Each check raises PipelineError, or LimitExceeded with the limit's name, in a sentence that its
author can act on. They fail that one run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ci_platform.engine.endings import check_value
from ci_platform.engine.limits import (
    APPROVALS_REQUIRED_MAX,
    DURATION_MS_MAX,
    EVENT_TYPE_MAX,
    GIT_DEPTH_MAX,
    LIST_MAX,
    TEXT_MAX,
    Limits,
)
from ci_platform.engine.retry import BACKOFFS, DELAY_MS_MAX, RETRIES_MAX
from ci_platform.errors import LimitExceeded, PipelineError
from ci_platform.labels import LABEL, LABELS_MAX
from ci_platform.model import STEP_NAME_MAX, Json, StepKey, StepKind

EVENT_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
INSTANT_MS_MAX = 253_402_300_799_000  # the last second of the year 9999
READY_WORDS = ("port", "http", "command", "log")
PLATFORM_NAMES = "$"  # names that begin so are the platform's own
Check = Callable[[str, Json], None]


def check_key(key: StepKey) -> None:
    """Refuse a key that no step of an author can have."""
    if not isinstance(key.name, str) or not key.name:
        raise PipelineError(f"a {key.kind} step has no name")
    if len(key.name) > STEP_NAME_MAX:
        raise LimitExceeded(
            f"the step name {key.name[:40]!r}… has {len(key.name)} characters; "
            f"the limit is {STEP_NAME_MAX}",
            limit="step_name",
        )
    if not key.name.isprintable():  # control characters, line ends, lone surrogates
        raise PipelineError(f"the step name {key.name!r} has characters that cannot be printed")
    if key.name.startswith(PLATFORM_NAMES) and key.kind is not StepKind.TIMER:
        raise PipelineError(f"the step name {key.name!r} begins with {PLATFORM_NAMES!r}")
    if type(key.occurrence) is not int or key.occurrence < 1:
        raise PipelineError(f"step {key.name!r} has the occurrence {key.occurrence!r}")


def check_config(key: StepKey, config: Mapping[str, Json], limits: Limits) -> None:
    """Refuse a config with unknown, missing or impossible fields."""
    fields, required = _FIELDS[key.kind]
    what = f"step {key.label!r}"
    unknown = sorted(set(config) - set(fields))
    if unknown:
        raise PipelineError(f"{what} has the unknown option {unknown[0]!r}")
    missing = sorted(required - set(config))
    if missing:
        raise PipelineError(f"{what} lacks the option {missing[0]!r}")
    for name, value in config.items():
        fields[name](f"{name} of {what}", value)
    if key.kind is StepKind.SLEEP and len(config) != 1:
        raise PipelineError(f"{what} needs either duration_ms or until_ms")
    check_value(config, f"the options of {what}", limits)


def check_event_type(what: str, value: Json) -> None:
    """Refuse what is not an event type."""
    if not isinstance(value, str) or len(value) > EVENT_TYPE_MAX or not EVENT_TYPE.fullmatch(value):
        raise PipelineError(
            f"{what} is {str(value)[:40]!r}: an event type has 1 to {EVENT_TYPE_MAX} letters, "
            "digits, _ and -, and does not begin with -"
        )


def whole(lowest: int, highest: int, *, none: bool = False) -> Check:
    """A check for a whole number between two."""

    def check(what: str, value: Json) -> None:
        if none and value is None:
            return
        if type(value) is not int or not lowest <= value <= highest:
            raise PipelineError(
                f"{what} is {str(value)[:40]}; it must be a whole number "
                f"from {lowest:,} to {highest:,}"
            )

    return check


def _flag(what: str, value: Json) -> None:
    if not isinstance(value, bool):
        raise PipelineError(f"{what} must be true or false")


def _text(what: str, value: Json) -> None:
    if not isinstance(value, str):
        raise PipelineError(f"{what} must be text")
    if len(value) > TEXT_MAX:
        raise LimitExceeded(
            f"{what} has {len(value):,} characters; the limit is {TEXT_MAX:,}", limit="text"
        )
    if "\0" in value:
        raise PipelineError(f"{what} holds a NUL character")


def _text_or_none(what: str, value: Json) -> None:
    if value is not None:
        _text(what, value)


def _texts(what: str, value: Json) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise PipelineError(f"{what} must be a list of texts")
    _few(what, value)
    for item in value:
        _text(f"an item of {what}", item)


def _labels(what: str, value: Json) -> None:
    _texts(what, value)
    if len(value) > LABELS_MAX:
        raise LimitExceeded(f"{what} has {len(value)} items; the limit is {LABELS_MAX}")
    for label in value:
        if LABEL.fullmatch(label) is None:
            raise PipelineError(f"{what} has {label[:80]!r}, which is not a label")


def _environment(what: str, value: Json) -> None:
    if not isinstance(value, Mapping):
        raise PipelineError(f"{what} must map names to texts")
    _few(what, value)
    for name, text in value.items():
        _text(f"a name of {what}", name)
        if not name or "=" in name:
            raise PipelineError(f"{what} has the impossible name {name!r}")
        _text(f"{name} of {what}", text)


def _few(what: str, value: Sequence[Json] | Mapping[str, Json]) -> None:
    if len(value) > LIST_MAX:
        raise LimitExceeded(f"{what} has {len(value):,} items; the limit is {LIST_MAX:,}")


def _one_of(*words: str) -> Check:
    def check(what: str, value: Json) -> None:
        if value not in words:
            raise PipelineError(f"{what} is {str(value)[:40]!r}; it must be one of {words}")

    return check


def _retries(what: str, value: Json) -> None:
    if not isinstance(value, Mapping) or set(value) != {"limit", "delay_ms", "backoff"}:
        raise PipelineError(f"{what} needs limit, delay_ms and backoff")
    whole(0, RETRIES_MAX)(f"the limit in {what}", value["limit"])
    whole(0, DELAY_MS_MAX, none=True)(f"the delay in {what}", value["delay_ms"])
    _one_of(*BACKOFFS)(f"the backoff in {what}", value["backoff"])


def _cache(what: str, value: Json) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or set(value) != {"inputs", "key"}:
        raise PipelineError(f"{what} needs inputs and key")
    _texts(f"the inputs of {what}", value["inputs"])
    _text(f"the key of {what}", value["key"])


def _ready(what: str, value: Json) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or len(value) != 1:
        raise PipelineError(f"{what} needs one of {READY_WORDS}")
    for word, given in value.items():
        _one_of(*READY_WORDS)(f"the check in {what}", word)
        if word == "port":
            whole(1, 65_535)(f"the port in {what}", given)
        else:
            _text(f"the {word} in {what}", given)


def _anything(what: str, value: Json) -> None:
    """Bounded by the check of the whole config."""


_DURATION = whole(0, DURATION_MS_MAX)
_TIMEOUT = whole(1, DURATION_MS_MAX)

_FIELDS: Mapping[StepKind, tuple[Mapping[str, Check], frozenset[str]]] = {
    StepKind.DO: (
        {"retries": _retries, "timeout_ms": _TIMEOUT, "sensitive": _flag, "rollback": _flag},
        frozenset(),
    ),
    StepKind.SH: (
        {
            "script": _text,
            "env": _environment,
            "secrets": _texts,
            "cwd": _text,
            "shell": _one_of("sh", "bash"),
            "timeout_ms": _TIMEOUT,
            "retries": _retries,
            "labels": _labels,
            "on_lost": _one_of("retry", "fail"),
            "image": _text_or_none,
            "network": _texts,
            "artifacts": _texts,
            "reports": _texts,
            "cache": _cache,
            "cache_dirs": _environment,
            "allow_failure": _flag,
            "rollback": _flag,
            "services": _texts,
            "git_depth": whole(1, GIT_DEPTH_MAX),
        },
        frozenset({"script"}),
    ),
    StepKind.SERVICE: (
        {
            "script": _text,
            "env": _environment,
            "secrets": _texts,
            "cwd": _text,
            "shell": _one_of("sh", "bash"),
            "network": _texts,
            "timeout_ms": _TIMEOUT,
            "ready": _ready,
        },
        frozenset({"script"}),
    ),
    StepKind.SLEEP: (
        {"duration_ms": _DURATION, "until_ms": whole(0, INSTANT_MS_MAX)},
        frozenset(),
    ),
    StepKind.TIMER: ({"duration_ms": _DURATION}, frozenset({"duration_ms"})),
    StepKind.WAIT: (
        {"type": check_event_type, "timeout_ms": whole(1, DURATION_MS_MAX, none=True)},
        frozenset({"type"}),
    ),
    StepKind.APPROVAL: (
        {
            "approvers": _texts,
            "required": whole(1, APPROVALS_REQUIRED_MAX),
            "allow_self": _flag,
            "form": _anything,
            "timeout_ms": whole(1, DURATION_MS_MAX, none=True),
            "environment": _text_or_none,
        },
        frozenset(),
    ),
    StepKind.RUN: (
        {"pipeline": _text, "params": _anything, "wait": _flag},
        frozenset({"pipeline"}),
    ),
}
