"""What no client of ours sends: broken, oversize and odd requests. Each gets a problem document."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.integration.api.front import Front

pytestmark = pytest.mark.anyio
RUNS = "/api/v1/repos/acme/widget/runs"
JSON = {"Content-Type": "application/json"}


def is_problem(answer: httpx.Response, status: int) -> bool:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) <= {"type", "title", "status", "detail", "field"}
    assert answer.headers["cache-control"] == "no-store"
    assert body["type"].startswith("urn:sluice:problem:") and body["title"] and body["detail"]
    return bool(body["status"] == status)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"ref": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"params": ' + b"9" * 5000 + b"}",
        b'{"params": NaN}',
        b'{"params": Infinity}',
        b'{"params": {"a": "\\ud800"}}',
        b'{"ref": "\\u0000"}',
        b"\x00",
    ],
)
async def test_a_body_that_is_no_good_json_is_refused(front: Front, body: bytes) -> None:
    repository = front.repository()
    async with front.client(front.token()) as client:
        answer = await client.post(RUNS + "/batch", content=body, headers=JSON)
        assert is_problem(answer, 400)
        if body not in (b"", b"null"):  # which ask for a run with nothing said
            assert is_problem(await client.post(RUNS, content=body, headers=JSON), 400)
    assert len(front.runs(repository)) == 1


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"NaN", b'"\\ud800"', b"x"])
async def test_an_event_that_is_no_good_json_is_refused(front: Front, body: bytes) -> None:
    run = front.runs(front.repository())[0]
    async with front.client(front.token()) as client:
        answer = await client.post(f"/api/v1/runs/{run.id}/events/go", content=body)
        assert is_problem(answer, 400)
    assert front.store.runs.get(run.id).last_seq == run.last_seq


@pytest.mark.parametrize("type", ["x" * 101, "a%00b", "%ff", "%20", "a%0Ab", "a/b"])
async def test_an_event_type_that_is_no_good_is_refused(front: Front, type: str) -> None:
    run = front.runs(front.repository())[0]
    async with front.client(front.token()) as client:
        answer = await client.post(f"/api/v1/runs/{run.id}/events/{type}", json=1)
    assert answer.status_code in (400, 404) or type in ("a/b", "%20"), answer.text


async def test_an_event_over_its_size_is_refused_by_name(front: Front) -> None:
    run = front.runs(front.repository())[0]
    async with front.client(front.token()) as client:
        answer = await client.post(f"/api/v1/runs/{run.id}/events/go", json="x" * (1 << 20))
    assert is_problem(answer, 413) and "1,048,576" in answer.json()["detail"]


async def test_a_body_that_is_declared_too_large_is_not_read(front: Front) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1000

    async with front.client(front.token(), body_bytes=10_000) as client:
        headers = {**JSON, "Content-Length": "10001"}
        answer = await client.post(RUNS, content=endless(), headers=headers)
        assert is_problem(answer, 413) and "10,000" in answer.json()["detail"]
        assert sent == 0


@pytest.mark.parametrize("path", [RUNS, "/api/v1/runs/x/events/go", "/hooks/x"])
async def test_a_body_that_grows_too_large_is_cut(front: Front, path: str) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 1000

    front.repository()
    async with front.client(front.token(), body_bytes=10_000) as client:
        answer = await client.post(path, content=chunks(), headers=JSON)
    assert is_problem(answer, 413)
    assert sent < 20


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "９", "9" * 30])
async def test_a_bad_content_length_is_refused(front: Front, length: str) -> None:
    async with front.client(front.token()) as client:
        headers = httpx.Headers([(b"content-length", length.encode())])
        answer = await client.post(RUNS, content=b"", headers=headers)
    assert answer.status_code in (400, 413)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "slu_x", "Bearer slu_" + "x" * 10_000, "Bearer \xff"],
)
async def test_credentials_that_are_no_good_are_refused(front: Front, header: str) -> None:
    front.repository()
    async with front.client() as client:
        headers = httpx.Headers([(b"authorization", header.encode("latin-1"))])
        answer = await client.get("/api/v1/repos/acme/widget", headers=headers)
    assert is_problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("PATCH", "/api/v1/repos", 405),
        ("GET", "/api/v1/runs/%00", 404),
        ("GET", "/api/v1/runs/" + "x" * 5000, 404),
        ("GET", "/api/v1/runs/%ff", 404),
        ("GET", "/api/v1/repos/%ff/%00", 404),
        ("GET", "/api/v1/repos/" + "x" * 5000 + "/y", 404),
        ("GET", "/api/v1/repos/..%2f/x", 404),
    ],
)
async def test_paths_that_lead_nowhere_are_problems_too(
    front: Front, method: str, path: str, status: int
) -> None:
    async with front.client(front.token()) as client:
        assert is_problem(await client.request(method, path), status)


async def test_a_body_of_another_type_is_refused(front: Front) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.post(RUNS, data={"ref": "main"})
    assert is_problem(answer, 400)


async def test_a_bug_of_ours_says_nothing_of_itself(front: Front) -> None:
    front.repository()
    front.sandbox.broken = True
    front.push(
        front.queries.repository_list(front.identity.of_token(front.token()))[0],
        {".ci/pipeline.py": "# []\n"},
    )
    async with front.client(front.token()) as client:
        answer = await client.post(RUNS)
    assert is_problem(answer, 500)
    assert "dies" not in answer.text


async def test_every_answer_is_in_the_document(front: Front) -> None:
    async with front.client() as client:
        document = (await client.get("/api/v1/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            good = [code for code in operation["responses"] if code.startswith("2")]
            assert len(good) == 1, where
            answer = operation["responses"][good[0]]
            assert good == ["204"] or answer["content"], where
            problem = operation["responses"]["4XX"]["content"]["application/problem+json"]
            assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}, where
    assert len(document["paths"]) > 25
