"""The addresses of pages that only show. Each asks pages.py for a context and renders it.

Plain functions: FastAPI runs them in its thread pool. Forms are in forms.py, streams in live.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from ci_platform.errors import NotFound
from ci_platform.identity.passwords import PASSWORD_MIN
from ci_platform.model import Entry, Json, RunId, StepKey
from web.filters import iso
from web.logs import RAW_BATCH, LogRange, check_log_key, log_page, raw_name
from web.pages import (
    RunFilters,
    SetupPage,
    SignInPage,
    home_page,
    repository_page,
    stalled,
    system_page,
    tokens_page,
)
from web.patterns import patterns_page
from web.run_pages import journal_page, run_page, step_page
from web.visit import AnyVisit, Guest, Person, Visit, local_path

router = APIRouter()
JOURNAL_JSON_MAX = 5_000  # entries of one answer of the .json twin; `next` leads on

Text = Annotated[str, Query(max_length=1000)]
Number = Annotated[int | None, Query(ge=0, le=2**53)]


@router.get("/")
def home(visit: Person) -> Response:
    site = visit.site
    page = home_page(site.queries, visit.actor, base_url=site.base_url)
    return visit.html("home.html", page, banners=_banners(visit))


def _banners(visit: Visit) -> list[str]:
    """Tell an admin when no worker polls."""
    if not visit.actor.admin:
        return []
    view = visit.site.queries.system(visit.actor)
    text = stalled(view)
    return [text] if text else []


@router.get("/sign-in")
def sign_in(visit: Guest, next: Text = "/") -> Response:
    if visit.signed_in:
        return RedirectResponse(local_path(next), status_code=303)
    page = SignInPage(local_path(next), needs_setup=visit.site.identity.needs_setup())
    return visit.html("sign_in.html", page)


@router.get("/setup/{secret}")
def setup(visit: Guest, secret: str) -> Response:
    if not visit.site.identity.needs_setup():
        raise NotFound("this link has been used: there is an admin already; sign in instead")
    return visit.html("setup.html", SetupPage(PASSWORD_MIN))


@router.get("/system")
def system(visit: Person) -> Response:
    page = system_page(visit.site.queries, visit.actor)
    banners = [page.warning] if page.warning else []
    return visit.html("system.html", page, banners=banners)


@router.get("/tokens")
def tokens(visit: Person) -> Response:
    return visit.html("tokens.html", tokens_page(visit.site.queries, visit.actor))


@router.get("/-/patterns")
def patterns(visit: AnyVisit) -> Response:
    return visit.html("patterns.html", patterns_page(visit.site.queries.clock.now_ms()))


@router.get("/-/icon/{name}.svg")
def icon(visit: AnyVisit, name: str) -> Response:
    svg = visit.site.renderer.icon(name)
    if svg is None:
        raise NotFound(f"there is no icon {name[:40]!r}")
    headers = {"Cache-Control": "public, max-age=86400"}
    return Response(svg, media_type="image/svg+xml", headers=headers)


@router.get("/favicon.ico")
def favicon() -> Response:
    return RedirectResponse("/-/icon/sluice.svg", status_code=301)


# --- a run ----------------------------------------------------------------------------------------


@router.get("/runs/{run_id}")
def run(visit: Person, run_id: str, step: Text = "") -> Response:
    queries = visit.site.queries
    now_ms = queries.clock.now_ms()
    page = run_page(queries, visit.actor, RunId(run_id), step=step, now_ms=now_ms)
    return visit.html("run.html", page)


@router.get("/runs/{run_id}/journal")
def journal(visit: Person, run_id: str, after: Number = 0) -> Response:
    page = journal_page(visit.site.queries, visit.actor, RunId(run_id), after=after or 0)
    return visit.html("journal.html", page)


@router.get("/runs/{run_id}/journal.json")
def journal_json(visit: Person, run_id: str, after: Number = 0) -> Response:
    entries = visit.site.queries.journal(
        visit.actor, RunId(run_id), after=after or 0, limit=JOURNAL_JSON_MAX
    )
    more = len(entries) == JOURNAL_JSON_MAX
    return JSONResponse(
        {
            "run_id": run_id,
            "entries": [entry_json(entry) for entry in entries],
            "next": f"/runs/{run_id}/journal.json?after={entries[-1].seq}" if more else None,
        }
    )


def entry_json(entry: Entry) -> Json:
    key: StepKey | None = entry.key
    return {
        "seq": entry.seq,
        "kind": entry.kind.value,
        "at": iso(entry.at_ms),
        "step": None if key is None else asdict(key),
        "attempt": entry.attempt,
        "data": dict(entry.data),
    }


@router.get("/runs/{run_id}/steps/{step:path}")
def step(visit: Person, run_id: str, step: str, attempt: Number = None) -> Response:
    page = step_page(visit.site.queries, visit.actor, RunId(run_id), step, attempt=attempt)
    return visit.html("step.html", page)


@router.get("/runs/{run_id}/logs/{step:path}")
def log(
    visit: Person,
    run_id: str,
    step: str,
    before: Number = None,
    after: Number = None,
    q: Text = "",
) -> Response:
    asked = LogRange(before=before, after=after, query=q)
    page = log_page(visit.site.queries, visit.actor, RunId(run_id), step, asked=asked)
    return visit.html("log.html", page)


@router.get("/runs/{run_id}/raw/{step:path}")
def raw_log(visit: Person, run_id: str, step: str) -> Response:
    """The whole log as it was written, streamed in batches."""
    queries, actor = visit.site.queries, visit.actor
    view = queries.run_page(actor, RunId(run_id))
    key = check_log_key(view, step)

    def lines() -> Iterator[bytes]:
        at = 0
        while True:
            found = queries.log(actor, RunId(run_id), key, after=at, limit=RAW_BATCH)
            if not found:
                return
            yield "".join(line.text + "\n" for line in found).encode("utf-8", "replace")
            at = found[-1].number

    name = quote(raw_name(view.run, key))
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines(), media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/runs/{run_id}/artifacts/{sha256}")
def artifact(visit: Person, run_id: str, sha256: str) -> Response:
    """A file that a command kept; never shown by the browser, whatever is in it."""
    found, pieces = visit.site.queries.artifact(visit.actor, RunId(run_id), sha256)
    name = quote(found.path.rpartition("/")[2])
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Content-Length": str(found.size),
    }
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)


# --- a repository: mounted last, since its address takes any two words ----------------------------

repository_router = APIRouter()


@repository_router.get("/{owner}/{name}")
def repository(
    visit: Person,
    owner: str,
    name: str,
    state: Text = "",
    pipeline: Text = "",
    branch: Text = "",
    cursor: Text = "",
    start: Text = "",
) -> Response:
    filters = RunFilters(state.strip(), pipeline.strip(), branch.strip(), cursor, start)
    page = repository_page(
        visit.site.queries,
        visit.actor,
        owner,
        name,
        filters=filters,
        base_url=visit.site.base_url,
    )
    return visit.html("repository.html", page)
