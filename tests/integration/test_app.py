"""One application at one address: which part answers, who gets in, and what it says of itself."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ci_platform.app import Platform, create_asgi, open_platform
from ci_platform.config import Config
from ci_platform.identity import console
from ci_platform.metrics import AsgiApp

OWNER = console("owner")
ADVERTISEMENT = "/me/app.git/info/refs?service=git-receive-pack"


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    opened = open_platform(Config(data=tmp_path / "data", metrics_token="letmein"))
    opened.commands.repositories.create(OWNER, "me", "app")
    yield opened
    opened.close()


def ask(app: AsgiApp, path: str, **headers: str) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://sluice") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(once())


def secret(platform: Platform, scope: str, repository: str | None = None) -> str:
    made = platform.commands.people.create_token(OWNER, "t", [scope], repository=repository)
    return made.secret


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"any:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/healthz", 200, "text/plain"),
        ("/readyz", 200, "text/plain"),
        ("/api/v1/openapi.json", 200, "application/json"),
        ("/api/v1/nothing", 404, "application/problem+json"),
        ("/api/v1", 404, "application/problem+json"),
        ("/hooks/hook_nothing", 405, "application/problem+json"),
        (ADVERTISEMENT, 401, "text/plain"),
        ("/sign-in", 200, "text/html"),
    ],
)
def test_each_path_is_answered_by_its_part(
    platform: Platform, path: str, status: int, kind: str
) -> None:
    answer = ask(create_asgi(platform), path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith(kind)


def test_metrics_need_their_token_and_count_requests(platform: Platform) -> None:
    app = create_asgi(platform)
    ask(app, "/sign-in")
    assert ask(app, "/metrics").status_code == 401
    assert ask(app, "/metrics", Authorization="Bearer wrong").status_code == 401
    answer = ask(app, "/metrics", Authorization="Bearer letmein")
    assert answer.status_code == 200
    assert 'sluice_runs{state="waiting"} 0.0' in answer.text
    assert 'duration_seconds_count{area="pages",status="2xx"} 1.0' in answer.text


def test_only_this_process_can_be_the_console(platform: Platform) -> None:
    served, local = create_asgi(platform), create_asgi(platform, acting_as=OWNER)
    assert ask(local, "/api/v1/repos").status_code == 200
    for name in ("X-Forwarded-User", "Remote-User", "Acting-As"):
        assert ask(served, "/api/v1/repos", **{name: "console"}).status_code == 401


def test_git_takes_a_token_as_password_and_its_scopes_count(platform: Platform) -> None:
    app = create_asgi(platform)
    platform.commands.repositories.create(OWNER, "me", "other")
    fetch = ADVERTISEMENT.replace("receive", "upload")
    writer = basic(secret(platform, "repo:write", "me/app"))
    reader = basic(secret(platform, "repo:read"))
    assert ask(app, ADVERTISEMENT, Authorization=writer).status_code == 200
    assert ask(app, fetch, Authorization=reader).status_code == 200
    assert ask(app, ADVERTISEMENT, Authorization=reader).status_code == 403
    assert ask(app, ADVERTISEMENT, Authorization=basic("slu_wrong")).status_code == 401
    elsewhere = ask(app, ADVERTISEMENT.replace("/app", "/other"), Authorization=writer)
    missing = ask(app, ADVERTISEMENT.replace("/app", "/missing"), Authorization=writer)
    assert (elsewhere.status_code, missing.status_code) == (404, 404)
    assert "sluice repo create me/missing" in missing.text
    assert elsewhere.text == missing.text.replace("missing", "other")


def test_a_database_that_is_gone_is_not_ready_but_alive(platform: Platform) -> None:
    app = create_asgi(platform)
    platform.store.close()
    (platform.config.data / "sluice.db").unlink()
    (platform.config.data / "sluice.db").mkdir()
    assert ask(app, "/healthz").status_code == 200
    answer = ask(app, "/readyz")
    assert answer.status_code == 503
    assert "unable to open database file" in answer.text


def test_a_data_directory_may_have_any_name(tmp_path: Path) -> None:
    data = tmp_path / "50% of #1?really=yes&%20"
    for _ in range(2):
        opened = open_platform(Config(data=data))
        if not opened.repositories.list():
            opened.commands.repositories.create(OWNER, "me", "app")
        assert [one.name for one in opened.repositories.list()] == ["app"]
        opened.close()
    assert (data / "sluice.db").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [data.name]
