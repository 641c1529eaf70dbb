"""The event streams over a real server: an endless answer cannot be tested in process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

from ci_platform.model import Run, RunId, RunState, WorkerId
from tests.web.browser import PASSWORD
from tests.web.html import Page
from tests.web.stage import Stage, approval, sh
from web import live

pytestmark = pytest.mark.anyio
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    id: str
    data: str


@pytest.fixture
def address(stage: Stage) -> Iterator[str]:
    """The stage behind uvicorn on a free port of this machine alone."""
    config = uvicorn.Config(
        stage.app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=PATIENCE_S)
    assert not thread.is_alive()


@asynccontextmanager
async def signed_in(address: str, name: str = "ben") -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE_S) as client:
        form = Page((await client.get("/sign-in")).text).form("/sign-in")
        fields = form.fields | {"name": name, "password": PASSWORD}
        assert (await client.post("/sign-in", data=fields)).status_code == 303
        yield client


async def events(response: httpx.Response) -> AsyncIterator[Event]:
    name, last, data = "message", "", list[str]()
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if not line:
            if data or name != "message":
                yield Event(name, last, "\n".join(data))
            name, data = "message", []
        elif field == "event":
            name = value
        elif field == "id":
            last = value
        elif field in ("data", "data:"):
            data.append(value)


async def following(source: AsyncIterator[Event], name: str) -> Event:
    """The next event of this name."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in source:
            if event.name == name:
                return event
    raise AssertionError(f"the stream ended without {name}")


def numbers(html: str) -> list[str]:
    return [row.one("a").text for row in Page(html).all("li")]


async def test_a_run_is_seen_to_pass_through_an_approval(stage: Stage, address: str) -> None:
    run = stage.work(stage.run(), approval("deploy"))
    async with signed_in(address) as client:
        page = Page((await client.get(f"/runs/{run.id}")).text)
        url = page.one(id="run").get("data-live")
        async with client.stream("GET", url) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-cache"
            source = events(response)
            form = page.form(f"/runs/{run.id}/approvals/deploy")
            name, value = form.buttons["Approve deploy"]
            answer = await client.post(form.action, data=form.fields | {name: value})
            assert answer.status_code == 303
            panel = await following(source, "panel")
            seen = Page(panel.data)
            assert "Approved: deploy" in seen.one("section", class_="approval").text
            assert int(panel.id) > run.last_seq
            await asyncio.to_thread(stage.work, run, output={"ok": True}, end=True)
            while (
                Page((panel := await following(source, "panel")).data)
                .one(id="run-head")
                .get("data-state")
                != RunState.PASSED
            ):
                pass
            head = Page(panel.data).one(id="run-head")
            assert head.get("data-say") == "Run 1 is passed"
            assert head.get("data-title").startswith("passed · ana/hello #1")
            assert (await following(source, "end")).data == ""


async def test_the_panel_brings_the_log_of_the_step_that_now_runs(
    stage: Stage, address: str
) -> None:
    run = stage.run()
    async with signed_in(address) as client:
        page = Page((await client.get(f"/runs/{run.id}")).text)
        assert not page.all(id="log")
        async with client.stream("GET", page.one(id="run").get("data-live")) as response:
            source = events(response)
            await asyncio.to_thread(stage.work, run, sh("build"))
            log = Page((await following(source, "log")).data)
            assert log.one(class_="log-box").get("data-tail") == f"/runs/{run.id}/tail/sh:build"


async def test_a_queued_command_is_seen_to_move_up_and_to_be_taken(
    stage: Stage, address: str
) -> None:
    """Neither is an entry of the journal."""
    other, run = stage.work(stage.run(), sh("first")), stage.work(stage.run(), sh("build"))

    def take() -> None:
        stage.store.operations.claim(WorkerId("w"), limit=1, lease_ms=60_000)

    async with signed_in(address) as client:
        page = Page((await client.get(f"/runs/{run.id}")).text)
        row = page.one("table", class_="steps").all("tr")[1].text
        assert "queued" in row and "no worker is there, number 2 in line" in row
        assert "Its command waits for a worker." in page.one(id="log").text
        step = Page((await client.get(f"/runs/{run.id}/steps/sh:build")).text)
        assert "Its command waits: no worker is there" in step.one("main").text
        async with client.stream("GET", page.one(id="run").get("data-live")) as response:
            source = events(response)
            for words in ("number 1 in line", "running"):
                await asyncio.to_thread(take)
                panel = await following(source, "panel")
                assert words in Page(panel.data).one("table", class_="steps").all("tr")[1].text
                assert panel.id == str(run.last_seq)
    assert other.id != run.id


async def test_a_chosen_log_is_not_taken_away(stage: Stage, address: str) -> None:
    run = stage.work(stage.run(), sh("build"))
    async with signed_in(address) as client:
        page = Page((await client.get(f"/runs/{run.id}?step=sh:build")).text)
        url = page.one(id="run").get("data-live")
        assert url.endswith("&step=sh%3Abuild")
        async with client.stream("GET", url) as response:
            source = events(response)
            await asyncio.to_thread(stage.finish_command, run)
            panel = Page((await following(source, "panel")).data)
            row = panel.one("table", class_="steps").all("tr")[1]
            assert row.get("aria-current") == "true" and "passed" in row.text
            await asyncio.to_thread(stage.work, run, end=True)
            names = []
            async with asyncio.timeout(PATIENCE_S):
                async for event in source:
                    names.append(event.name)
            assert "log" not in names and names[-1] == "end"


async def test_a_log_is_followed_from_where_the_page_ends(stage: Stage, address: str) -> None:
    run = stage.work(stage.run(), sh("build"))
    stage.print(run, "sh:build", ["one", "two"])
    async with signed_in(address) as client:
        page = Page((await client.get(f"/runs/{run.id}")).text)
        box = page.one(id="log")
        url = f"{box.get('data-tail')}?after={box.get('data-after')}"
        async with client.stream("GET", url) as response:
            source = events(response)
            await asyncio.to_thread(stage.print, run, "sh:build", ["three <b>", "four"])
            event = await following(source, "message")
            assert numbers(event.data) == ["3", "4"] and event.id == "4"
            assert Page(event.data).all("code")[0].text == "three <b>"
            await asyncio.to_thread(stage.print, run, "sh:build", ["five"])
            await asyncio.to_thread(stage.finish_command, run)
            assert numbers((await following(source, "message")).data) == ["5"]
            end = Page((await following(source, "end")).data)
            assert end.one(class_="log-end").text.startswith("passed, exit code 0")


async def test_a_broken_stream_resumes_after_the_last_line(stage: Stage, address: str) -> None:
    run = stage.work(stage.run(), sh("build"))
    stage.print(run, "sh:build", [f"line {n}" for n in range(1, 1_201)])
    stage.finish_command(run)
    url = f"/runs/{run.id}/tail/sh:build?after=2"
    async with signed_in(address) as client:
        headers = {"last-event-id": "150"}
        async with client.stream("GET", url, headers=headers) as response:
            got: list[str] = []
            async with asyncio.timeout(PATIENCE_S):
                async for event in events(response):
                    if event.name == "message":
                        got += numbers(event.data)
            assert got == [str(n) for n in range(151, 1_201)]
        odd = {"last-event-id": "9" * 400}
        async with client.stream("GET", url, headers=odd) as response:
            assert [event.name async for event in events(response)] == ["end"]


async def test_a_stream_ends_by_itself_so_that_the_reader_is_asked_again(
    stage: Stage, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "STREAM_SECONDS", 0.0)
    run = stage.work(stage.run(), sh("build"))
    async with signed_in(address) as client:
        page = Page((await client.get(f"/runs/{run.id}")).text)
        for path in (page.one(id="run").get("data-live"), f"/runs/{run.id}/tail/sh:build"):
            async with client.stream("GET", path) as response:
                assert [event async for event in events(response)] == []


@pytest.mark.parametrize("path", ["live", "tail/sh:build", "tail/sh:none"])
async def test_who_may_not_see_a_run_gets_no_stream(path: str, stage: Stage, address: str) -> None:
    run = stage.work(stage.run(), sh("build"))
    async with signed_in(address, "cleo") as client:
        assert (await client.get(f"/runs/{run.id}/{path}")).status_code == 404
    async with httpx.AsyncClient(base_url=address) as client:
        headers = {"accept": "text/event-stream"}
        answer = await client.get(f"/runs/{run.id}/{path}", headers=headers)
        assert answer.status_code == 401


async def test_a_tail_of_what_does_not_exist_is_not_found(stage: Stage, address: str) -> None:
    run: Run = stage.work(stage.run(), sh("build"))
    async with signed_in(address) as client:
        assert (await client.get(f"/runs/{run.id}/tail/sh:none")).status_code == 404


async def test_a_reader_of_a_deleted_run_is_let_go(stage: Stage, address: str) -> None:
    run = stage.work(stage.run(), sh("build"))
    async with signed_in(address, "ben") as client:
        async with client.stream("GET", f"/runs/{run.id}/live") as response:
            source = events(response)
            await following(source, "panel")
            stage.store.runs.delete(await asyncio.to_thread(ended, stage, run))
            async with asyncio.timeout(PATIENCE_S):
                assert "message" not in [event.name async for event in source]
        assert (await client.get(f"/runs/{run.id}/live")).status_code == 404


def ended(stage: Stage, run: Run) -> RunId:
    stage.finish_command(run)
    return stage.work(run, end=True).id


async def test_readers_who_left_are_forgotten(stage: Stage, address: str) -> None:
    run = stage.work(stage.run(), sh("build"))
    async with signed_in(address) as client:
        async with client.stream("GET", f"/runs/{run.id}/tail/sh:build") as response:
            stage.print(run, "sh:build", ["one"])
            await following(events(response), "message")
            assert len(stage.live._listeners) == 1
        async with asyncio.timeout(PATIENCE_S):
            while stage.live._listeners:
                await asyncio.sleep(0.02)
