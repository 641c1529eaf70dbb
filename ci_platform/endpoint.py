"""`/-/fetch/{owner}/{name}/…`: requests to a repository's own endpoint, run in the sandbox.

The code is the default branch's. It gets neither our users' cookies nor their tokens, and its
answers are served as what a stranger wrote: sandboxed, never sniffed, without cookies, and never as
a script or style of our own pages. Built by app.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPMethod

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ci_platform.api.problems import of_error, problem
from ci_platform.commands.parts import Parts
from ci_platform.commands.starting import described, load_failure
from ci_platform.errors import (
    InvalidRequest,
    NotFound,
    NotSignedIn,
    SluiceError,
    SourceError,
    TooLarge,
    TooMany,
)
from ci_platform.identity import Action, Identity, authorise
from ci_platform.model import (
    Broke,
    Description,
    Json,
    Raised,
    Repository,
    SourceFiles,
)
from ci_platform.ports.granting import (
    Ask,
    Capabilities,
    FetchSandbox,
    Grant,
    WebRequest,
    WebResponse,
)
from ci_platform.rates import Rate

PREFIX = "/-/fetch/"
BODY_BYTES_MAX = 1 << 20  # of a request, and of a response
HEADER_BYTES_MAX = 16_384  # of a request, together
THREADS = 8  # that wait for a sandbox or its answer
WAITING_MAX = 64  # requests that wait for such a thread
AT_ONCE_MAX = 2  # requests of one repository in work; it must not take all sandboxes
QUEUED_MAX = 24  # further ones of it that wait
RATE_PER_SECOND, BURST = 20.0, 100.0  # of one repository

METHODS = frozenset(HTTPMethod) - {HTTPMethod.CONNECT, HTTPMethod.TRACE}
NOT_PASSED = frozenset(("authorization", "cookie", "proxy-authorization", "x-csrf-token"))
PASSED_BACK = frozenset(
    ("cache-control", "content-disposition", "content-language", "content-type", "etag", "expires")
    + ("last-modified", "location", "retry-after", "vary")
)
OURS = {
    "Content-Security-Policy": "sandbox",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# A browser says what it wants a file for. Our own pages allow scripts of our own origin, and what
# a repository answers must not become one.
DESTINATIONS = frozenset(("", "document", "empty"))

CLOSED = "this endpoint needs the token of somebody who may read the repository"

log = logging.getLogger(__name__)


class Turns:
    """How many requests of each repository are in work, and wait for it. For one event loop."""

    def __init__(self) -> None:
        self._gates: dict[str, tuple[anyio.Semaphore, int]] = {}

    @contextlib.asynccontextmanager
    async def of(self, repository: str) -> AsyncIterator[None]:
        """Raises TooMany when too many wait."""
        gate, count = self._gates.get(repository, (anyio.Semaphore(AT_ONCE_MAX), 0))
        if count >= AT_ONCE_MAX + QUEUED_MAX:
            raise TooMany("too many requests to this repository's endpoint at once")
        self._gates[repository] = (gate, count + 1)
        try:
            async with gate:
                yield
        finally:
            gate, count = self._gates.pop(repository)
            if count > 1:
                self._gates[repository] = (gate, count - 1)


@dataclass(frozen=True, slots=True)
class _Host:
    """What the code of one request may ask for: always for its own repository."""

    capabilities: Capabilities
    grant: Grant

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        return self.capabilities.ask(self.grant, ask)


@dataclass(eq=False)
class Endpoint:
    """An ASGI application for everything below PREFIX. For one event loop."""

    parts: Parts
    identity: Identity
    sandbox: FetchSandbox
    capabilities: Capabilities
    # Callers from outside have a rate of their own: they cannot shut out those who belong to it.
    _rate: Rate = field(default_factory=lambda: Rate(per_second=RATE_PER_SECOND, burst=BURST))
    _turns: Turns = field(default_factory=Turns)
    _waiting: int = 0  # requests in this event loop that a thread has or will have
    _limiter: anyio.CapacityLimiter | None = None  # made in the event loop it belongs to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except SluiceError as error:
            answer = of_error(error)
        except ClientDisconnect:
            return
        answer.headers.update(OURS)
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        owner, name, asked = await _read(request)
        if self._waiting >= WAITING_MAX:
            raise TooMany("this server has too many requests to repositories' endpoints")
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(THREADS)
        authorization = request.headers.get("authorization")
        self._waiting += 1
        try:
            async with self._turns.of(f"{owner}/{name}".lower()):
                return await anyio.to_thread.run_sync(
                    self._serve, owner, name, asked, authorization, limiter=self._limiter
                )
        finally:
            self._waiting -= 1

    def _serve(
        self, owner: str, name: str, asked: WebRequest, authorization: str | None
    ) -> Response:
        repository = self._repository(owner, name)
        insider = self._may_read(authorization, repository)
        if repository is None:
            raise NotSignedIn(CLOSED)
        wait = self._rate.take((repository.id, insider), time.monotonic())
        if wait > 0:
            detail = "this repository's endpoint is called too often"
            return problem(429, "too-many", detail, Retry_After=str(int(wait) + 1))
        source = self._source(repository)
        found = Description() if source is None else described(self.parts, source)
        if found.fetch != "public" and not insider:
            raise NotSignedIn(CLOSED)
        if found.error is not None:
            return problem(502, "endpoint-failed", load_failure(found.error))
        if source is None or found.fetch is None:
            raise NotFound(f"{owner}/{name} has no `async def fetch(request, env)`")
        grant = Grant(repository.id, source.commit, body=True)
        answer = self.sandbox.fetch(source, asked, _Host(self.capabilities, grant))
        return _respond(answer, insider=insider)

    def _source(self, repository: Repository) -> SourceFiles | None:
        """The code of the default branch; None if it has none."""
        ref = f"refs/heads/{repository.default_branch}"
        commit = self.parts.source.resolve(repository.id, ref)
        if commit is None:
            return None
        try:
            return self.parts.source.load(repository.id, commit)
        except (SourceError, NotFound):
            return None

    def _repository(self, owner: str, name: str) -> Repository | None:
        try:
            return self.parts.repositories.get(owner, name)
        except (NotFound, InvalidRequest):
            return None

    def _may_read(self, authorization: str | None, repository: Repository | None) -> bool:
        """Whether a token came that may read the repository. A bad token is said to be bad."""
        if not authorization:
            return False
        actor = self.identity.of_authorization(authorization)
        if repository is None:
            raise NotFound("there is no such repository, or it is not yours to see")
        authorise(actor, Action.READ_REPOSITORY, repository.id)
        return True


async def _read(request: Request) -> tuple[str, str, WebRequest]:
    """Owner, name, and what their code gets to see. Raises InvalidRequest, NotFound, TooLarge."""
    owner, _, rest = request.scope["path"].removeprefix(PREFIX).partition("/")
    name, _, path = rest.partition("/")
    if not owner or not name:
        raise NotFound(f"write {PREFIX}OWNER/NAME/…")
    if request.method not in METHODS:
        raise InvalidRequest(f"the method {request.method[:20]!r} is not passed on")
    if request.headers.get("sec-fetch-dest", "") not in DESTINATIONS:
        raise InvalidRequest("what a repository answers is no script, style or frame of a page")
    headers = [(key, value) for key, value in request.headers.items() if key not in NOT_PASSED]
    if sum(len(key) + len(value) for key, value in headers) > HEADER_BYTES_MAX:
        raise TooLarge(f"the headers have more than {HEADER_BYTES_MAX:,} bytes")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(f"the body is larger than {BODY_BYTES_MAX:,} bytes")
    query = request.query_params.multi_items()
    return owner, name, WebRequest(request.method, f"/{path}", query, headers, bytes(body))


def _respond(found: WebResponse | Raised | Broke, *, insider: bool) -> Response:
    """The answer of the code, or a problem: 504 when it took too long, 502 when it failed."""
    if isinstance(found, Broke):
        log.warning("a sandbox broke under a request: %s", found.detail)
        return problem(502, "endpoint-broke", "the sandbox of this endpoint broke: try again")
    if isinstance(found, Raised):
        error = found.error
        if found.limit in ("cpu", "wall"):
            detail = f"the endpoint's code took too long (limit: {found.limit})"
            return problem(504, "endpoint-too-slow", detail)
        said = f"{error.type}: {error.message}\n{error.traceback}".strip() if insider else ""
        detail = "the endpoint's code failed"
        return problem(502, "endpoint-failed", f"{detail}: {said}" if said else detail)
    if len(found.body) > BODY_BYTES_MAX:
        detail = f"the endpoint answered {len(found.body):,} bytes; the limit is {BODY_BYTES_MAX:,}"
        return problem(502, "endpoint-failed", detail)
    response = Response(found.body, found.status)
    for name, value in found.headers:
        if name.lower() in PASSED_BACK:
            response.headers.append(name, value)
    if "cache-control" not in response.headers:
        response.headers["Cache-Control"] = "no-store"
    return response
