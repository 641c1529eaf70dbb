"""HTML for people, over the queries and commands. `create_web` is all the rest of the tree uses.

Owns addresses, pages, forms and event streams; no business rule. Complete without JavaScript.
"""

from __future__ import annotations

import logging
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ci_platform.commands import Commands
from ci_platform.errors import NotSignedIn, RequestError, SluiceError
from ci_platform.identity import Identity
from ci_platform.live import Live
from ci_platform.queries import Queries
from web import forms, live, playground, routes
from web.pages import problem_page
from web.render import STATIC
from web.visit import Site, Visit, read_visit

__all__ = ["create_web"]

log = logging.getLogger(__name__)

# Nothing inline and nothing from elsewhere. Icons and favicon are ours, so `self` is enough.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def create_web(
    commands: Commands, queries: Queries, identity: Identity, *, live_streams: Live, base_url: str
) -> ASGIApp:
    """Build the site. Mount it last: a repository's address is any two words.

    `base_url` is the address people use; https there makes the session cookie Secure.
    """
    app = FastAPI(title="Sluice", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.site = Site(
        queries=queries,
        commands=commands,
        identity=identity,
        live=live_streams,
        base_url=base_url.rstrip("/"),
    )
    app.mount("/static", StaticFiles(directory=STATIC))
    for router in (routes.router, forms.router, live.router, playground.router):
        app.include_router(router)
    app.include_router(routes.repository_router)
    app.include_router(forms.repository_router)
    app.add_exception_handler(SluiceError, _refused)
    app.add_exception_handler(HTTPException, _no_page)
    app.add_exception_handler(RequestValidationError, _bad_query)
    app.add_exception_handler(Exception, _broken)
    return Guarded(app)  # outside of everything, so that the page of a bug is guarded too


class Guarded:
    """Puts the security headers on every answer, and keeps private pages out of caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        versioned = b"v=" in scope.get("query_string", b"") and "/static/" in scope["path"]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if versioned and message["status"] == 200:
                    headers.append((b"cache-control", b"public, max-age=31536000, immutable"))
                elif not any(name.lower() == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*headers, *HEADERS]}
            await send(message)

        await self._app(scope, receive, guarded)


async def _refused(request: Request, error: Exception) -> Response:
    """A command or query said no: a page that says why, or the door for who has not signed in."""
    if not isinstance(error, RequestError):
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return await _problem(request, 500, "")
    if isinstance(error, NotSignedIn) and request.method == "GET":
        accepts = request.headers.get("accept", "*/*")
        if "text/event-stream" not in accepts:
            query = f"?{request.url.query}" if request.url.query else ""
            asked = urlencode({"next": request.url.path + query})
            return RedirectResponse(f"/sign-in?{asked}", status_code=303)
    return await _problem(request, error.status, error.detail)


async def _no_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = "" if error.status_code in (404, 405) else str(error.detail)
    if error.status_code == 404:
        detail = "There is no such page, or it is not yours to see."
    return await _problem(request, error.status_code, detail)


async def _bad_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    return await _problem(request, 400, f"{name}: {first['msg']}")


async def _broken(request: Request, error: Exception) -> Response:
    return await _problem(request, 500, "")


async def _problem(request: Request, status: int, detail: str) -> Response:
    def render() -> Response:
        try:
            visit = read_visit(request)
        except SluiceError:  # the store itself is the problem: the page does without a name
            visit = nobody(request)
        return visit.html("problem.html", problem_page(status, detail), status=status)

    return await run_in_threadpool(render)


def nobody(request: Request) -> Visit:
    site: Site = request.app.state.site
    return Visit(site, request, None, site.identity.of_session(None), None)
