"""Doors and forms: sign-in, CSRF, and every change leading back to a page by 303."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
from fastapi.routing import APIRoute

from ci_platform.commands import Commands, NewToken, StartRun
from ci_platform.errors import Conflict, Forbidden, InvalidRequest
from ci_platform.identity import COOKIE
from ci_platform.model import Actor, Json, Run, RunId, RunState, StepKey, StepKind
from ci_platform.ports.identity import Token
from tests.web.browser import Browser
from tests.web.sample import ANA, NOW_MS, sample_runs, sample_site
from web import forms
from web.patterns import COMMIT
from web.visit import FORM_BYTES_MAX, local_path

pytestmark = pytest.mark.anyio


def named(state: RunState) -> Run:
    return next(run for run in sample_runs() if run.state is state)


@dataclass(slots=True)
class Recorder:
    """Commands that note what they were asked, and refuse when told to."""

    asked: list[tuple[str, Json]] = field(default_factory=list)
    refusal: Exception | None = None

    def note(self, verb: str, *what: Json) -> None:
        self.asked.append((verb, what))
        if self.refusal is not None:
            raise self.refusal

    @property
    def runs(self) -> Recorder:
        return self

    approvals = people = runs

    def decide(
        self,
        actor: Actor,
        run_id: RunId,
        name: str,
        *,
        decision: str,
        comment: str,
        form: Mapping[str, Json],
        way: str,
    ) -> None:
        self.note("decide", actor.name, run_id, name, decision, comment, dict(form), way)

    def pause(self, actor: Actor, run_id: RunId) -> Run:
        self.note("pause", run_id)
        return named(RunState.RUNNING)

    def resume(self, actor: Actor, run_id: RunId) -> Run:
        self.note("resume", run_id)
        return named(RunState.RUNNING)

    def cancel(self, actor: Actor, run_id: RunId, *, rollback: bool) -> Run:
        self.note("cancel", run_id, rollback)
        return named(RunState.RUNNING)

    def restart(
        self, actor: Actor, run_id: RunId, *, from_step: StepKey | None, commit: str | None
    ) -> Run:
        self.note("restart", run_id, from_step, commit)
        return named(RunState.QUEUED)

    def start(self, actor: Actor, owner: str, name: str, what: StartRun) -> Run:
        self.note("start", owner, name, what)
        return named(RunState.QUEUED)

    def create_token(
        self,
        actor: Actor,
        name: str,
        scopes: Sequence[str],
        *,
        repository: str | None,
        days: int | None,
    ) -> NewToken:
        self.note("create_token", name, list(scopes), repository, days)
        token = Token("tok_2", name, ANA.id, frozenset(scopes), None, NOW_MS, None, None)
        return NewToken(token, "slu_once")

    def revoke_token(self, actor: Actor, token_id: str) -> None:
        self.note("revoke_token", token_id)


@pytest.fixture
def commands() -> Recorder:
    return Recorder()


def site_over(commands: Recorder) -> Browser:
    return Browser(sample_site(commands=cast(Commands, commands)))


# --- doors ----------------------------------------------------------------------------------------


async def test_who_has_not_signed_in_is_led_to_the_door_and_back() -> None:
    async with Browser(sample_site()) as browser:
        answer = await browser.get("/runs/run_failed_15?step=sh:unit")
        assert answer.status == 303
        assert answer.location == "/sign-in?next=%2Fruns%2Frun_failed_15%3Fstep%3Dsh%3Aunit"
        form = (await browser.get(answer.location)).page.form("/sign-in")
        back = await browser.send(form, name="ana", password="correct horse")
        assert (back.status, back.location) == (303, "/runs/run_failed_15?step=sh:unit")
        assert (await browser.get(back.location)).status == 200


async def test_a_wrong_password_says_so_and_keeps_the_name() -> None:
    async with Browser(sample_site()) as browser:
        answer = await browser.sign_in(password="wrong")
        assert answer.status == 401
        assert "Wrong name or password." in answer.page.one(role="alert").text
        assert answer.page.one(id="name").get("value") == "ana"
        assert (await browser.get("/")).status == 303


async def test_the_session_cookie_is_out_of_reach_of_scripts() -> None:
    async with Browser(sample_site()) as browser:
        cookie = (await browser.sign_in()).response.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie
        assert "Secure" not in cookie
    async with Browser(sample_site(base_url="https://ci.example")) as browser:
        answer = await browser.get("/sign-in")
        assert "Secure" in answer.response.headers["set-cookie"]


async def test_signing_in_starts_a_new_session() -> None:
    async with Browser(sample_site()) as browser:
        form = (await browser.get("/sign-in")).page.form("/sign-in")
        before = browser.client.cookies[COOKIE]
        await browser.send(form, name="ana", password="correct horse")
        assert browser.client.cookies[COOKIE] != before
        again = await browser.post("/sign-out", {"csrf": form.fields["csrf"]})
        assert again.status == 403


async def test_signing_out_ends_the_session() -> None:
    async with Browser(sample_site()) as browser:
        await browser.sign_in()
        form = (await browser.get("/tokens")).page.form("/sign-out")
        answer = await browser.send(form)
        assert (answer.status, answer.location) == (303, "/sign-in")
        assert COOKIE not in browser.client.cookies


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "",
        "/a\nb",
        "/\tb",
        "x",
        "/%s" % ("a" * 2000),
    ],
)
def test_the_way_back_never_leads_elsewhere(target: str) -> None:
    assert local_path(target) == "/"


# --- CSRF -----------------------------------------------------------------------------------------

POSTS = sorted(
    route.path
    for route in (*forms.router.routes, *forms.repository_router.routes)
    if isinstance(route, APIRoute) and "POST" in (route.methods or ())
)


def test_all_forms_are_known_here() -> None:
    assert len(POSTS) == 13, POSTS


@pytest.mark.parametrize("path", POSTS)
async def test_a_form_without_its_token_changes_nothing(path: str, commands: Recorder) -> None:
    address = (
        path.replace("{run_id}", "run_running_19")
        .replace("{name:path}", "deploy")
        .replace("{secret}", "slu_x")
        .replace("{token_id}", "tok_1")
        .replace("{owner}", "ana")
        .replace("{name}", "hello")
    )
    async with site_over(commands) as browser:
        await browser.sign_in()
        other = Browser(sample_site())
        stolen = (await other.get("/sign-in")).page.form("/sign-in").fields["csrf"]
        for fields in ({}, {"csrf": ""}, {"csrf": "guess"}, {"csrf": stolen}):
            answer = await browser.post(address, {"decision": "approve", **fields})
            assert answer.status == 403
            assert "reload it and try again" in answer.page.text
        await other.client.aclose()
    assert commands.asked == []


@pytest.mark.parametrize("path", ["/runs/run_running_19/pause", "/tokens", "/sign-out"])
async def test_nothing_changes_by_a_link(path: str, commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        assert (await browser.get(path)).status in (200, 404, 405)
    assert commands.asked == []


# --- runs -----------------------------------------------------------------------------------------


async def test_approving_answers_the_gate_and_leads_back(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        page = (await browser.get("/runs/run_waiting_18")).page
        form = page.form("/runs/run_waiting_18/approvals/deploy%20to%20production")
        answer = await browser.send(
            form, "Approve deploy to production", comment=" Looks good.\r\nReally. "
        )
        assert (answer.status, answer.location) == (303, "/runs/run_waiting_18")
        assert commands.asked == [
            (
                "decide",
                ("ana", "run_waiting_18", "deploy to production", "approve")
                + ("Looks good.\nReally.", {}, "page"),
            )
        ]


async def test_rejecting_is_the_other_button(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        page = (await browser.get("/runs/run_waiting_18")).page
        form = page.form("/runs/run_waiting_18/approvals/deploy%20to%20production")
        await browser.send(form, "Reject")
        assert commands.asked[0][1][3] == "reject"


@pytest.mark.parametrize(
    ("run", "verb", "button", "asked", "leads"),
    [
        ("run_running_19", "pause", "Pause", ("pause", ("run_running_19",)), "run_running_19"),
        ("run_paused_17", "resume", "Resume", ("resume", ("run_paused_17",)), "run_running_19"),
        (
            "run_running_19",
            "cancel",
            "Cancel run #19",
            ("cancel", ("run_running_19", False)),
            "run_running_19",
        ),
        (
            "run_failed_15",
            "restart",
            "Run again",
            ("restart", ("run_failed_15", None, None)),
            "run_queued_20",
        ),
    ],
)
async def test_buttons_of_a_run_call_one_command_and_lead_to_the_run(
    run: str, verb: str, button: str, asked: Json, leads: str, commands: Recorder
) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        form = (await browser.get(f"/runs/{run}")).page.form(f"/runs/{run}/{verb}")
        answer = await browser.send(form, button)
        assert (answer.status, answer.location) == (303, f"/runs/{leads}")
    assert commands.asked == [asked]


@pytest.mark.parametrize(
    ("at", "commit"),
    [({"at": "same"}, COMMIT), ({"at": "newest"}, "newest")]
    + [({"at": "other", "commit": f" {'b' * 40} "}, "b" * 40)],
)
async def test_a_finished_run_goes_on_from_the_step_and_commit_that_are_chosen(
    at: dict[str, str], commit: str, commands: Recorder
) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        for path in ("/runs/run_failed_15", "/runs/run_failed_15/steps/sh:unit"):
            page = (await browser.get(path)).page
            button, form = page.one("button", value="sh:unit"), page.one(id="rerun")
            assert button.get("form") == "rerun" or button in form.all("button")
            csrf = form.one(name="csrf").get("value")
            sent = {"csrf": csrf, button.get("name"): "sh:unit", **at}
            answer = await browser.post(form.get("action"), sent)
            assert (answer.status, answer.location) == (303, "/runs/run_queued_20")
    step = StepKey(StepKind.SH, "unit")
    assert commands.asked == [("restart", ("run_failed_15", step, commit))] * 2


async def test_another_commit_has_to_be_given(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        form = (await browser.get("/runs/run_failed_15")).page.one(id="rerun")
        sent = {"csrf": form.one(name="csrf").get("value"), "from": "sh:unit", "at": "other"}
        answer = await browser.post(form.get("action"), sent)
        assert answer.status == 400 and "40 hex digits" in answer.page.text
        answer = await browser.post(form.get("action"), {**sent, "from": "unit", "at": "same"})
        assert answer.status == 400 and "not a step" in answer.page.text
    assert commands.asked == []


async def test_a_run_that_goes_on_has_nothing_to_rerun(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        page = (await browser.get("/runs/run_running_19")).page
        assert not page.all(id="rerun")


async def test_aborting_also_rolls_back(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        page = (await browser.get("/runs/run_running_19")).page
        csrf = page.form("/runs/run_running_19/cancel").fields["csrf"]
        await browser.post("/runs/run_running_19/cancel", {"csrf": csrf, "rollback": "true"})
    assert commands.asked == [("cancel", ("run_running_19", True))]


@pytest.mark.parametrize(
    ("refusal", "status", "sentence"),
    [
        (Conflict("this approval is closed"), 409, "This approval is closed."),
        (Forbidden("you caused this run"), 403, "You caused this run."),
        (ValueError("secret detail"), 500, "The platform made a mistake"),
    ],
)
async def test_a_refusal_is_a_page(
    refusal: Exception, status: int, sentence: str, commands: Recorder
) -> None:
    commands.refusal = refusal
    async with site_over(commands) as browser:
        await browser.sign_in()
        form = (await browser.get("/runs/run_running_19")).page.form("/runs/run_running_19/pause")
        answer = await browser.send(form)
        assert answer.status == status
        assert sentence in answer.page.text
        assert "secret detail" not in answer.page.text
        assert "content-security-policy" in answer.response.headers


async def test_starting_a_run_reads_its_declared_inputs(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        form = (await browser.get("/ana/hello")).page.form("/ana/hello/runs")
        filled = {"input.Release.version": "1.4", "input.Release.forged": "x", "ref": "release/1"}
        answer = await browser.send(form, "Start Release", **filled)
        assert (answer.status, answer.location) == (303, "/runs/run_queued_20")
    params = {"target": "staging", "version": "1.4"}
    what = StartRun(pipeline="Release", ref="release/1", params=params)
    assert commands.asked == [("start", ("ana", "hello", what))]


# --- tokens ---------------------------------------------------------------------------------------


async def test_a_token_is_shown_once(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        form = (await browser.get("/tokens")).page.form("/tokens")
        answer = await browser.post("/tokens", form.fields | {"name": "ci", "scope": "run"})
        assert answer.status == 201
        assert answer.page.one(id="token-secret").get("value") == "slu_once"
        assert answer.response.headers["cache-control"] == "no-store"
        assert "slu_once" not in (await browser.get("/tokens")).page.html
    assert commands.asked == [("create_token", ("ci", ["run"], None, 90))]


async def test_a_refused_token_keeps_what_was_typed(commands: Recorder) -> None:
    commands.refusal = InvalidRequest("name at least one of repo:read", field="scopes")
    async with site_over(commands) as browser:
        await browser.sign_in()
        form = (await browser.get("/tokens")).page.form("/tokens")
        answer = await browser.send(form, name="laptop 2", days="0")
        assert answer.status == 400
        assert "name at least one of" in answer.page.one(role="alert").text
        assert answer.page.one(id="name").get("value") == "laptop 2"
        odd = await browser.send(form, name="x", days="-1")
        assert odd.status == 400 and "whole number" in odd.page.text


async def test_a_token_can_be_revoked(commands: Recorder) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        form = (await browser.get("/tokens")).page.form("/tokens/tok_1/revoke")
        answer = await browser.send(form)
        assert (answer.status, answer.location) == (303, "/tokens")
    assert commands.asked == [("revoke_token", ("tok_1",))]


# --- forms that no page of ours sends -------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"csrf=" + b"x" * FORM_BYTES_MAX, "application/x-www-form-urlencoded", 413),
        (b"csrf=%ff%fe", "application/x-www-form-urlencoded", 400),
        (b"csrf=\xff", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a=1" for _ in range(400)), "application/x-www-form-urlencoded", 400),
        (b'{"csrf": 1}', "application/json", 400),
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x", 400),
        (b"", "", 403),
    ],
)
async def test_odd_bodies_are_refused_with_a_reason(
    body: bytes, kind: str, status: int, commands: Recorder
) -> None:
    async with site_over(commands) as browser:
        await browser.sign_in()
        response = await browser.client.post(
            "/runs/run_running_19/pause", content=body, headers={"content-type": kind}
        )
        assert response.status_code == status
        assert "Traceback" not in response.text
    assert commands.asked == []
