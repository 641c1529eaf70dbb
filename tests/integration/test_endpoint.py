"""The repository's own HTTP endpoint: real code in the real sandbox, asked over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_platform.app import create_asgi
from ci_platform.envelope import params_of
from ci_platform.metrics import AsgiApp
from ci_platform.model import RunId
from tests.deployment import OWNER, Deployment, deployed

CODE = """
import asyncio
import time

from pipelines import Pipeline, Response


class CI(Pipeline):
    async def run(self, event, step):
        return 1


seen = []


async def fetch(request, env):
    match request.path:
        case "/echo":
            return {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "headers": dict(request.headers),
                "body": request.text(),
            }
        case "/json":
            return Response(201, {"X-Other": "no", "ETag": "abc"}, [request.json()])
        case "/cookie":
            return Response(
                headers={
                    "Set-Cookie": "session=stolen",
                    "Content-Security-Policy": "default-src *",
                    "Content-Type": "text/html",
                    "Access-Control-Allow-Origin": "*",
                    "X-Accel-Redirect": "/etc/passwd",
                    "Service-Worker-Allowed": "/",
                    "Clear-Site-Data": "*",
                },
                body="<script>alert(1)</script>",
            )
        case "/count":
            count = 1 + await env.storage.kv.get("count", 0)
            await env.storage.kv.put("count", count)
            return {"count": count, "lines": len((await env.files.read_text("data.txt")).split())}
        case "/start":
            run = await env.runs.create("CI", request.json())
            return Response(202, body={"id": run.id})
        case "/fresh":
            seen.append(1)
            return str(len(seen))
        case "/sleep":
            before = time.time()
            await asyncio.gather(asyncio.sleep(0.05), asyncio.sleep(0.05))
            return str(0.04 < time.time() - before < 5)
        case "/bytes":
            return Response(body=b"\\x00\\xff")
        case "/large":
            return "x" * 1_100_000
        case "/huge":
            return "x" * 80_000_000
        case "/loop":
            while True:
                pass
        case "/never":
            await asyncio.get_running_loop().create_future()
        case "/nothing":
            return None
        case "/status":
            return Response(status=999)
        case "/header":
            return Response(headers={"ETag": "a\\r\\nSet-Cookie: b=c"})
        case "/exit":
            raise SystemExit(3)
        case "/step":
            return await env.storage.sql.execute("ATTACH '/etc/passwd' AS x")
    raise ValueError("no such page: " + request.path)
"""

Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, guest_cache: Path) -> Iterator[Deployment]:
    data = tmp_path_factory.mktemp("endpoint") / "data"
    with deployed(data, cache=guest_cache, fetch_cpu_seconds=2, fetch_sandboxes_max=1) as made:
        made.push({".ci/pipeline.py": CODE, "data.txt": "a b c"})
        yield made


@pytest.fixture(scope="module")
def app(deployment: Deployment) -> AsgiApp:
    return create_asgi(deployment.platform)


@pytest.fixture(scope="module")
def token(deployment: Deployment) -> str:
    made = deployment.platform.commands.people.create_token(OWNER, "t", ["repo:read"])
    return made.secret


@pytest.fixture
def ask(app: AsgiApp, token: str) -> Ask:
    def asked(path: str, method: str = "GET", *, known: bool = True, **more: Any) -> httpx.Response:
        headers = dict(more.pop("headers", {}))
        if known:
            headers["Authorization"] = f"Bearer {token}"
        return send(app, method, f"/-/fetch/acme/app{path}", headers=headers, **more)

    return asked


def send(app: AsgiApp, method: str, url: str, **more: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://sluice") as client:
            return await client.request(method, url, **more)

    return asyncio.run(once())


def test_a_request_reaches_the_code_without_what_is_ours(ask: Ask) -> None:
    answer = ask(
        "/echo?a=1&b=2&a=3",
        "POST",
        content="héllo",
        headers={"Cookie": "sluice_session=secret", "X-Signature": "sha256=1"},
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["method"], found["path"], found["body"]) == ("POST", "/echo", "héllo")
    assert found["query"] == {"a": "3", "b": "2"}
    assert found["headers"]["x-signature"] == "sha256=1"
    assert not {"authorization", "cookie"} & set(found["headers"])


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_every_usual_method_is_passed_on(ask: Ask, method: str) -> None:
    assert ask("/fresh", method).status_code == 200


def test_answers_take_three_forms(ask: Ask) -> None:
    text = ask("/fresh")
    assert (text.text, text.headers["content-type"]) == ("1", "text/plain; charset=utf-8")
    made = ask("/json", "POST", json={"a": 1})
    assert (made.status_code, made.json(), made.headers["etag"]) == (201, [{"a": 1}], "abc")
    assert ask("/bytes").content == b"\x00\xff"


def test_an_answer_cannot_act_on_our_origin(ask: Ask) -> None:
    answer = ask("/cookie")
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers.get_list("content-security-policy") == ["sandbox"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    refused = {"set-cookie", "access-control-allow-origin", "x-accel-redirect"}
    assert not (refused | {"service-worker-allowed", "clear-site-data"}) & set(answer.headers)


@pytest.mark.parametrize("destination", ["script", "style", "serviceworker", "iframe", "object"])
def test_a_browser_gets_no_script_style_or_frame_from_it(ask: Ask, destination: str) -> None:
    answer = ask("/cookie", headers={"Sec-Fetch-Dest": destination})
    assert answer.status_code == 400
    assert answer.headers["content-security-policy"] == "sandbox"


def test_each_request_has_a_fresh_module_and_real_time(ask: Ask) -> None:
    assert [ask("/fresh").text, ask("/fresh").text] == ["1", "1"]
    assert ask("/sleep").text == "True"


def test_the_code_has_its_own_repositorys_storage_and_files(ask: Ask) -> None:
    assert ask("/count").json() == {"count": 1, "lines": 3}
    assert ask("/count").json() == {"count": 2, "lines": 3}
    assert "does not allow ATTACH" in ask("/step").json()["detail"]


def test_the_code_may_start_a_run_of_its_repository(deployment: Deployment, ask: Ask) -> None:
    answer = ask("/start", "POST", json={"a": 1})
    assert answer.status_code == 202, answer.text
    deployment.work()
    run = deployment.run(RunId(answer.json()["id"]))
    assert (run.state, run.pipeline, params_of(run)) == ("passed", "CI", {"a": 1})


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/unknown", 502, "ValueError: no such page: /unknown"),
        ("/loop", 504, "took too long (limit: "),
        ("/never", 502, "waits for something"),
        ("/nothing", 502, "must return text, a dict or a Response"),
        ("/status", 502, "200 to 599"),
        ("/header", 502, "SandboxProtocol"),
        ("/exit", 502, "SystemExit"),
        ("/large", 502, "1,048,576"),
        ("/huge", 502, ""),
    ],
)
def test_code_that_fails_gives_a_problem_that_says_how(
    ask: Ask, path: str, status: int, said: str
) -> None:
    answer = ask(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]
    assert ask("/fresh").text == "1"


def test_a_body_over_the_limit_is_refused(ask: Ask) -> None:
    answer = ask("/echo", "POST", content=b"x" * ((1 << 20) + 1))
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:sluice:problem:too-large")


def test_without_a_token_nothing_is_told_apart(ask: Ask, app: AsgiApp) -> None:
    closed = ask("/fresh", known=False)
    assert closed.status_code == 401
    missing = send(app, "GET", "/-/fetch/acme/missing/")
    assert (missing.status_code, missing.json()) == (401, closed.json())
    bad = ask("/fresh", known=False, headers={"Authorization": "Bearer slu_wrong"})
    assert bad.status_code == 401


def test_a_token_of_another_repository_does_not_open_it(
    deployment: Deployment, ask: Ask, app: AsgiApp
) -> None:
    commands = deployment.platform.commands
    commands.repositories.create(OWNER, "acme", "other")
    other = commands.people.create_token(OWNER, "o", ["repo:read"], repository="acme/other").secret
    answer = ask("/fresh", known=False, headers={"Authorization": f"Bearer {other}"})
    assert answer.status_code == 404
    nothing = send(
        app, "GET", "/-/fetch/acme/other/x", headers={"Authorization": f"Bearer {other}"}
    )
    assert nothing.status_code == 404
    assert "has no `async def fetch" in nothing.json()["detail"]


def test_warm_requests_take_milliseconds_and_many_at_once_all_get_an_answer(
    app: AsgiApp, token: str
) -> None:
    async def many() -> tuple[list[int], float]:
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://sluice", headers=headers
        ) as client:
            url = "/-/fetch/acme/app/fresh"
            await client.get(url)
            took = []
            for _ in range(10):
                begun = time.perf_counter()
                await client.get(url)
                took.append(time.perf_counter() - begun)
            answers = await asyncio.gather(*(client.get(url) for _ in range(20)))
            return [answer.status_code for answer in answers], min(took)

    statuses, best = asyncio.run(many())
    assert statuses == [200] * 20
    assert best < 0.1  # milliseconds; a new interpreter and process would be several times that


def test_a_public_endpoint_answers_anybody_but_tells_them_no_traceback(
    deployment: Deployment, ask: Ask
) -> None:
    deployment.push({".ci/pipeline.py": CODE + "\nfetch_public = True\n"})
    try:
        assert ask("/fresh", known=False).text == "1"
        failed = ask("/unknown", known=False)
        assert failed.json()["detail"] == "the endpoint's code failed"
        assert "line" in ask("/unknown").json()["detail"]
    finally:
        deployment.push({".ci/pipeline.py": CODE})
    assert ask("/fresh", known=False).status_code == 401


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (CODE + "\nfetch_public = 'yes'\n", "fetch_public must be True or False"),
        (CODE + "\ndef fetch(request, env): ...\n", "async def fetch(request, env)"),
    ],
)
def test_a_file_whose_fetch_is_none_does_not_load(
    deployment: Deployment, ask: Ask, code: str, said: str
) -> None:
    deployment.push({".ci/pipeline.py": code})
    try:
        answer = ask("/fresh")
        assert (answer.status_code, said in answer.json()["detail"]) == (502, True)
    finally:
        deployment.push({".ci/pipeline.py": CODE})
