"""Who gets through git's door: real tokens, a real git client, and nothing told to strangers."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from ci_platform.git_door import git_door
from ci_platform.identity import Scope
from ci_platform.model import SYSTEM, Repository, Role
from tests.integration.api.front import Front

DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Door:
    front: Front
    root: Path
    port: int
    repository: Repository

    def url(self, name: str = "acme/widget", token: str | None = None) -> str:
        who = "" if token is None else f"any:{token}@"
        return f"http://{who}127.0.0.1:{self.port}/{name}.git"

    def git(self, *arguments: str) -> tuple[bool, str]:
        """Whether it worked, and what it said."""
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        done = subprocess.run(
            ["git", *who, *arguments],
            cwd=self.root,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_TERMINAL_PROMPT": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode == 0, done.stdout + done.stderr

    def reads(self, url: str, *options: str) -> bool:
        return self.git(*options, "ls-remote", url)[0]

    def pushes(self, url: str, *options: str) -> bool:
        return self.git(*options, "push", url, "HEAD:refs/heads/pushed")[0]

    def asked(self, name: str, header: str | None) -> tuple[int, str, str | None]:
        """Status, body and challenge of a first request, with the name left out."""
        headers = {} if header is None else {"Authorization": header}
        url = f"http://127.0.0.1:{self.port}/{name}.git/info/refs?service=git-upload-pack"
        answer = httpx.get(url, headers=headers)
        shown = answer.text.replace(name, "NAME")
        return answer.status_code, shown, answer.headers.get("www-authenticate")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    (tmp_path / "front").mkdir()
    front = Front(tmp_path / "front")
    repository = front.repository()
    git = git_door(front.git, front.identity)
    server = uvicorn.Server(
        uvicorn.Config(git, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        thread.join(0.005)
    made = Door(front, tmp_path, server.servers[0].sockets[0].getsockname()[1], repository)
    made.git("init", "-q", "-b", "main", ".")
    made.git("commit", "-q", "--allow-empty", "-m", "one")
    yield made
    server.should_exit = True
    thread.join()
    git.close()
    front.close()


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"any:{token}".encode()).decode()


def test_a_token_is_taken_as_password_as_name_and_as_a_bearer_s(door: Door) -> None:
    token = door.front.token()
    assert door.reads(door.url(token=token)) and door.pushes(door.url(token=token))
    assert door.reads(f"http://{token}:@127.0.0.1:{door.port}/acme/widget.git")
    bearer = ("-c", f"http.extraHeader=Authorization: Bearer {token}")
    assert door.reads(door.url(), *bearer) and door.pushes(door.url(), *bearer)
    assert not door.reads(door.url()), "nobody reads without one"
    for wrong in ("Bearer wrong", "Bearer", "Bearer x y", "Digest x", basic("wrong"), "Basic ::"):
        status, _, challenge = door.asked("acme/widget", wrong)
        assert (status, challenge) == (401, 'Basic realm="sluice"'), wrong


def test_a_token_does_what_its_scope_says(door: Door) -> None:
    reads = door.front.token(None, Scope.READ)
    writes = door.front.token(None, Scope.WRITE)
    assert door.reads(door.url(token=reads)) and not door.pushes(door.url(token=reads))
    assert door.pushes(door.url(token=writes))
    _, said = door.git("push", door.url(token=reads), "HEAD:refs/heads/other")
    assert "403" in said or "not" in said


def test_a_token_of_one_repository_opens_no_other(door: Door) -> None:
    door.front.repository("other", pipeline=None)
    token = door.front.token(None, Scope.WRITE, repository=door.repository)
    assert door.pushes(door.url(token=token))
    assert not door.reads(door.url("acme/other", token=token))
    for header in (basic(token), f"Bearer {token}"):
        there = door.asked("acme/other", header)
        assert there == door.asked("acme/nothing", header), "it is not told that it exists"
        assert there[0] == 404


def test_a_token_that_expired_or_was_revoked_opens_nothing(door: Door) -> None:
    people = door.front.commands.people
    made = people.create_token(SYSTEM, "short", ["repo:write"], days=1)
    url = door.url(token=made.secret)
    assert door.reads(url)
    door.front.clock.advance(DAY_S - 1)
    assert door.reads(url)
    door.front.clock.advance(1)
    assert not door.reads(url)
    other = people.create_token(SYSTEM, "long", ["repo:write"])
    assert door.reads(door.url(token=other.secret))
    people.revoke_token(SYSTEM, other.token.id)
    assert not door.reads(door.url(token=other.secret))


def test_no_and_not_there_read_alike(door: Door) -> None:
    """For strangers, for users without a role, at every request of the protocol."""
    stranger = door.front.token(door.front.user("stranger"), Scope.WRITE)
    for header in (None, basic("wrong"), basic(stranger), f"Bearer {stranger}"):
        found = {door.asked(name, header) for name in ("acme/widget", "acme/nothing", "no/thing")}
        assert len(found) == 1, (header, found)
    assert door.asked("acme/widget", None)[0] == door.asked("acme/widget", basic("wrong"))[0] == 401
    assert door.asked("acme/widget", basic(stranger))[0] == 404
    url = f"http://127.0.0.1:{door.port}"
    for service in ("git-upload-pack", "git-receive-pack"):
        answers = {
            httpx.post(
                f"{url}/{name}.git/{service}",
                content=b"0000",
                headers={
                    "Authorization": basic(stranger),
                    "Content-Type": f"application/x-{service}-request",
                },
            ).text.replace(name, "NAME")
            for name in ("acme/widget", "acme/nothing")
        }
        assert len(answers) == 1, service


def test_a_role_opens_as_much_as_it_says(door: Door) -> None:
    user = door.front.user("rita")
    token = door.front.token(user, Scope.ADMIN)
    url = door.url(token=token)
    assert not door.reads(url)
    door.front.role(user, door.repository, Role.READER)
    assert door.reads(url) and not door.pushes(url)
    door.front.role(user, door.repository, Role.WRITER)
    assert door.pushes(url)


@pytest.mark.parametrize(
    "name", ["../etc/passwd", "acme/..", "acme/%2e%2e", ".git/config", "acme/a%00b", "acme/a%0ab"]
)
def test_names_that_are_none_are_not_there(door: Door, name: str) -> None:
    status, _, _ = door.asked(name, basic(door.front.token()))
    assert status == 404


def test_a_repository_of_another_object_format_is_refused_when_it_is_made(door: Door) -> None:
    client = door.front.client(door.front.token())

    async def ask() -> httpx.Response:
        async with client:
            body = {"owner": "acme", "name": "new", "object_format": "sha256"}
            return await client.post("/api/v1/repos", json=body)

    answer = asyncio.run(ask())
    assert answer.status_code in (400, 422) and answer.json()["field"] == "object_format"
    assert "sha1" in answer.json()["detail"]


def test_a_push_of_another_object_format_is_never_acknowledged(door: Door) -> None:
    token = door.front.token()
    door.git("init", "-q", "--object-format=sha256", "-b", "main", "other")
    door.git("-C", "other", "commit", "-q", "--allow-empty", "-m", "one")
    worked, _ = door.git("-C", "other", "push", door.url(token=token), "HEAD:refs/heads/lost")
    assert not worked
    assert "lost" not in door.front.parts.repositories.branches(door.repository.id)
