"""The API's client, against an application that only answers."""

from __future__ import annotations

import json

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ci_platform.cli.client import Client, ClientError, repo_path, run_path, segment


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "query": dict(request.query_params),
            "body": json.loads(body) if body else None,
            "path": request.scope["raw_path"].decode(),
        }
    )


async def refuse(request: Request) -> Response:
    problem = {"title": "Bad", "detail": "too long", "field": "name"}
    return JSONResponse(problem, status_code=int(request.query_params["status"]))


async def break_down(request: Request) -> Response:
    return PlainTextResponse("<html>", status_code=502)


async def listing(request: Request) -> Response:
    first = int(request.query_params.get("cursor", "0"))
    count = min(int(request.query_params["limit"]), 100)
    items = list(range(first, min(first + count, 250)))
    more = str(first + count) if first + count < 250 else None
    return JSONResponse({"items": items, "cursor": more})


async def delete(request: Request) -> Response:
    return Response(status_code=204)


APP = Starlette(
    routes=[
        Route("/refuse", refuse),
        Route("/break", break_down),
        Route("/items", listing),
        Route("/gone", delete, methods=["DELETE"]),
        Route("/{path:path}", echo, methods=["GET", "POST"]),
    ]
)


@pytest.fixture
def client() -> Client:
    return Client.local(httpx.ASGITransport(app=APP), "http://sluice")


def test_what_is_none_is_left_out_of_the_query(client: Client) -> None:
    with client:
        assert client.get("/x", state=None, limit=3)["query"] == {"limit": "3"}


def test_a_body_is_sent_as_json_and_none_as_null(client: Client) -> None:
    with client:
        assert client.post("/x", {"a": [1]})["body"] == {"a": [1]}


def test_an_empty_answer_is_none(client: Client) -> None:
    with client:
        assert client.delete("/gone") is None


@pytest.mark.parametrize(
    ("status", "code"), [(400, 2), (401, 3), (403, 3), (404, 3), (409, 2), (429, 2), (500, 4)]
)
def test_a_refusal_tells_what_and_why_and_becomes_an_exit_code(
    client: Client, status: int, code: int
) -> None:
    with client, pytest.raises(ClientError, match="^name: too long$") as caught:
        client.get("/refuse", status=status)
    assert caught.value.status == status
    assert caught.value.exit_code == code


def test_an_answer_that_is_no_problem_document_still_reads_well(client: Client) -> None:
    with client, pytest.raises(ClientError, match="Bad Gateway"):
        client.get("/break")


def test_a_server_that_is_not_there_is_the_platforms_failure() -> None:
    with (
        Client.remote("http://127.0.0.1:1", "token") as remote,
        pytest.raises(ClientError, match=r"no answer from http://127.0.0.1:1") as caught,
    ):
        remote.get("/x")
    assert caught.value.exit_code == 4


def test_a_listing_is_read_over_as_many_pages_as_it_takes(client: Client) -> None:
    with client:
        assert list(client.pages("/items", "items", limit=1000)) == list(range(250))
        assert list(client.pages("/items", "items", limit=120)) == list(range(120))


def test_names_are_quoted_in_paths(client: Client) -> None:
    assert run_path("a/b?c") == "/api/v1/runs/a%2Fb%3Fc"
    assert repo_path("me/a b") == "/api/v1/repos/me/a%20b"
    assert segment("deploy to production") == "deploy%20to%20production"
