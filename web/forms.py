"""What people change by form: each reads a checked form, calls one command and redirects (303).

No rules here: the commands decide, and their refusals become a page (`create_web`).
"""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter
from fastapi.responses import Response

from ci_platform.commands import NEWEST, StartRun
from ci_platform.errors import InvalidRequest, NotSignedIn, RequestError, TooMany
from ci_platform.identity.passwords import PASSWORD_MIN
from ci_platform.model import RunId, StepKey
from ci_platform.ports import RunFilter
from web.inputs import inputs_of, read_inputs, read_json
from web.pages import SetupPage, SignInPage, tokens_page, with_secret
from web.visit import AnyVisit, Guest, Person, Posted, back, local_path, to

router = APIRouter()
INPUT_PREFIX = "input."
FORM_PREFIX = "form."


# --- doors ----------------------------------------------------------------------------------------


@router.post("/sign-in")
def sign_in(visit: Guest, form: Posted) -> Response:
    client = visit.request.client
    target = local_path(form.text("next"))
    try:
        _, cookie = visit.site.identity.sign_in(
            form.text("name"), form.text("password"), address=client.host if client else ""
        )
    except (NotSignedIn, TooMany) as refusal:
        detail = refusal.detail[0].upper() + refusal.detail[1:] + "."
        page = SignInPage(target, name=form.text("name")[:100], problem=detail)
        return visit.html("sign_in.html", page, status=refusal.status)
    response = to(target)
    visit.keep(response, cookie)
    return response


@router.post("/sign-out")
def sign_out(visit: AnyVisit, form: Posted) -> Response:
    response = to("/sign-in")
    visit.forget(response)
    return response


@router.post("/setup/{secret}")
def setup(visit: Guest, secret: str, form: Posted) -> Response:
    name, password = form.text("name").strip(), form.text("password")
    try:
        visit.site.commands.people.set_up(secret, name, password)
    except InvalidRequest as refusal:
        page = SetupPage(PASSWORD_MIN, name=name[:100], problem=refusal.detail)
        return visit.html("setup.html", page, status=refusal.status)
    _, cookie = visit.site.identity.sign_in(name, password)
    response = to("/")
    visit.keep(response, cookie)
    return response


# --- runs -----------------------------------------------------------------------------------------


@router.post("/runs/{run_id}/approvals/{name:path}")
def decide(visit: Person, run_id: str, name: str, form: Posted) -> Response:
    """Answer a gate. Whatever the answer became, the run's page is the record of it."""
    queries = visit.site.queries
    view = queries.run_page(visit.actor, RunId(run_id))
    gate = next((one for one in view.approvals if one.approval.key.label == name), None)
    decision = form.text("decision")
    declared = []
    if gate is not None and decision == "approve":  # a rejection needs no form
        declared = inputs_of(gate.approval.spec.get("form"))
    visit.site.commands.approvals.decide(
        visit.actor,
        RunId(run_id),
        name,
        decision=decision,
        comment=form.text("comment").replace("\r\n", "\n").strip(),
        form=read_inputs(declared, form.fields, FORM_PREFIX),
        way="page",
    )
    return back(visit, run_id)


@router.post("/runs/{run_id}/events")
def send_event(visit: Person, run_id: str, form: Posted) -> Response:
    """Send a waiting run the event that it waits for."""
    payload = read_json(form.text("payload"), "payload")
    visit.site.commands.runs.send_event(visit.actor, RunId(run_id), form.text("type"), payload)
    return back(visit, run_id)


@router.post("/runs/{run_id}/pause")
def pause(visit: Person, run_id: str, form: Posted) -> Response:
    return back(visit, visit.site.commands.runs.pause(visit.actor, RunId(run_id)).id)


@router.post("/runs/{run_id}/resume")
def resume(visit: Person, run_id: str, form: Posted) -> Response:
    return back(visit, visit.site.commands.runs.resume(visit.actor, RunId(run_id)).id)


@router.post("/runs/{run_id}/cancel")
def cancel(visit: Person, run_id: str, form: Posted) -> Response:
    rollback = form.text("rollback") == "true"
    run = visit.site.commands.runs.cancel(visit.actor, RunId(run_id), rollback=rollback)
    return back(visit, run.id)


@router.post("/runs/{run_id}/restart")
def restart(visit: Person, run_id: str, form: Posted) -> Response:
    """Run again, from a step if the form names one: leads to the new run."""
    runs, step = visit.site.commands.runs, form.text("from")
    key, commit = _step_key(step) if step else None, form.text("commit").strip() or None
    match form.text("at"):
        case _ if commit is not None:
            pass  # one that was typed counts, whatever stands beside it
        case "newest":
            commit = NEWEST
        case "other":
            raise InvalidRequest("give the other commit, 40 hex digits", field="commit")
        case "same":
            commit = visit.site.queries.run(visit.actor, RunId(run_id)).commit
    again = runs.restart(visit.actor, RunId(run_id), from_step=key, commit=commit)
    return back(visit, again.id)


def _step_key(text: str) -> StepKey:
    try:
        return StepKey.parse(text)
    except ValueError as error:
        raise InvalidRequest(str(error), field="from") from error


# --- tokens ---------------------------------------------------------------------------------------


@router.post("/tokens")
def make_token(visit: Person, form: Posted) -> Response:
    """Make a token and show its secret, this once: so no redirect."""
    queries = visit.site.queries
    try:
        made = visit.site.commands.people.create_token(
            visit.actor,
            form.text("name").strip(),
            form.all("scope"),
            repository=form.text("repository") or None,
            days=_days(form.text("days")),
        )
    except RequestError as refusal:
        page = tokens_page(queries, visit.actor)
        page = replace(
            page,
            problem=refusal.detail,
            name=form.text("name")[:100],
            chosen=form.all("scope"),
        )
        return visit.html("tokens.html", page, status=refusal.status)
    page = with_secret(tokens_page(queries, visit.actor), made.token.name, made.secret)
    return visit.html("tokens.html", page, status=201)


def _days(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise InvalidRequest("days must be a whole number, 0 for never", field="days")
    return int(text) or None


@router.post("/tokens/{token_id}/revoke")
def revoke(visit: Person, token_id: str, form: Posted) -> Response:
    visit.site.commands.people.revoke_token(visit.actor, token_id)
    return to("/tokens")


# --- a repository ---------------------------------------------------------------------------------

repository_router = APIRouter()


@repository_router.post("/{owner}/{name}/mirror/sync")
def sync_mirror(visit: Person, owner: str, name: str, form: Posted) -> Response:
    """Have a worker look at the remote now."""
    visit.site.commands.mirrors.sync(visit.actor, owner, name)
    return to(f"/{owner}/{name}")


@repository_router.post("/{owner}/{name}/runs")
def start(visit: Person, owner: str, name: str, form: Posted) -> Response:
    """Start a run by hand, with the inputs its pipeline declares."""
    pipeline = form.text("pipeline")
    view = visit.site.queries.repository_page(visit.actor, owner, name, which=RunFilter())
    declared = [
        trigger.inputs
        for described in view.described.pipelines
        if described.name == pipeline
        for trigger in described.triggers
        if trigger.kind == "manual"
    ]
    inputs = inputs_of(declared[0]) if declared else []
    params = read_inputs(inputs, form.fields, f"{INPUT_PREFIX}{pipeline}.")
    what = StartRun(pipeline=pipeline or None, ref=form.text("ref") or None, params=params)
    run = visit.site.commands.runs.start(visit.actor, owner, name, what)
    return to(f"/runs/{run.id}")
