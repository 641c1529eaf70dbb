"""Reads what the guest says: commands, answers, descriptions. Trusts none of it.

An author can reach the wire and send whatever they like. So everything is checked here, field by
field, before the engine sees it: what does not fit is refused, and fails that run alone.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from ci_platform.model import (
    AbandonStep,
    Command,
    Description,
    ErrorInfo,
    FinishAttempt,
    Json,
    NoteDivergence,
    PipelineDescription,
    Resume,
    StartStep,
    StepKey,
    StepKind,
    Trigger,
)
from ci_platform.ports.granting import Ask, WebResponse
from pipelines.wire import (
    ASK_VERSION,
    GIT_DEPTH_MAX,
    NAME_MAX,
    PERIOD_MS_MAX,
    RETRIES_MAX,
    ROLLBACK_NAME,
    TIMER_NAME,
    VALUE_DEPTH_MAX,
)

COMMANDS_MAX = 25_000  # in one message
OCCURRENCE_MAX = 1_000_000
TEXT_MAX = 16_384  # characters of a message or traceback
LIST_MAX = 100
FORM_BYTES_MAX = 64 * 1024
SCRIPT_MAX = 256 * 1024
CACHE_KEY_MAX = 1_024
ENV_VALUE_MAX = 32 * 1024
PIPELINES_MAX = 50
INSTANT_MS_MAX = 1 << 53
_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}", re.DOTALL)
_OCCURRENCE = re.compile(r"#[0-9]+\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_WORD = re.compile(r"[a-z][a-z_.]{0,49}", re.ASCII)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # Latin-1 without control characters
_EVENT_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", re.ASCII)


Checks: TypeAlias = Mapping[str, Callable[[Json], bool]]


class BadMessage(Exception):
    """The guest said something that no version of `pipelines` says."""


def loads(text: str, what: str) -> Json:
    try:
        return _decode(text)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"{what} is not JSON: {type(error).__name__}") from None


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


# Made once: `json.loads` and `json.dumps` with arguments make theirs at each call.
_encode: Callable[[Json], str] = json.JSONEncoder(separators=(",", ":")).encode
_decode: Callable[[str], Json] = json.JSONDecoder(
    parse_constant=_no_constant, parse_float=_finite
).decode


def commands(text: str, *, value_bytes: int) -> list[Command]:
    """The commands of one `next`. Raises BadMessage."""
    return _commands(loads(text, "a message"), value_bytes)


def ask(text: str) -> Ask:
    """What the guest wants of its env. Raises BadMessage."""
    found = loads(text, "a request")
    if not isinstance(found, dict):
        raise BadMessage("a request is no object")
    _fields(found, {"v", "capability", "method", "arguments"})
    capability, method, arguments = found["capability"], found["method"], found["arguments"]
    if found["v"] != ASK_VERSION:
        raise BadMessage("a request is of a version that this platform does not speak")
    if not all(isinstance(word, str) and _WORD.fullmatch(word) for word in (capability, method)):
        raise BadMessage("a request is for no capability")
    if not isinstance(arguments, dict) or not _shallow(arguments):
        raise BadMessage("a request's arguments are no object, or nested too deeply")
    return Ask(capability, method, arguments)


def ends(found: Json, *, value_bytes: int) -> list[Command]:
    """The commands that come with the answer of code that has ended. Raises BadMessage."""
    ended = _commands(found, value_bytes)
    if not all(isinstance(each, FinishAttempt) for each in ended):
        raise BadMessage("an answer asks for something")
    return ended


def _commands(found: Json, value_bytes: int) -> list[Command]:
    if not isinstance(found, list):
        raise BadMessage("a message is no list of commands")
    if len(found) > COMMANDS_MAX:
        raise BadMessage(f"a message has {len(found)} commands; the limit is {COMMANDS_MAX}")
    return [_command(each, value_bytes) for each in found]


def _command(found: Json, value_bytes: int) -> Command:
    if not isinstance(found, dict):
        raise BadMessage("a command is no object")
    op = found.get("op")
    key = _key(found.get("key"))
    if op == "start":
        _fields(found, {"op", "key", "config"})
        return StartStep(key, config(key.kind, found["config"]))
    if op == "finish":
        return _finish(found, key, value_bytes)
    if op == "abandon":
        _fields(found, {"op", "key"})
        return AbandonStep(key)
    if op == "diverge":
        _fields(found, {"op", "key", "change"})
        if found["change"] not in ("inserted", "missing"):
            raise BadMessage("a divergence is neither inserted nor missing")
        return NoteDivergence(key, found["change"])
    raise BadMessage("a command is none that exists")


def _key(found: Json) -> StepKey:
    if not isinstance(found, list) or len(found) != 3:
        raise BadMessage("a step's key is not [kind, name, occurrence]")
    kind, name, occurrence = found
    try:
        kind = StepKind(kind)
    except ValueError:
        raise BadMessage("a step is of no kind that exists") from None
    if not _whole(occurrence, 1, OCCURRENCE_MAX):
        raise BadMessage("a step's occurrence is no count")
    if not isinstance(name, str) or not _NAME.fullmatch(_undone(name)):
        raise BadMessage(f"a step's name is empty, longer than {NAME_MAX} or unprintable")
    if kind is StepKind.TIMER:
        if name != TIMER_NAME:
            raise BadMessage("a timer is not named as timers are")
    elif _undone(name).startswith("$") or _OCCURRENCE.search(name):
        raise BadMessage("a step's name is reserved for the platform")
    return StepKey(kind, name, occurrence)


def _undone(name: str) -> str:
    """The name of the step that a rollback's handler undoes; any other name as it is."""
    return name.removeprefix(ROLLBACK_NAME).partition(":")[2] if _rolls_back(name) else name


def _rolls_back(name: str) -> bool:
    return name.startswith((f"{ROLLBACK_NAME}do:", f"{ROLLBACK_NAME}sh:"))


def _finish(found: Mapping[str, Json], key: StepKey, value_bytes: int) -> FinishAttempt:
    attempt: Json = found.get("attempt")
    if key.kind is StepKind.SERVICE:
        _fields(found, {"op", "key", "attempt", "value"})
        if attempt != 1 or isinstance(attempt, bool) or found["value"] is not None:
            raise BadMessage("a service ends once, and with nothing")
        return FinishAttempt(key, 1)
    if key.kind is not StepKind.DO:
        raise BadMessage(f"only steps of kind do end in the code, not of kind {key.kind}")
    if not _whole(attempt, 1, RETRIES_MAX + 1):
        raise BadMessage("an attempt is no count")
    if "error" not in found:
        early_ms = found.get("early_ms", 0)
        _fields({**found, "early_ms": early_ms}, {"op", "key", "attempt", "value", "early_ms"})
        if not _whole(early_ms, 0, INSTANT_MS_MAX):
            raise BadMessage("a step completes early at no time")
        passed = value(found["value"], value_bytes)
        return FinishAttempt(key, attempt, value=passed, early_ms=found.get("early_ms"))
    _fields(found, {"op", "key", "attempt", "error", "retryable", "delay_ms"})
    delay = found["delay_ms"]
    if not _flag(found["retryable"]) or not (delay is None or _period(delay)):
        raise BadMessage("a failed attempt does not say how to go on")
    return FinishAttempt(
        key, attempt, error=error(found["error"]), retryable=found["retryable"], delay_ms=delay
    )


def value(found: Json, bytes_max: int) -> Json:
    """A step's result or a run's output, within its limits."""
    if not _shallow(found):
        raise BadMessage(f"a value is nested deeper than {VALUE_DEPTH_MAX} levels")
    size = len(_encode(found))
    if size > bytes_max:
        raise BadMessage(f"a value has {size} bytes of JSON; the limit is {bytes_max}")
    return found


def _shallow(found: Json) -> bool:
    """Whether a value's nesting is within the limit, and its texts are Unicode."""
    level = [found]
    for _ in range(VALUE_DEPTH_MAX + 2):
        inner: list[Json] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
                if not all(map(_clean, each)):
                    return False
            elif isinstance(each, list):
                inner.extend(each)
            elif isinstance(each, str) and not _clean(each):
                return False
        if not inner:
            return True
        level = inner
    return False


def _clean(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def error(found: Json) -> ErrorInfo:
    """An author's exception. Cut to size rather than refused, so that people get to see it."""
    if not isinstance(found, dict) or not isinstance(found.get("data", {}), dict):
        raise BadMessage("an error is no object")
    texts = [found.get(name, "") for name in ("type", "message", "traceback")]
    if not all(isinstance(text, str) for text in texts):
        raise BadMessage("an error has no texts")
    kind, message, traceback = (printable(text)[:TEXT_MAX] for text in texts)
    data = found.get("data", {})
    if not _shallow(data) or len(json.dumps(data)) > TEXT_MAX:
        data = {}
    return ErrorInfo(kind[:256] or "Exception", message, traceback, data)


def replaced(found: ErrorInfo, message: str) -> ErrorInfo:
    """The same error with a message that says more."""
    return ErrorInfo(found.type, message, found.traceback, found.data)


def printable(text: str) -> str:
    """Text as every database and screen can hold it."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


# --- configs of steps -----------------------------------------------------------------------------


def config(kind: StepKind, found: Json) -> Mapping[str, Json]:
    """A step's config: exactly the fields of its kind, each within its limits."""
    if not isinstance(found, dict):
        raise BadMessage("a step's config is no object")
    checks: Checks
    if kind is StepKind.SLEEP:
        checks = _SLEEP_UNTIL if "until_ms" in found else _SLEEP_FOR
    else:
        checks = _CONFIGS[kind]
    if kind is StepKind.SH and "services" in found:
        checks = {**checks, "services": _SERVICES}
    if kind is StepKind.SH and "git_depth" in found:
        checks = {**checks, "git_depth": lambda given: _whole(given, 1, GIT_DEPTH_MAX)}
    if kind is StepKind.SH and "on_lost" in found:
        checks = {**checks, "on_lost": lambda given: given in ("retry", "fail")}
    _fields(found, set(checks))
    for name, check in checks.items():
        if not check(found[name]):
            raise BadMessage(f"the {name} of a {kind} step is not what it may be")
    return found


def _fields(found: Mapping[str, Json], wanted: set[str]) -> None:
    if set(found) != wanted:
        odd = sorted(str(name)[:40] for name in set(found) ^ wanted)[:5]
        raise BadMessage(f"a message lacks or has too many fields: {', '.join(odd)}")


def _whole(found: Json, least: int, most: int) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and least <= found <= most


def _flag(found: Json) -> bool:
    return isinstance(found, bool)


def _period(found: Json) -> bool:
    return _whole(found, 0, PERIOD_MS_MAX)


def _text(most: int) -> Callable[[Json], bool]:
    def check(found: Json) -> bool:
        return isinstance(found, str) and len(found) <= most and "\0" not in found and _clean(found)

    return check


def _texts(check: Callable[[Json], bool]) -> Callable[[Json], bool]:
    return lambda found: (
        isinstance(found, list) and len(found) <= LIST_MAX and all(map(check, found))
    )


def _or_none(check: Callable[[Json], bool]) -> Callable[[Json], bool]:
    return lambda found: found is None or check(found)


def _inside(found: Json) -> bool:
    """A path inside the workspace."""
    return _text(1_024)(found) and found[:1] != "/" and ".." not in found.split("/")


def _environment(found: Json) -> bool:
    return (
        isinstance(found, dict)
        and len(found) <= LIST_MAX
        and all(map(_VARIABLE.fullmatch, found))
        and all(map(_text(ENV_VALUE_MAX), found.values()))
    )


def _retries(found: Json) -> bool:
    return (
        isinstance(found, dict)
        and set(found) == {"limit", "delay_ms", "backoff"}
        and _whole(found["limit"], 0, RETRIES_MAX)
        and _or_none(_period)(found["delay_ms"])
        and found["backoff"] in ("constant", "linear", "exponential")
    )


def _cache(found: Json) -> bool:
    return (
        isinstance(found, dict)
        and set(found) == {"inputs", "key"}
        and _PATHS(found["inputs"])
        and _text(CACHE_KEY_MAX)(found["key"])
    )


def _ready(found: Json) -> bool:
    """One word for the check, and what it needs."""
    if not isinstance(found, dict) or len(found) != 1:
        return False
    ((word, given),) = found.items()
    if word == "port":
        return _whole(given, 1, 65_535)
    return word in ("http", "command", "log") and _text(ENV_VALUE_MAX)(given)


def _form(found: Json) -> bool:
    return (
        isinstance(found, dict)
        and all(isinstance(field, dict) for field in found.values())
        and _shallow(found)
        and len(json.dumps(found)) <= FORM_BYTES_MAX
    )


def _event_type(found: Json) -> bool:
    return isinstance(found, str) and _EVENT_TYPE.fullmatch(found) is not None


_NAMES = _texts(_text(256))
_SERVICES = _texts(_text(2 * NAME_MAX))
_PATHS = _texts(_inside)
_SLEEP_FOR: Checks = {"duration_ms": _period}
_SLEEP_UNTIL: Checks = {"until_ms": lambda found: _whole(found, 0, INSTANT_MS_MAX)}
_CONFIGS: Mapping[StepKind, Checks] = {
    StepKind.DO: {
        "retries": _retries,
        "timeout_ms": _period,
        "sensitive": _flag,
        "rollback": _flag,
    },
    StepKind.SH: {
        "script": _text(SCRIPT_MAX),
        "env": _environment,
        "secrets": _NAMES,
        "cwd": _inside,
        "shell": lambda found: found in ("sh", "bash"),
        "timeout_ms": _period,
        "retries": lambda found: _retries(found) and found["delay_ms"] is not None,
        "labels": _NAMES,
        "image": _or_none(_text(512)),
        "network": _NAMES,
        "artifacts": _PATHS,
        "reports": _PATHS,
        "cache": _or_none(_cache),
        "cache_dirs": _environment,
        "allow_failure": _flag,
        "rollback": _flag,
    },
    StepKind.SERVICE: {
        "script": _text(SCRIPT_MAX),
        "env": _environment,
        "secrets": _NAMES,
        "cwd": _inside,
        "shell": lambda found: found in ("sh", "bash"),
        "network": _NAMES,
        "timeout_ms": _period,
        "ready": _or_none(_ready),
    },
    StepKind.WAIT: {"type": _event_type, "timeout_ms": _period},
    StepKind.APPROVAL: {
        "approvers": _NAMES,
        "required": lambda found: _whole(found, 1, LIST_MAX),
        "allow_self": _flag,
        "form": _form,
        "timeout_ms": _period,
        "environment": _or_none(_text(NAME_MAX)),
    },
    StepKind.RUN: {
        "pipeline": _or_none(_text(100)),
        "params": _shallow,
        "wait": _flag,
    },
    StepKind.TIMER: {"duration_ms": _period},
}


# --- descriptions ---------------------------------------------------------------------------------


def description(found: Json) -> Description:
    """What a file says of itself. Raises BadMessage."""
    pipelines = found.get("pipelines") if isinstance(found, dict) else None
    if not isinstance(pipelines, list) or not 0 < len(pipelines) <= PIPELINES_MAX:
        raise BadMessage(f"a description has no pipelines, or more than {PIPELINES_MAX}")
    fetch = found.get("fetch")
    if fetch not in (None, "token", "public"):
        raise BadMessage("a description whose fetch is for nobody that exists")
    return Description(tuple(_pipeline(each) for each in pipelines), fetch=fetch)


def response(found: Json) -> WebResponse:
    """What the repository's own endpoint answers. Raises BadMessage."""
    if not isinstance(found, dict):
        raise BadMessage("a response is no object")
    _fields(found, {"status", "headers", "body"})
    status, headers, body = found["status"], found["headers"], found["body"]
    if not _whole(status, 200, 599):
        raise BadMessage("a response's status is none of HTTP")
    if not isinstance(headers, list) or len(headers) > LIST_MAX:
        raise BadMessage(f"a response has more than {LIST_MAX} headers")
    for pair in headers:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_text(8_192), pair)):
            raise BadMessage("a response's header is no pair of texts")
        if not _HEADER.fullmatch(pair[0]) or not _HEADER_VALUE.fullmatch(pair[1]):
            raise BadMessage("a response's header holds what none may hold")
    try:
        data = base64.b64decode(body, validate=True)
    except (TypeError, ValueError):
        raise BadMessage("a response's body is not base64") from None
    return WebResponse(status, tuple((name, text) for name, text in headers), data)


def _pipeline(found: Json) -> PipelineDescription:
    checks: Checks = {
        "name": lambda name: _text(100)(name) and name.isidentifier(),
        "triggers": lambda triggers: isinstance(triggers, list) and len(triggers) <= LIST_MAX,
        "resume": lambda resume: resume in ("pinned", "latest"),
        "on_divergence": lambda policy: policy in ("accept", "hold", "fail"),
        "concurrency": _or_none(_concurrency),
        "timeout_ms": _or_none(_period),
    }
    if not isinstance(found, dict):
        raise BadMessage("a pipeline's description is no object")
    _fields(found, set(checks))
    for name, check in checks.items():
        if not check(found[name]):
            raise BadMessage(f"the {name} of a pipeline is not what it may be")
    return PipelineDescription(
        name=found["name"],
        triggers=tuple(_trigger(each) for each in found["triggers"]),
        resume=Resume(found["resume"]),
        on_divergence=found["on_divergence"],
        concurrency=found["concurrency"],
        timeout_ms=found["timeout_ms"],
    )


def _concurrency(found: Json) -> bool:
    return (
        isinstance(found, dict)
        and set(found) == {"group", "limit", "on_new"}
        and _text(1_024)(found["group"])
        and _whole(found["limit"], 1, 10_000)
        and found["on_new"] in ("queue", "cancel_running", "cancel_queued")
    )


def _trigger(found: Json) -> Trigger:
    checks: Checks = {
        "kind": lambda kind: kind in ("push", "tag", "pull_request", "schedule", "manual"),
        "branches": _NAMES,
        "tags": _NAMES,
        "paths": _NAMES,
        "cron": _or_none(_text(256)),
        "timezone": _or_none(_text(64)),
        "inputs": _form,
    }
    if not isinstance(found, dict):
        raise BadMessage("a trigger is no object")
    _fields(found, set(checks))
    for name, check in checks.items():
        if not check(found[name]):
            raise BadMessage(f"the {name} of a trigger is not what it may be")
    return Trigger(
        kind=found["kind"],
        branches=tuple(found["branches"]),
        tags=tuple(found["tags"]),
        paths=tuple(found["paths"]),
        cron=found["cron"],
        timezone=found["timezone"],
        inputs=found["inputs"],
    )
