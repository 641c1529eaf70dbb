"""Calls a module's own `fetch(request, env)` inside a test, as the platform would.

    answer = call_fetch(fetch, "/deploys", method="POST", body={"ok": True})
    assert answer.status == 201

Its limits of time and size are the platform's and do not hold here.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import TypeAlias

from pipelines.env import Desk, Env
from pipelines.fetching import NAME, Request, Response, serve
from pipelines.testing_env import TestedEnv
from pipelines.wire import Json

Fetch: TypeAlias = Callable[[Request, Env], Awaitable[Json]]


class _Clock:
    """The real one: a request has no replay."""

    def enter(self, body: bool, now_ms: int) -> None:
        """There is nothing to switch."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def call_fetch(
    fetch: Fetch,
    path: str = "/",
    *,
    method: str = "GET",
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    body: Json | bytes = b"",
    env: TestedEnv | None = None,
) -> Response:
    """One request. A body that is no bytes is sent as JSON, the answer's body is bytes. `env` is
    what it finds in storage and runs, and what it leaves there."""
    module = ModuleType("pipeline")
    setattr(module, NAME, fetch)
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.lower(): value for name, value in (headers or {}).items()}
    request = Request(method, path, dict(query or {}), named, sent)
    reached = Env(Desk((env or TestedEnv()).ask, in_fetch=True))
    answer = serve(module, request, reached, _Clock())["responded"]
    answered = base64.b64decode(answer["body"])
    return Response(answer["status"], dict(answer["headers"]), answered)
