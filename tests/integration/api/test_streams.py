"""Live streams over a real server: they end, resume, wake at once, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Iterator

import httpx
import pytest
import uvicorn

from ci_platform.model import Json, RunId
from tests.integration.api.front import Front

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(front: Front) -> Iterator[str]:
    """The API on a free port of this machine, in a thread."""
    config = uvicorn.Config(front.app(), port=0, log_level="warning", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        thread.join(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


async def events(
    server: str, path: str, token: str, last: str | None = None
) -> AsyncGenerator[dict[str, Json], None]:
    headers = {"Authorization": f"Bearer {token}"}
    if last is not None:
        headers["Last-Event-ID"] = last
    async with (
        httpx.AsyncClient(base_url=server, headers=headers, timeout=20) as client,
        client.stream("GET", path) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, Json] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if not line and event:
                yield event
                event = {}
            elif name == "data":
                event["data"] = json.loads(value)
            elif name in ("id", "event"):
                event[name] = value


async def test_a_journal_is_followed_to_its_end(front: Front, server: str) -> None:
    run = front.runs(front.repository())[0]
    front.finish(run.id, 7)
    token = front.token()
    seen = [one async for one in events(server, f"/api/v1/runs/{run.id}/events", token)]
    assert [one["event"] for one in seen] == ["run_created", "run_claimed", "run_passed", "end"]
    assert [one.get("id") for one in seen] == ["1", "2", "3", None]
    assert seen[2]["data"]["data"] == {"output": 7}
    assert seen[3]["data"] == {"state": "passed"}


async def test_a_client_that_comes_back_misses_and_repeats_nothing(
    front: Front, server: str
) -> None:
    run = front.runs(front.repository())[0]
    front.finish(run.id)
    path, token = f"/api/v1/runs/{run.id}/events", front.token()
    seen = [one async for one in events(server, path, token, last="2")]
    assert [one.get("id") for one in seen] == ["3", None]
    seen = [one async for one in events(server, path + "?after=1", token)]
    assert [one.get("id") for one in seen] == ["2", "3", None]


async def test_a_stream_may_be_of_some_kinds_of_entries_alone(front: Front, server: str) -> None:
    run = front.runs(front.repository())[0]
    front.finish(run.id)
    path = f"/api/v1/runs/{run.id}/events?type=run_passed&type=run_created"
    seen = [one async for one in events(server, path, front.token())]
    assert [one["event"] for one in seen] == ["run_created", "run_passed", "end"]
    seen = [one async for one in events(server, path, front.token(), last="1")]
    assert [one["event"] for one in seen] == ["run_passed", "end"]


async def test_an_entry_reaches_a_waiting_stream_at_once(front: Front, server: str) -> None:
    run = front.runs(front.repository())[0]
    stream = events(server, f"/api/v1/runs/{run.id}/events", front.token())
    assert (await anext(stream))["event"] == "run_created"
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)  # let it ask
    front.finish(run.id)
    began = asyncio.get_running_loop().time()
    assert (await waiting)["event"] == "run_claimed"
    assert asyncio.get_running_loop().time() - began < 1.5  # its slow poll is 2 s
    await stream.aclose()


async def test_a_client_may_ask_for_a_run_once_it_has_ended(front: Front, server: str) -> None:
    run = front.runs(front.repository())[0]
    headers = {"Authorization": f"Bearer {front.token()}"}
    path = f"/api/v1/runs/{run.id}"
    async with httpx.AsyncClient(base_url=server, headers=headers, timeout=20) as client:
        early = await client.get(path, params={"wait": 0.01})
        assert early.json()["state"] == "queued"
        waiting = asyncio.ensure_future(client.get(path, params={"wait": 15}))
        await asyncio.sleep(0)  # let it ask
        front.finish(run.id, 7)
        assert ((await waiting).json()["state"], (await waiting).json()["output"]) == ("passed", 7)
        refused = await client.get(path, params={"wait": 61})
        assert (refused.status_code, refused.json()["field"]) == (400, "wait")
        unknown = await client.get("/api/v1/runs/run_nobody", params={"wait": 15})
        assert unknown.status_code == 404


async def test_a_log_is_followed_line_by_line_until_the_run_ends(front: Front, server: str) -> None:
    run = front.runs(front.repository())[0]
    front.print(run.id, "$run", "one")
    stream = events(server, f"/api/v1/runs/{run.id}/logs/follow", front.token())
    assert (await anext(stream))["data"]["text"] == "one"
    front.print(run.id, "$run", "two\r\n\x1b[31mthree")
    line = await anext(stream)
    assert (line["event"], line["id"], line["data"]["text"]) == (
        "line",
        "2",
        "two\r\n\x1b[31mthree",
    )
    front.finish(run.id)
    assert (await anext(stream))["event"] == "end"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_the_log_of_a_step_ends_with_the_step(front: Front, server: str) -> None:
    run = front.runs(front.repository())[0]
    front.wait_for(run.id, "go")
    front.commands.runs.send_event(
        front.identity.of_token(front.token()), RunId(run.id), "go", None
    )
    path = f"/api/v1/runs/{run.id}/logs/follow?step=wait:for%20go"
    seen = [one["event"] async for one in events(server, path, front.token())]
    assert seen == ["end"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/runs/run_x/events", 404),
        ("/api/v1/runs/run_x/logs/follow", 404),
        ("/api/v1/runs/{run}/logs/follow?step=x", 400),
        ("/api/v1/runs/{run}/logs/follow?steps=$run", 400),
        ("/api/v1/runs/{run}/events?after=-1", 400),
    ],
)
async def test_a_stream_is_refused_before_it_begins(
    front: Front, server: str, path: str, status: int
) -> None:
    run = front.runs(front.repository())[0]
    headers = {"Authorization": f"Bearer {front.token()}"}
    async with httpx.AsyncClient(base_url=server, headers=headers) as client:
        answer = await client.get(path.format(run=run.id))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_streams_that_are_gone_are_forgotten(front: Front, server: str) -> None:
    run = front.runs(front.repository())[0]
    streams = [events(server, f"/api/v1/runs/{run.id}/events", front.token()) for _ in range(20)]
    for stream in streams:
        await anext(stream)
    assert len(front.live._listeners) == 20
    bells = [one for one in threading.enumerate() if one.name == "live"]
    assert len(bells) == 1
    for stream in streams:
        await stream.aclose()
    front.finish(run.id)
    async with asyncio.timeout(20):
        while front.live._listeners:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(bells[0].join, 20)
    assert not bells[0].is_alive()
