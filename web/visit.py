"""One request's visitor: session, actor, forms. The only place of the web that reads credentials.

Every form passes `Visit.form`, which checks the CSRF token before anything else looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ci_platform.commands import Commands
from ci_platform.errors import InvalidRequest, NotSignedIn, TooLarge
from ci_platform.identity import COOKIE, CSRF_FIELD, Action, Identity, Session, may
from ci_platform.live import Live
from ci_platform.model import Actor
from ci_platform.queries import Queries
from web.render import Frame, Renderer

FORM_BYTES_MAX = 2 << 20  # params of a manual run have at most 1 MiB; escaping doubles some
FORM_FIELDS_MAX = 300
PLAYGROUND = "/playground"
COOKIE_SECONDS = 14 * 24 * 3600  # as long as the session inside it


@dataclass(frozen=True, slots=True)
class Site:
    """What the pages are made over; kept in `app.state.site`."""

    queries: Queries
    commands: Commands
    identity: Identity
    live: Live
    base_url: str
    renderer: Renderer = field(default_factory=Renderer)

    @property
    def secure(self) -> bool:
        return self.base_url.startswith("https:")


@dataclass(frozen=True, slots=True)
class Visit:
    """A request, and who makes it."""

    site: Site
    request: Request
    session: Session | None
    actor: Actor
    new_cookie: str | None  # of a session that began with this request

    @property
    def signed_in(self) -> bool:
        return self.actor.kind != "anonymous"

    def frame(self, *, banners: Sequence[str] = ()) -> Frame:
        csrf = "" if self.session is None else self.site.identity.sessions.csrf_token(self.session)
        return Frame(
            actor=self.actor if self.signed_in else None,
            csrf=csrf,
            now_ms=self.site.queries.clock.now_ms(),
            may_read_system=may(self.actor, Action.READ_SYSTEM),
            banners=banners,
        )

    def html(
        self, template: str, page: object, *, status: int = 200, banners: Sequence[str] = ()
    ) -> Response:
        text = self.site.renderer.page(template, page, self.frame(banners=banners))
        response = HTMLResponse(text, status_code=status)
        if self.new_cookie is not None:
            self.keep(response, self.new_cookie)
        return response

    def keep(self, response: Response, cookie: str) -> None:
        """Give the browser its session."""
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=COOKIE_SECONDS,
            path="/",
            httponly=True,
            samesite="lax",
            secure=self.site.secure,
        )

    def forget(self, response: Response) -> None:
        response.delete_cookie(
            COOKIE, path="/", httponly=True, samesite="lax", secure=self.site.secure
        )


def site_of(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


def read_visit(request: Request) -> Visit:
    """Who asks. Reads the user fresh from the store, so it runs in the thread pool."""
    site = site_of(request)
    session = site.identity.sessions.read(request.cookies.get(COOKIE))
    actor = site.identity.of_session(session)
    return Visit(site, request, session, actor, None)


AnyVisit = Annotated[Visit, Depends(read_visit)]


def with_session(visit: AnyVisit) -> Visit:
    """A visitor who gets a form before signing in: a form needs a session to be bound to."""
    if visit.session is not None:
        return visit
    session, cookie = visit.site.identity.sessions.issue(None)
    return Visit(visit.site, visit.request, session, visit.actor, cookie)


def signed_in(visit: AnyVisit) -> Visit:
    """A visitor who has signed in. Raises NotSignedIn, which sends others to the door."""
    if not visit.signed_in:
        raise NotSignedIn()
    return visit


Guest = Annotated[Visit, Depends(with_session)]
Person = Annotated[Visit, Depends(signed_in)]


@dataclass(frozen=True, slots=True)
class Form:
    """A posted form whose CSRF token was right."""

    fields: Mapping[str, str]
    pairs: Sequence[tuple[str, str]]

    def text(self, name: str) -> str:
        return self.fields.get(name, "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]


async def read_form(request: Request, visit: AnyVisit) -> Form:
    """Read a form and check that it came from a page of this session. Raises Forbidden if not."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise TooLarge(f"the form is over {FORM_BYTES_MAX:,} bytes")
    if body and kind != "application/x-www-form-urlencoded":
        raise InvalidRequest(f"a form is application/x-www-form-urlencoded, not {kind[:100]!r}")
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=FORM_FIELDS_MAX,
        )
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidRequest(
            f"the form is not UTF-8, or has over {FORM_FIELDS_MAX} fields"
        ) from error
    fields = dict(reversed(pairs))  # the first of each name counts
    visit.site.identity.sessions.check_csrf(visit.session, fields.get(CSRF_FIELD))
    return Form(fields, pairs)


Posted = Annotated[Form, Depends(read_form)]


def to(location: str) -> RedirectResponse:
    """Send the browser to a page of ours after a form."""
    return RedirectResponse(location, status_code=303)


def back(visit: Visit, run_id: str) -> RedirectResponse:
    """Send the browser to a run's page: the one it came from, if that was the playground."""
    came = urlsplit(visit.request.headers.get("referer", "")).path
    return to(f"{PLAYGROUND}?run={run_id}#run" if came == PLAYGROUND else f"/runs/{run_id}")


def local_path(text: str) -> str:
    """A path on this site, or `/`: never another host, whatever a link asks for."""
    if not text.startswith("/") or text.startswith(("//", "/\\")) or len(text) > 2000:
        return "/"
    if any(ord(character) < 33 or character == "\\" for character in text):
        return "/"
    return text
