"""Mirrors end to end: a remote is followed by the clock, by a ping, and by nobody's push."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ci_platform.errors import Conflict, InvalidRequest, NotFound
from ci_platform.identity import Scope
from ci_platform.model import SYSTEM, Role
from ci_platform.ports.mirroring import Mirror
from tests.integration.api.front import PUSHED, Front

pytestmark = pytest.mark.anyio
HERE = "/api/v1/repos/acme/copy"
SECRET = "It's a Secret to Everybody"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    (tmp_path / "front").mkdir()
    made = Front(tmp_path / "front", private_remotes=True)
    yield made
    made.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository of git's own, with a pipeline that a push would start."""
    work = tmp_path / "source"
    (work / ".ci").mkdir(parents=True)
    (work / ".ci/pipeline.py").write_text(PUSHED)
    git(work, "init", "-q", "-b", "main")
    commit(work)
    return work


def git(cwd: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True)
    return done.stdout.decode().strip()


def commit(work: Path) -> str:
    git(work, "add", "-A")
    git(work, "commit", "-q", "--allow-empty", "-m", "change")
    return git(work, "rev-parse", "HEAD")


def follow(front: Front, source: Path, **given: Any) -> Mirror:
    return front.commands.mirrors.put(SYSTEM, "acme", "copy", url=f"file://{source}/.git", **given)


def state(front: Front) -> Mirror:
    return front.commands.mirrors.get(SYSTEM, "acme", "copy")


def head(front: Front) -> str | None:
    copy = front.parts.repositories.get("acme", "copy")
    return front.parts.source.resolve(copy.id, "refs/heads/main")


def test_a_remote_is_followed_by_the_clock_and_starts_runs(front: Front, source: Path) -> None:
    follow(front, source, every_seconds=600)
    assert front.commands.mirrors.sync_due() == 1
    copy = front.parts.repositories.get("acme", "copy")
    assert head(front) == git(source, "rev-parse", "HEAD")
    assert front.runs(copy) == [], "its past is no news"
    assert state(front).outcome == "1 branch or tag moved"
    assert front.commands.mirrors.sync_due() == 0

    newer = commit(source)
    git(source, "tag", "v1")
    front.clock.advance(599)
    assert front.commands.mirrors.sync_due() == 0
    front.clock.advance(1)
    assert front.commands.mirrors.sync_due() == 1
    assert head(front) == newer
    (run,) = front.runs(copy)
    assert (run.commit, run.trigger) == (newer, "push")
    front.clock.advance(600)
    assert front.commands.mirrors.sync_due() == 1
    assert state(front).outcome == "nothing new" and len(front.runs(copy)) == 1

    git(source, "tag", "-d", "v1")
    front.clock.advance(600)
    front.commands.mirrors.sync_due()
    assert [ref.name for ref in front.git.refs.all(copy.id)] == ["refs/heads/main"]


def test_a_signed_ping_makes_it_look_at_once(front: Front, source: Path) -> None:
    follow(front, source, every_seconds=None)
    front.commands.mirrors.sync_due()
    assert state(front).next_ms is None
    hook = front.commands.hooks.create(SYSTEM, "acme", "copy", secret=SECRET).hook
    newer = commit(source)

    def ping(event: str, delivery: str, key: str = SECRET) -> str:
        body = json.dumps({"ref": "refs/heads/main", "before": "0" * 40, "after": newer}).encode()
        headers = {
            "content-type": "application/json",
            "x-github-event": event,
            "x-github-delivery": delivery,
            "x-hub-signature-256": "sha256="
            + hmac.new(key.encode(), body, hashlib.sha256).hexdigest(),
        }
        return front.commands.hooks.receive(hook.id, headers, body).status

    assert ping("ping", "0") == "ping" and ping("issues", "1") == "ignored"
    assert front.commands.mirrors.sync_due() == 0
    with pytest.raises(Exception, match="X-Hub-Signature-256"):
        ping("push", "2", key="another secret")
    assert ping("push", "3") == "accepted"
    assert front.commands.mirrors.sync_due() == 1
    assert head(front) == newer
    assert front.errands.run_once() == 0, "the delivery itself starts nothing more"
    assert len(front.runs(front.parts.repositories.get("acme", "copy"))) == 1


FORGES = {
    "gitlab": ("x-gitlab-event", "Push Hook", "x-gitlab-token", "{secret}"),
    "gitea": ("x-gitea-event", "create", "x-gitea-signature", "{digest}"),
    "bitbucket": ("x-event-key", "repo:push", "x-hub-signature", "sha256={digest}"),
}


@pytest.mark.parametrize("provider", FORGES)
async def test_pings_of_other_forges_are_verified_in_their_way(
    front: Front, source: Path, provider: str
) -> None:
    follow(front, source, every_seconds=None)
    front.commands.mirrors.sync_due()
    newer = commit(source)
    event_header, event, proof_header, proof = FORGES[provider]
    body = b"{}"  # what a mirror looks at is its remote, not the payload
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    async with front.client(front.token()) as client:
        wanted = {"provider": provider, "secret": SECRET}
        made = (await client.post(f"{HERE}/hooks", json=wanted)).json()
        assert made["provider"] == provider
        headers = {"content-type": "application/json", event_header: event}
        door = f"/hooks/{made['id']}"
        assert (await client.post(door, content=body, headers=headers)).status_code == 401
        assert front.commands.mirrors.sync_due() == 0
        headers[proof_header] = proof.format(secret=SECRET, digest=digest)
        assert (await client.post(door, content=body, headers=headers)).status_code == 202
    assert front.commands.mirrors.sync_due() == 1
    assert head(front) == newer


async def test_nobody_else_can_push_to_a_mirror(front: Front, source: Path) -> None:
    follow(front, source)
    front.commands.mirrors.sync_due()
    body = {"branch": "main", "message": "m", "changes": [{"path": "a", "content": "1"}]}
    async with front.client(front.token()) as client:
        refused = await client.post(f"{HERE}/commits", json=body)
        assert refused.status_code == 409 and "mirror of file://" in refused.json()["detail"]
        assert (await client.delete(f"{HERE}/mirror")).status_code == 204
        assert (await client.post(f"{HERE}/commits", json=body)).status_code == 201
        assert (await client.get(f"{HERE}/mirror")).status_code == 404
        assert (await client.delete(f"{HERE}/mirror")).status_code == 404
    assert front.commands.mirrors.sync_due() == 0


def test_a_remote_that_fails_is_asked_less_and_less_and_says_why(
    front: Front, source: Path, tmp_path: Path
) -> None:
    follow(front, source, every_seconds=60)
    front.commands.mirrors.sync_due()
    good = state(front).synced_ms
    gone = tmp_path / "gone"
    source.rename(gone)
    waits = []
    for _ in range(4):
        front.clock.at_ms = state(front).next_ms or 0
        assert front.commands.mirrors.sync_due() == 1
        waits.append((state(front).next_ms or 0) - front.clock.at_ms)
    assert waits == [60_000, 120_000, 240_000, 480_000]
    failed = state(front)
    assert failed.tries == 4 and failed.synced_ms == good
    assert "fetching from file://" in (failed.outcome or "")
    gone.rename(source)
    newer = commit(source)
    front.clock.at_ms = failed.next_ms or 0
    front.commands.mirrors.sync_due()
    assert (state(front).tries, head(front)) == (0, newer)


async def test_credentials_are_kept_sealed_and_shown_nowhere(front: Front, source: Path) -> None:
    body = {"url": "https://example.org/x.git", "username": "ci", "password": "hunter2"}
    async with front.client(front.token()) as client:
        made = await client.post(f"{HERE}/mirror", json=body)
        assert made.status_code == 201, made.text
        assert made.json()["has_password"] and made.json()["username"] == "ci"
        shown = await client.get(f"{HERE}/mirror")
        audit = await client.get("/api/v1/audit")
        assert "hunter2" not in made.text + shown.text + audit.text
        inside = await client.post(
            f"{HERE}/mirror", json={"url": "https://ci:hunter2@example.org/x.git"}
        )
        assert inside.status_code in (400, 422) and inside.json()["field"] == "url"
        slower = {"url": "https://example.org/x.git", "every_seconds": 7200}
        assert (await client.post(f"{HERE}/mirror", json=slower)).json()["has_password"]
        moved = {"url": "https://example.com/x.git"}
        elsewhere = await client.post(f"{HERE}/mirror", json=moved)
        assert not elsewhere.json()["has_password"], "they are for that address alone"
    with front.store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM mirrors").all()
    assert "hunter2" not in repr(rows)


async def test_a_mirror_is_shown_to_readers_hurried_by_writers_and_set_by_maintainers(
    front: Front, source: Path
) -> None:
    follow(front, source)
    copy = front.parts.repositories.get("acme", "copy")
    user = front.user("rita")
    asked = (("get", "/mirror", 200), ("post", "/mirror/sync", 202), ("delete", "/mirror", 204))
    for count, role in enumerate((Role.READER, Role.WRITER, Role.MAINTAINER), 1):
        front.role(user, copy, role)
        async with front.client(front.token(user, Scope.ADMIN)) as client:
            found = [
                (await client.request(method, HERE + path)).status_code for method, path, _ in asked
            ]
        wanted = [status for _, _, status in asked[:count]] + [403] * (3 - count)
        assert found == wanted, role
    async with front.client(front.token(front.user("nobody"), Scope.ADMIN)) as client:
        assert (await client.get(f"{HERE}/mirror")).status_code == 404


def test_what_would_be_lost_has_to_be_said(front: Front, source: Path) -> None:
    copy = front.repository("copy")
    with pytest.raises(Conflict, match="overwrite"):
        follow(front, source)
    with pytest.raises(NotFound):
        state(front)
    follow(front, source, overwrite=True)
    front.commands.mirrors.sync_due()
    assert front.parts.source.resolve(copy.id, "main") == git(source, "rev-parse", "HEAD")


def test_two_workers_do_not_both_look(front: Front, source: Path) -> None:
    for number in range(8):
        front.commands.mirrors.put(
            SYSTEM, "acme", f"copy-{number}", url=f"file://{source}/.git", every_seconds=60
        )
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: front.commands.mirrors.sync_due(), range(4)))
    while more := front.commands.mirrors.sync_due():
        done.append(more)
    assert sum(done) == 8


@pytest.mark.parametrize("seconds", [0, 59, 30 * 24 * 3600 + 1])
def test_an_interval_out_of_bounds_is_refused(front: Front, source: Path, seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="every_seconds"):
        follow(front, source, every_seconds=seconds)


def test_a_deleted_repository_follows_nothing(front: Front, source: Path) -> None:
    follow(front, source)
    front.commands.repositories.delete(SYSTEM, "acme", "copy")
    assert front.commands.mirrors.sync_due() == 0


def test_a_remote_on_this_machine_is_refused_unless_allowed(tmp_path: Path) -> None:
    front = Front(tmp_path, private_remotes=False)
    front.commands.mirrors.put(SYSTEM, "acme", "copy", url="http://127.0.0.1:1/x.git")
    front.commands.mirrors.sync_due()
    assert "not a public address" in (state(front).outcome or "")
    front.close()
