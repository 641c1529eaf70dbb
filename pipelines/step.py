"""What `run(self, event, step)` may call: do, sh, service, sleep, wait_for_event, approval.

Arguments are checked when a step is called, with errors that name the argument; the step itself
begins when it is awaited. Keys, history and the host are replay.py's business.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import FunctionType
from typing import TypeAlias, TypeVar, overload

from pipelines.bodies import Work
from pipelines.checks import (
    block,
    event_type,
    flag,
    one_of,
    step_name,
    text,
    text_map,
    texts,
    whole,
)
from pipelines.declare import Cache, Input, Pipeline, Retry, Rollback, form_of
from pipelines.declared import DeclaredStep
from pipelines.durations import Duration, Instant, duration_ms, instant_ms
from pipelines.history import Key
from pipelines.jsontext import encode
from pipelines.loop import BODY
from pipelines.replay import Replay
from pipelines.rollback import Undo, taken, timeout_ms
from pipelines.services import AROUND, Ready, Service, ready_config, service_name
from pipelines.values import Approval, ChildRun, CommandResult, ReceivedEvent, StepContext
from pipelines.wire import GIT_DEPTH_MAX, RETRIES_MAX, Json

T = TypeVar("T")
Call: TypeAlias = Coroutine[Json, Json, T]

DO_RETRY = Retry()
NO_RETRY = Retry(limit=0)
_DO_RETRIES = DO_RETRY.config()
SCRIPT_MAX = 256 * 1024  # characters
VALUE_MAX = 32 * 1024  # characters of an environment variable
APPROVERS_MAX = 100
CACHE_DIRS_MAX = 10
LABELS_MAX = 16
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=-]{0,63}")


class Step:
    """The steps of one run. Made by the platform; a pipeline gets it as `step`."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._declared: dict[str, DeclaredStep[Json]] = {}
        self._calls = 0

    # --- do ---

    @overload
    def do(
        self,
        name: str,
        fn: Callable[[], Awaitable[T]] | Callable[[StepContext], Awaitable[T]],
        *,
        retries: int | Retry = ...,
        timeout: Duration = ...,
        sensitive: bool = ...,
        rollback: Callable[..., Json] | Rollback | None = ...,
    ) -> Call[T]: ...

    @overload
    def do(
        self,
        name: str,
        fn: Callable[[], T] | Callable[[StepContext], T],
        *,
        retries: int | Retry = ...,
        timeout: Duration = ...,
        sensitive: bool = ...,
        rollback: Callable[..., Json] | Rollback | None = ...,
    ) -> Call[T]: ...

    @overload
    def do(
        self,
        name: str | None = None,
        *,
        retries: int | Retry = ...,
        timeout: Duration = ...,
        sensitive: bool = ...,
        rollback: Callable[..., Json] | Rollback | None = ...,
        concurrent: bool = ...,
    ) -> Callable[[Callable[..., T]], DeclaredStep[T]]: ...

    def do(
        self,
        name: str | None = None,
        fn: Callable[..., Json] | None = None,
        *,
        retries: int | Retry = DO_RETRY,
        timeout: Duration = "10 minutes",
        sensitive: bool = False,
        rollback: Callable[..., Json] | Rollback | None = None,
        concurrent: bool = False,
    ) -> Json:
        """Run a function inside the sandbox and journal its JSON result.

        `await step.do("build", fn)`, or `@step.do("build")` over a function: then parameters named
        after earlier declared steps are filled with their results, and calling the function runs
        the step. `fn` may be sync or async and may take `ctx`. `rollback` undoes it when the run
        fails later: a function of what it names of ctx, error and output.
        """
        config = {
            "retries": _DO_RETRIES if retries is DO_RETRY else retry("retries", retries).config(),
            "timeout_ms": duration_ms(timeout, "timeout", least_ms=1),
            "sensitive": flag("sensitive", sensitive),
            "rollback": rollback is not None,
        }
        undo = None if rollback is None else _undo(rollback)
        delay = retries.delay if isinstance(retries, Retry) else None
        if fn is None:
            flag("concurrent", concurrent)
            return self._declare(name, config, delay, concurrent, undo)
        if concurrent:
            raise TypeError("concurrent is for the decorator form: it gathers what a step needs")
        function = _body(fn)
        key = self._replay.count("do", step_name(name if name is not None else ""))
        return self._call(
            key, config, Work(function, delay if callable(delay) else None), undo=undo
        )

    def _declare(
        self,
        name: str | None,
        config: Mapping[str, Json],
        delay: Json,
        concurrent: bool,
        undo: Undo | None,
    ) -> Callable[[Callable[..., T]], DeclaredStep[T]]:
        def declare(function: Callable[..., T]) -> DeclaredStep[T]:
            if not callable(function):
                raise TypeError(f"step.do({name!r}) must decorate a function, got {function!r}")
            own = step_name(function.__name__ if name is None else name)

            def call(body: Callable[[StepContext], Json]) -> Call[Json]:
                work = Work(body, delay if callable(delay) else None)
                return self._call(self._replay.count("do", own), config, work, undo=undo)

            made: DeclaredStep[T] = DeclaredStep(
                own, function, call, self._declared, concurrent=concurrent
            )
            self._declared[own] = made
            self._declared.setdefault(function.__name__, made)
            return made

        return declare

    # --- commands ---

    def sh(
        self,
        name: str,
        script: str,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        cwd: str = ".",
        shell: str = "sh",
        timeout: Duration = "1 hour",
        retries: int | Retry = NO_RETRY,
        labels: Sequence[str] = (),
        on_lost: str = "retry",
        image: str | None = None,
        network: Sequence[str] = (),
        artifacts: Sequence[str] = (),
        reports: Sequence[str] = (),
        cache: bool | Cache = False,
        cache_dirs: Mapping[str, str] | None = None,
        git_depth: int = 0,
        allow_failure: bool = False,
        rollback: str | Callable[..., Json] | Rollback | None = None,
    ) -> Call[CommandResult]:
        """Run a command in the workspace. A non-zero exit raises CommandFailed, unless
        `allow_failure`; changes it made to files stay for the next command. `rollback` undoes it
        when the run fails later: a script, or a function as for `do`. With `cache`, the result of
        an earlier run is taken instead if nothing that it depends on has changed. It runs on a
        worker that has all `labels`; if that one is lost, it is run again elsewhere, or, with
        `on_lost="fail"`, has failed. With `git_depth`, it finds a `.git` with so many generations
        of commits, of which nothing is kept."""
        key = self._replay.count("sh", step_name(name))
        resolved = retry("retries", retries)
        if callable(resolved.delay):
            raise TypeError("retries.delay must be a duration: commands take no delay function")
        config = {
            "script": _script(script),
            "env": text_map("env", env, most=VALUE_MAX),
            "secrets": list(texts("secrets", secrets)),
            "cwd": _inside("cwd", cwd),
            "shell": one_of("shell", shell, ("sh", "bash")),
            "timeout_ms": duration_ms(timeout, "timeout", least_ms=1_000),
            "retries": resolved.config(),
            "labels": _labels(labels),
            "image": None if image is None else text("image", image, most=512),
            "network": list(texts("network", network)),
            "artifacts": [_inside("artifacts", path) for path in texts("artifacts", artifacts)],
            "reports": [_inside("reports", path) for path in texts("reports", reports)],
            "cache": _cache(cache),
            "cache_dirs": _cache_dirs(cache_dirs),
            "allow_failure": flag("allow_failure", allow_failure),
            "rollback": rollback is not None,
        }
        if depth := whole("git_depth", git_depth, least=0, most=GIT_DEPTH_MAX):
            config["git_depth"] = depth
        if one_of("on_lost", on_lost, ("retry", "fail")) != "retry":
            config["on_lost"] = on_lost
        if around := AROUND.get():
            config["services"] = list(around)
        undo = None if rollback is None else _undo(rollback, config)
        return self._call(key, config, then=CommandResult.from_json, undo=undo)

    def service(
        self,
        name: str,
        script: str,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        cwd: str = ".",
        shell: str = "sh",
        ready: int | str | Ready | None = None,
        timeout: Duration = "60 s",
        network: Sequence[str] = (),
    ) -> Service:
        """`async with step.service("db", "…", ready=5432):` a process beside the commands called
        inside the block, which reach it at 127.0.0.1 or by its name. It starts with the first
        of them, and they begin when it is `ready`: a port, an http:// address, a command, or
        Ready(log="…"). `timeout` is for that. It is gone after the block."""
        key = self._replay.count("service", service_name(name))
        config = {
            "script": _script(script),
            "env": text_map("env", env, most=VALUE_MAX),
            "secrets": list(texts("secrets", secrets)),
            "cwd": _inside("cwd", cwd),
            "shell": one_of("shell", shell, ("sh", "bash")),
            "network": list(texts("network", network)),
            "timeout_ms": duration_ms(timeout, "timeout", least_ms=1_000),
            "ready": ready_config(ready),
        }
        call, said = self._noted(key, depth=3)
        unawaited = self._replay.unawaited
        made = Service(self._replay, key, config, lambda: unawaited.pop(call, None))
        unawaited[call] = (said, made)
        return made

    # --- waits ---

    def sleep(self, name: str, duration: Duration) -> Call[None]:
        """Sleep, for up to 365 days, while holding nothing but a row."""
        key = self._replay.count("sleep", step_name(name))
        return self._call(key, {"duration_ms": duration_ms(duration, "duration")})

    def sleep_until(self, name: str, when: Instant) -> Call[None]:
        """Sleep until an instant; one that is past already is no error."""
        key = self._replay.count("sleep", step_name(name))
        return self._call(key, {"until_ms": max(0, instant_ms(when, "when"))})

    def wait_for_event(
        self, name: str, *, type: str, timeout: Duration = "24 hours"
    ) -> Call[ReceivedEvent]:
        """Wait for an event of a type, sent to this run. Raises WaitTimeout."""
        key = self._replay.count("wait", step_name(name))
        config = {
            "type": event_type(type),
            "timeout_ms": duration_ms(timeout, "timeout", least_ms=1_000),
        }
        return self._call(key, config, then=ReceivedEvent.from_json)

    def approval(
        self,
        name: str,
        *,
        approvers: Sequence[str] = (),
        required: int = 1,
        allow_self: bool = False,
        form: Mapping[str, Input] | None = None,
        timeout: Duration = "30 days",
        environment: str | None = None,
    ) -> Call[Approval]:
        """Wait for people. Raises Rejected when one says no, WaitTimeout when nobody answers.

        `approvers` are users, "role:maintainer" or "group:…"; none: every maintainer.
        """
        key = self._replay.count("approval", step_name(name))
        config = {
            "approvers": list(texts("approvers", approvers)),
            "required": whole("required", required, least=1, most=APPROVERS_MAX),
            "allow_self": flag("allow_self", allow_self),
            "form": form_of("form", form),
            "timeout_ms": duration_ms(timeout, "timeout", least_ms=1_000),
            "environment": None if environment is None else step_name(environment),
        }
        return self._call(key, config, then=Approval.from_json)

    # --- other runs ---

    def start(
        self,
        name: str,
        pipeline: str | type[Pipeline],
        params: Json = None,
        *,
        wait: bool = True,
    ) -> Call[ChildRun]:
        """Start a run of a pipeline of this repository, at this commit, and wait for its end unless
        told otherwise. Raises StepFailed when it did not pass."""
        key = self._replay.count("run", step_name(name))
        chosen = pipeline if isinstance(pipeline, str) else pipeline.__name__
        what = f"the params of step.start({name!r})"
        text = encode({} if params is None else params, what, bytes_max=self._replay.value_bytes)
        config = {
            "pipeline": block("pipeline", chosen, most=100),
            "params": json.loads(text),
            "wait": flag("wait", wait),
        }
        return self._call(key, config, then=ChildRun.from_json)

    # --- the common way ---

    def _call(
        self,
        key: Key,
        config: Mapping[str, Json],
        work: Work | None = None,
        *,
        then: Callable[[Mapping[str, Json]], T] | None = None,
        undo: Undo | None = None,
    ) -> Call[Json]:
        """A coroutine that performs the step; noted until its await begins."""
        replay = self._replay
        call, said = self._noted(key, depth=4)

        async def perform() -> Json:
            replay.unawaited.pop(call, None)
            if undo is not None:
                replay.undos[key] = undo
            value = await replay.request(key, config, work)
            return value if then is None else then(value)

        coroutine = perform()
        replay.unawaited[call] = (said, coroutine)
        return coroutine

    def _noted(self, key: Key, *, depth: int) -> tuple[int, str]:
        """Number a call, and say where the author made it."""
        if BODY.get() is not None:
            raise RuntimeError(
                f"step.{_METHOD[key[0]]}({key[1]!r}) was called inside the body of a step, which "
                "is not run again on replay: call it in run() instead"
            )
        self._calls += 1
        return self._calls, f"step.{_METHOD[key[0]]}({key[1]!r}){_author_place(depth)}"


_METHOD = {
    "do": "do",
    "sh": "sh",
    "service": "service",
    "sleep": "sleep",
    "wait": "wait_for_event",
    "approval": "approval",
    "run": "start",
}


def retry(argument: str, value: int | Retry) -> Retry:
    """Read `retries`: a number keeps the default delay and backoff."""
    if isinstance(value, Retry):
        return value
    return Retry(limit=whole(argument, value, least=0, most=RETRIES_MAX))


def _undo(
    rollback: str | Callable[..., Json] | Rollback, command: Mapping[str, Json] | None = None
) -> Undo:
    """How a step is undone; `command` is the config of a step that is one."""
    made = rollback if isinstance(rollback, Rollback) else Rollback(rollback)
    retries, timeout = retry("rollback.retries", made.retries), timeout_ms(made.timeout)
    common = {"retries": retries.config(), "timeout_ms": timeout, "rollback": False}
    if isinstance(made.handler, str):
        if command is None:
            raise TypeError("rollback must be a function: only commands are undone by a script")
        if callable(retries.delay):
            raise TypeError("rollback.retries.delay must be a duration: it is a command")
        alone = {"artifacts": [], "reports": [], "allow_failure": False}
        alone |= {"cache": None}  # nor has it the services, whose blocks have ended
        command = {name: value for name, value in command.items() if name != "services"}
        return Undo({**command, **common, **alone, "script": _script(made.handler)})
    if not callable(made.handler):
        raise TypeError(f"rollback must be a function, got {made.handler!r}")
    return Undo(
        {**common, "sensitive": False},
        made.handler,
        retries.delay if callable(retries.delay) else None,
        taken(made.handler),
        (lambda value: value) if command is None else CommandResult.from_json,
    )


def _script(script: str) -> str:
    block("script", script, most=SCRIPT_MAX)
    if not script.strip():
        raise ValueError("script must not be empty")
    return script


def _cache(cache: bool | Cache) -> Json:
    if isinstance(cache, Cache):
        return cache.config()
    return Cache().config() if flag("cache", cache) else None


def _labels(given: Sequence[str]) -> list[str]:
    found = texts("labels", given)
    if len(found) > LABELS_MAX:
        raise ValueError(f"labels may have {LABELS_MAX} entries, got {len(found)}")
    for label in found:
        if _LABEL.fullmatch(label) is None:
            raise ValueError(
                f"labels: {label!r} is not a label: up to 64 letters, digits and . _ : / = -"
            )
    return list(found)


def _cache_dirs(given: Mapping[str, str] | None) -> dict[str, str]:
    """Names of caches, and where below the home directory each is."""
    found = text_map("cache_dirs", given, most=1_024)
    if len(found) > CACHE_DIRS_MAX:
        raise ValueError(f"cache_dirs may have {CACHE_DIRS_MAX} directories, got {len(found)}")
    for name, path in found.items():
        parts = path.removeprefix("~/").split("/")
        if not path.startswith("~/") or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"cache_dirs: {name} must be a directory below ~/, got {path!r}")
    return found


def _inside(argument: str, path: str) -> str:
    """A path inside the workspace."""
    text(argument, path, most=1_024)
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{argument} must be a path inside the workspace, got {path!r}")
    return path


def _author_place(depth: int) -> str:
    """Where the author's code called, as text to append."""
    frame = sys._getframe(depth)
    return f" on line {frame.f_lineno} of {frame.f_code.co_filename}"


def _body(fn: Callable[..., Json]) -> Callable[[StepContext], Json]:
    """Check a body's parameters: none, or `ctx`."""
    if not callable(fn):
        hint = ": pass the function itself, without calling it" if inspect.isawaitable(fn) else ""
        if inspect.iscoroutine(fn):
            fn.close()
        raise TypeError(f"fn must be a function, got {type(fn).__name__}{hint}")
    if isinstance(fn, FunctionType):
        code = fn.__code__
        if not code.co_argcount and not code.co_kwonlyargcount:  # most bodies, and much faster
            return lambda ctx: fn()
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return lambda ctx: fn()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    takes_ctx = any(p.name == "ctx" and p.kind is not p.POSITIONAL_ONLY for p in parameters)
    for parameter in needed:
        if parameter.name != "ctx":
            raise TypeError(
                f"fn may take only ctx, but {getattr(fn, '__name__', 'it')} needs "
                f"{parameter.name!r}: use a lambda, or the decorator form"
            )
    return (lambda ctx: fn(ctx=ctx)) if takes_ctx else (lambda ctx: fn())


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
