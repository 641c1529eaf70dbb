"""The repository's own HTTP endpoint: `async def fetch(request, env)` at the module's top level.

One request, one fresh module, no journal: its code has real time and randomness, as the body of a
step has, and may use env.storage. Limits of time and size are the host's. Called by guest.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Protocol

from pipelines import errors
from pipelines.env import Env
from pipelines.jsontext import encode
from pipelines.loop import BODY, Body, HostLoop
from pipelines.wire import VALUE_BYTES_MAX, Json

NAME = "fetch"
PUBLIC = "fetch_public"
STATUS_LEAST, STATUS_MOST = 200, 599


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked. `path` begins with a slash and is what follows the repository's name."""

    method: str
    path: str
    query: Mapping[str, str]  # the last value of each name
    headers: Mapping[str, str]  # names in lower case; no Authorization, no Cookie
    body: bytes

    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Json:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """What to answer. A dict or list as body is sent as JSON, text as text/plain."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Json | bytes = ""


class NoFetch(Exception):
    """The file has no fetch function."""


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class _Senses:
    """Of one request: real ones throughout."""

    def __init__(self, clock: Clock, said: list[str]) -> None:
        self._clock = clock
        self._said = said

    def enter(self, body: Body | None) -> None:
        """They do not change."""

    def now_s(self) -> float:
        return self._clock.monotonic()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def durable_timer(self, duration_ms: int) -> asyncio.Future[Json]:
        raise AssertionError("all code of a request is inside a body")

    def complain(self, message: str, error: BaseException | None) -> None:
        self._said.append(message if error is None else errors.traceback_of(error))


def declared(module: ModuleType) -> str | None:
    """Who may call the module's fetch: `public`, `token`, or None if there is none."""
    function = vars(module).get(NAME)
    if function is None:
        return None
    if not inspect.iscoroutinefunction(function):
        raise TypeError("fetch must be `async def fetch(request, env)`")
    public = vars(module).get(PUBLIC, False)
    if not isinstance(public, bool):
        raise TypeError(f"{PUBLIC} must be True or False, not {public!r}")
    return "public" if public else "token"


def request_of(found: Mapping[str, Json]) -> Request:
    return Request(
        method=found["method"],
        path=found["path"],
        query=MappingProxyType(dict(found["query"])),
        headers=MappingProxyType(dict(found["headers"])),
        body=base64.b64decode(found["body"]),
    )


def serve(module: ModuleType, request: Request, env: Env, clock: Clock) -> dict[str, Json]:
    """Run the module's fetch to its end. Raises what it raises."""
    if declared(module) is None:
        raise NoFetch("the file has no `async def fetch(request, env)`")
    loop = HostLoop(_Senses(clock, []))  # type: ignore[abstract]  # what asyncio needs is there
    context = contextvars.copy_context()
    context.run(BODY.set, Body((NAME, "$fetch", 1), 1))
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(loop)
    try:
        task: asyncio.Task[Json] = loop.create_task(
            vars(module)[NAME](request, env), name=NAME, context=context
        )
        while True:
            loop.drain(task)
            if task.done():
                break
            due = loop.next_real()
            if due is None:
                raise RuntimeError("fetch waits for something that nothing will bring about")
            clock.sleep(max(0.0, due - clock.monotonic()))
            loop.fire_real()
        return {"responded": _told(task.result())}
    finally:
        asyncio._set_running_loop(outer)


def _told(found: Json) -> dict[str, Json]:
    """What fetch returned, for the host."""
    response = found if isinstance(found, Response) else Response(body=found)
    status, headers = response.status, dict(response.headers)
    if isinstance(status, bool) or not isinstance(status, int):
        raise TypeError(f"a response's status must be a whole number, not {status!r}")
    if not STATUS_LEAST <= status <= STATUS_MOST:
        raise ValueError(f"a response's status is {STATUS_LEAST} to {STATUS_MOST}, not {status}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"a response's headers must be text, not {name!r}: {value!r}")
    kind, body = _body(response.body)
    if not any(name.lower() == "content-type" for name in headers):
        headers["content-type"] = kind
    return {
        "status": status,
        "headers": list(headers.items()),
        "body": base64.b64encode(body).decode(),
    }


def _body(found: Json) -> tuple[str, bytes]:
    if isinstance(found, (bytes, bytearray)):
        return "application/octet-stream", bytes(found)
    if isinstance(found, str):
        return "text/plain; charset=utf-8", found.encode()
    if isinstance(found, (dict, list)):
        return "application/json", encode(found, "a response", bytes_max=VALUE_BYTES_MAX).encode()
    raise TypeError(f"fetch must return text, a dict or a Response, not {type(found).__name__}")
