"""How large a request may be: refused by its length before it is read, or while it is read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ci_platform.api.problems import problem


class LimitBody:
    """ASGI middleware: a body over `bytes_max` is answered with 413 and not read to its end."""

    def __init__(self, app: ASGIApp, *, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"the body is larger than {self._bytes_max:,} bytes"
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            await problem(400, "bad-request", "bad Content-Length")(scope, receive, send)
            return
        if len(declared) > 15 or int(declared) > self._bytes_max:
            await problem(413, "too-large", detail)(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._bytes_max:
                # This kind passes through the framework's own parsing of bodies.
                raise HTTPException(413, detail)
            return message

        await self._app(scope, limited, send)
