"""The pages over the real store, commands and queries: one story after another."""

from __future__ import annotations

import pytest

from ci_platform.model import SYSTEM, Role, RunState
from tests.web.browser import PASSWORD, Browser
from tests.web.stage import Stage, approval, sh

pytestmark = pytest.mark.anyio


async def test_the_one_time_link_makes_the_admin_and_works_once(bare_stage: Stage) -> None:
    async with Browser(bare_stage.app) as browser:
        door = (await browser.get("/")).location
        assert "one-time link" in (await browser.get(door)).page.text
        path = f"/setup/{bare_stage.setup_secret}"
        form = (await browser.get(path)).page.form("")
        short = await browser.post(path, form.fields | {"name": "ana", "password": "short"})
        assert short.status == 400 and "8 to 256" in short.page.one(role="alert").text
        answer = await browser.post(path, form.fields | {"name": "ana", "password": PASSWORD})
        assert (answer.status, answer.location) == (303, "/")
        home = (await browser.get("/")).page
        assert "No repository yet." in home.text
        assert "sluice repo create ana/hello" in home.text
        assert (await browser.get(path)).status == 404
    async with Browser(bare_stage.app) as browser:
        again = await browser.get(path)
        assert again.status == 404 and "sign in instead" in again.page.text


async def test_a_wrong_setup_link_is_refused(bare_stage: Stage) -> None:
    async with Browser(bare_stage.app) as browser:
        form = (await browser.get("/setup/slu_wrong")).page.form("")
        fields = form.fields | {"name": "eve", "password": PASSWORD}
        answer = await browser.post("/setup/slu_wrong", fields)
        assert answer.status == 404
        assert bare_stage.identity.needs_setup()


async def test_an_approval_on_the_page_moves_the_run_and_becomes_the_record(stage: Stage) -> None:
    run = stage.work(stage.run(), approval("deploy", approvers=["role:writer"], required=1))
    assert run.state is RunState.WAITING
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        home = (await browser.get("/")).page
        form = home.form(f"/runs/{run.id}/approvals/deploy")
        answer = await browser.send(form, "Approve deploy", comment="Go <b>ahead</b>")
        assert (answer.status, answer.location) == (303, f"/runs/{run.id}")
        page = (await browser.get(answer.location)).page
        panel = page.one("section", class_="approval")
        assert "Approved: deploy" in panel.text
        assert "ben approved just now by page Go <b>ahead</b>" in panel.text
        assert stage.store.runs.get(run.id).state is RunState.QUEUED
        second = await browser.send(form, "Reject")
        assert second.status == 303
        page = (await browser.get(second.location)).page
        assert "Approved: deploy" in page.one("section", class_="approval").text
        assert "No approval waits for you." in (await browser.get("/")).page.text


async def test_whoever_caused_the_run_is_told_why_they_may_not_approve_it(stage: Stage) -> None:
    run = stage.work(stage.run(actor="ben"), approval("deploy"))
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        page = (await browser.get(f"/runs/{run.id}")).page
        panel = page.one("section", class_="approval")
        assert "You cannot answer: you caused this run" in panel.text
        assert not panel.all("button")


async def test_a_rejection_needs_no_form_and_fails_the_wait(stage: Stage) -> None:
    form = {"reason": {"type": "text", "default": None, "label": "Reason"}}
    run = stage.work(stage.run(), approval("deploy", form=form))
    async with Browser(stage.app) as browser:
        await browser.sign_in("ana")
        page = (await browser.get(f"/runs/{run.id}")).page
        sent = page.form(f"/runs/{run.id}/approvals/deploy")
        assert "form.reason" in sent.fields
        empty = await browser.send(sent, "Approve deploy")
        assert empty.status == 400 and "must be filled in" in empty.page.text
        answer = await browser.send(sent, "Reject", comment="Not on a Friday")
        assert answer.status == 303
        page = (await browser.get(answer.location)).page
        assert "Rejected: deploy" in page.one("section", class_="approval").text


async def test_what_is_not_yours_looks_as_if_it_were_not_there(stage: Stage) -> None:
    run = stage.work(stage.run(), sh("build"))
    stage.print(run, "sh:build", ["secret line"])
    async with Browser(stage.app) as browser:
        await browser.sign_in("cleo")
        home = (await browser.get("/")).page
        assert "hello" not in home.text.replace("cleo/hello", "")
        gone = await browser.get("/runs/run_0000000000000000000000000")
        for path in ("", "/journal", "/journal.json", "/steps/sh:build", "/logs/sh:build"):
            answer = await browser.get(f"/runs/{run.id}{path}")
            assert answer.status == 404
            assert answer.page.text == gone.page.text
        for path in ("/raw/sh:build", "/live", "/tail/sh:build"):
            assert (await browser.get(f"/runs/{run.id}{path}")).status == 404
        assert (await browser.get("/ana/hello")).page.text == (
            await browser.get("/ana/nothing")
        ).page.text
        assert (await browser.get("/system")).status == 403


async def test_a_reader_sees_no_buttons(stage: Stage) -> None:
    run = stage.work(stage.run(), sh("build"))
    stage.commands.people.set_role(SYSTEM, "ana", "hello", user="cleo", role=Role.READER)
    async with Browser(stage.app) as browser:
        await browser.sign_in("cleo")
        page = (await browser.get(f"/runs/{run.id}")).page
        assert [one.get("action") for one in page.one("main").all("form")] == []
        csrf = page.form("/sign-out").fields["csrf"]
        refused = await browser.post(f"/runs/{run.id}/cancel", {"csrf": csrf})
        assert refused.status == 403 and "you are its reader" in refused.page.text


async def test_a_run_is_held_ended_and_run_again(stage: Stage) -> None:
    run = stage.work(stage.run(), sh("build"))
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        page = (await browser.get(f"/runs/{run.id}")).page
        await browser.send(page.form(f"/runs/{run.id}/pause"))
        page = (await browser.get(f"/runs/{run.id}")).page
        assert "Pauses when the step in flight ends." in page.text
        await browser.send(page.form(f"/runs/{run.id}/cancel"), f"Cancel run #{run.number}")
        page = (await browser.get(f"/runs/{run.id}")).page
        ended = stage.store.runs.get(run.id)
        assert ended.cancel_requested or ended.state is RunState.CANCELLED
        assert "ben" in page.text or "Cancelling" in page.text


async def test_the_journal_has_a_json_twin(stage: Stage) -> None:
    run = stage.work(stage.run(), sh("build"), approval("deploy"))
    async with Browser(stage.app) as browser:
        await browser.sign_in("ana")
        page = (await browser.get(f"/runs/{run.id}/journal")).page
        rows = page.one("table", class_="journal").all("tr")[1:]
        twin = (await browser.get(f"/runs/{run.id}/journal.json")).response.json()
        assert [row.all("code")[0].text for row in rows] == [one["kind"] for one in twin["entries"]]
        assert twin["entries"][2]["step"] == {"kind": "sh", "name": "build", "occurrence": 1}
        later = (await browser.get(f"/runs/{run.id}/journal?after=2")).page
        assert later.one("table", class_="journal").all("tr")[1].get("id") == "e3"
        assert f"/runs/{run.id}/journal" in later.links


async def test_a_failed_step_tells_the_whole_story(stage: Stage) -> None:
    run = stage.work(stage.run(), sh("unit", "pytest -q"))
    stage.print(run, "sh:unit", ["\x1b[31mE assert 1 == 2\x1b[0m"], stream="stderr")
    stage.finish_command(run, exit_code=2)
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        page = (await browser.get(f"/runs/{run.id}")).page
        row = page.one("table", class_="steps").all("tr")[1]
        assert "failed" in row.text and "exit code 2" in row.text
        assert page.one(class_="fg1").text == "E assert 1 == 2"
        step = (await browser.get(f"/runs/{run.id}/steps/sh:unit")).page
        assert "CommandFailed" in step.text and "pytest -q" in step.text
        assert step.one(class_="log-end").text.startswith("failed, exit code 2")


async def test_a_long_log_shows_its_tail_and_leads_to_the_rest(stage: Stage) -> None:
    run = stage.work(stage.run(), sh("build"))
    stage.print(run, "sh:build", [f"line {n}" for n in range(1, 2_501)])
    stage.finish_command(run)
    path = f"/runs/{run.id}/logs/sh:build"
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        tail = (await browser.get(path)).page
        rows = tail.one("ol", class_="log").all("li")
        assert [rows[0].one("code").text, rows[-1].one("code").text] == ["line 1501", "line 2500"]
        assert f"{path}?before=1501" in tail.links and "1,500 earlier lines" in tail.text
        middle = (await browser.get(f"{path}?before=1501")).page
        rows = middle.one("ol", class_="log").all("li")
        assert [rows[0].one("code").text, rows[-1].one("code").text] == ["line 501", "line 1500"]
        assert f"{path}?after=1500" in middle.links
        first = (await browser.get(f"{path}?before=501")).page
        assert len(first.one("ol", class_="log").all("li")) == 500
        raw = await browser.get(f"/runs/{run.id}/raw/sh:build")
        assert raw.response.text.splitlines() == [f"line {n}" for n in range(1, 2_501)]
        page = (await browser.get(f"/runs/{run.id}")).page
        assert len(page.one("ol", class_="log").all("li")) == 400
        assert f"{path}?before=2101" in page.links


async def test_tokens_are_made_used_and_revoked(stage: Stage) -> None:
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        form = (await browser.get("/tokens")).page.form("/tokens")
        fields = form.fields | {"name": "laptop", "repository": "ana/hello", "scope": "repo:write"}
        made = await browser.post("/tokens", fields)
        assert made.status == 201
        secret = made.page.one(id="token-secret").get("value")
        assert stage.identity.of_token(secret).name == "ben"
        page = (await browser.get("/tokens")).page
        row = page.one("table").all("tr")[1]
        assert "laptop" in row.text and "ana/hello" in row.text and secret not in page.html
        action = row.one("form").get("action")
        assert (await browser.send(page.form(action))).status == 303
        assert "No token yet." in (await browser.get("/tokens")).page.text
        refused = await browser.post("/tokens", {**form.fields, "name": "", "scope": "run"})
        assert refused.status == 400 and refused.page.one(role="alert").text


async def test_runs_are_listed_and_paged(stage: Stage) -> None:
    for number in range(55):
        stage.run(message=f"Change {number}")
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        page = (await browser.get("/ana/hello")).page
        rows = page.one("table", class_="runs").all("tr")[1:]
        assert rows[0].all("a")[0].text == "#55" and len(rows) == 50
        (older,) = [one for one in page.links if "cursor=" in one]
        rest = (await browser.get(older)).page.one("table", class_="runs").all("tr")[1:]
        assert [row.all("a")[0].text for row in rest] == ["#5", "#4", "#3", "#2", "#1"]
        none = (await browser.get("/ana/hello?state=passed")).page
        assert "No run matches." in none.text
        odd = await browser.get("/ana/hello?cursor=%00odd")
        assert odd.status in (200, 400)


async def test_the_system_page_is_for_admins(stage: Stage) -> None:
    stage.work(stage.run(), approval("deploy"))
    stage.run()
    async with Browser(stage.app) as browser:
        await browser.sign_in("ana")
        page = (await browser.get("/system")).page
        tiles = {
            one.one("dt").text: one.one("dd").text for one in page.one(class_="tiles").all("div")
        }
        assert tiles["queued"] == "1" and tiles["waiting"] == "1"
        assert "repository created" in page.text and "ana/hello" in page.text


async def test_the_system_page_tells_of_a_command_that_nobody_takes(stage: Stage) -> None:
    stage.work(stage.run(), sh("on a gpu", labels=["gpu"]))
    async with Browser(stage.app) as browser:
        await browser.sign_in("ana")
        page = (await browser.get("/system")).page
        assert "A command has waited for a worker that can run it since" in page.text
        assert "Next due" not in page.text


async def test_another_password_ends_the_sessions_of_that_user_and_of_nobody_else(
    stage: Stage,
) -> None:
    async with Browser(stage.app) as at_home, Browser(stage.app) as away:
        await at_home.sign_in("ben")
        await away.sign_in("ana")
        stage.commands.people.set_password(SYSTEM, "ben", "another battery staple")
        assert (await at_home.get("/")).location.startswith("/sign-in")
        assert (await away.get("/")).status == 200
        await at_home.sign_in("ben", "another battery staple")
        assert (await at_home.get("/")).status == 200


async def test_a_mirror_says_what_it_follows_and_is_synchronised_by_hand(stage: Stage) -> None:
    stage.commands.mirrors.put(
        SYSTEM,
        "ana",
        "hello",
        url="https://example.org/hello.git",
        credentials=("robot", "never shown"),
        every_seconds=7200,
        overwrite=True,
    )
    async with Browser(stage.app) as browser:
        await browser.sign_in("ben")
        page = (await browser.get("/ana/hello")).page
        assert "Follows https://example.org/hello.git, looked at every 2 hours." in page.text
        assert "Last synchronised: never. Next: just now." in page.text
        assert "git push" not in page.text, "nobody can push to a mirror"
        now_ms = stage.clock.now_ms()
        (taken,) = stage.store.mirrors.take(now_ms, until_ms=now_ms + 1000, limit=1)
        told = "the remote said <b>no</b>"
        later_ms = now_ms + 7_200_000
        stage.store.mirrors.done(taken, now_ms, next_ms=later_ms, outcome=told, worked=False)
        page = (await browser.get("/ana/hello")).page
        assert page.one(role="alert").text == f"The last look failed: {told}"
        assert "Next: in 2 hours" in page.text
        assert "never shown" not in page.text and "robot" not in page.text
        form = page.form("/ana/hello/mirror/sync")
        answer = await browser.send(form, "Sync now")
        assert (answer.status, answer.location) == (303, "/ana/hello")
        due = stage.store.mirrors.get(stage.repository.id)
        assert due is not None and due.next_ms is not None and due.next_ms < later_ms


async def test_who_may_not_write_sees_a_mirror_and_no_button(stage: Stage) -> None:
    url = "https://example.org/hello.git"
    stage.commands.mirrors.put(SYSTEM, "ana", "hello", url=url, every_seconds=None, overwrite=True)
    stage.commands.people.set_role(SYSTEM, "ana", "hello", user="cleo", role=Role.READER)
    async with Browser(stage.app) as browser:
        await browser.sign_in("cleo")
        answer = await browser.get("/ana/hello")
        assert "looked at when told to" in answer.page.text
        assert "Sync now" not in answer.page.text
        csrf = answer.page.form("/sign-out").fields["csrf"]
        assert (await browser.post("/ana/hello/mirror/sync", {"csrf": csrf})).status == 403
