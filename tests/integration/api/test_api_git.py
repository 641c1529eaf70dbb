"""A repository's history over HTTP: import, log, changes, archives, moves, gc, fsck."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci_platform.identity import Scope
from ci_platform.model import Role
from ci_platform.source import GitRepositories
from tests.integration.api.front import PUSHED, Front

pytestmark = pytest.mark.anyio
HERE = "/api/v1/repos/acme/widget"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """As everywhere, but remotes of this machine are allowed."""
    made = Front(tmp_path, private_remotes=True)
    repositories = made.parts.repositories
    assert isinstance(repositories, GitRepositories)
    repositories._allow_private_remotes = True
    yield made
    made.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository of git's own, with a pipeline that a push would start."""
    work = tmp_path / "source"
    (work / ".ci").mkdir(parents=True)
    (work / ".ci/pipeline.py").write_text(PUSHED)
    git(work, "init", "-q", "-b", "trunk")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "first")
    git(work, "tag", "v1")
    return work


def git(cwd: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True)
    return done.stdout.decode().strip()


async def test_an_import_makes_the_repository_and_starts_nothing(
    front: Front, source: Path
) -> None:
    async with front.client(front.token()) as client:
        answer = await client.post(f"{HERE}/import", json={"url": f"file://{source}/.git"})
        assert answer.status_code == 201, answer.text
        assert answer.json()["refs"] == 2 and answer.json()["refused"] == {}
        assert answer.json()["repository"]["default_branch"] == "trunk"
        assert (await client.get(f"{HERE}/runs")).json()["runs"] == []
        log = (await client.get(f"{HERE}/commits")).json()["commits"]
        assert [one["sha"] for one in log] == [git(source, "rev-parse", "HEAD")]
        assert log[0]["message"] == "first\n" and log[0]["author"] == "A <a@b>"


async def test_a_mirror_is_asked_for_and_starts_what_a_push_would(
    front: Front, source: Path
) -> None:
    async with front.client(front.token()) as client:
        body = {"url": f"file://{source}/.git"}
        await client.post(f"{HERE}/import", json=body)
        git(source, "tag", "-d", "v1")
        git(source, "commit", "-q", "--allow-empty", "-m", "second")
        again = await client.post(f"{HERE}/import", json=body)
        assert again.status_code == 409 and "mirror" in again.json()["detail"]
        mirrored = await client.post(f"{HERE}/import", json={**body, "mirror": True})
        assert mirrored.status_code == 201 and mirrored.json()["refs"] == 2, mirrored.text
        assert len((await client.get(f"{HERE}/runs")).json()["runs"]) == 1
        assert (await client.get(f"{HERE}/commits?ref=v1")).status_code == 404


async def test_a_failed_import_leaves_no_repository(front: Front, tmp_path: Path) -> None:
    async with front.client(front.token()) as client:
        for url, field in (
            (f"file://{tmp_path}/nothing", "url"),
            ("ssh://x/y", "url"),
            ("http://me:secret@127.0.0.1:1/x.git", "url"),
            ("", "url"),
        ):
            answer = await client.post(f"{HERE}/import", json={"url": url})
            assert answer.status_code == 400 and answer.json()["field"] == field, answer.text
            assert "secret" not in answer.text
            assert (await client.get(HERE)).status_code == 404
        no_password = {"url": "http://x/y", "username": "me"}
        answer = await client.post(f"{HERE}/import", json=no_password)
        assert answer.status_code == 400 and answer.json()["field"] == "password"


async def test_an_import_needs_the_right_to_create(front: Front, source: Path) -> None:
    body = {"url": f"file://{source}/.git"}
    stranger = front.user("bob")
    async with front.client(front.token(stranger)) as client:
        assert (await client.post(f"{HERE}/import", json=body)).status_code == 403
    repository = front.repository(pipeline=None)
    front.role(stranger, repository, Role.WRITER)
    async with front.client(front.token(stranger, Scope.READ)) as client:
        assert (await client.post(f"{HERE}/import", json=body)).status_code == 403
    async with front.client(front.token(stranger, Scope.WRITE)) as client:
        assert (await client.post(f"{HERE}/import", json=body)).status_code == 201


async def test_changes_between_two_refs_are_listed(front: Front) -> None:
    repository = front.repository()
    front.push(repository, {"a.txt": "1", "b/c.txt": "2"}, branch="side")
    async with front.client(front.token()) as client:
        found = (await client.get(f"{HERE}/changes?before=main&after=side")).json()
        assert found["paths"] == [".ci/pipeline.py", "a.txt", "b/c.txt"]
        everything = (await client.get(f"{HERE}/changes")).json()
        assert everything["before"] is None and everything["paths"] == [".ci/pipeline.py"]
        assert (await client.get(f"{HERE}/changes?before=nope")).status_code == 404


async def test_archives_of_any_ref_are_sent(front: Front) -> None:
    repository = front.repository()
    front.push(repository, {"a.txt": "1"}, branch="feature/x")
    async with front.client(front.token()) as client:
        tar = await client.get(f"{HERE}/archive/main.tar.gz")
        assert tar.headers["content-type"] == "application/gzip"
        top = f"widget-{tar.headers['x-commit'][:12]}"
        assert f"{top}.tar.gz" in tar.headers["content-disposition"]
        with tarfile.open(fileobj=io.BytesIO(tar.content)) as opened:
            assert opened.getnames() == [f"{top}/.ci/pipeline.py"]
        zipped = await client.get(f"{HERE}/archive/refs/heads/feature/x.zip")
        with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
            assert [name.partition("/")[2] for name in archive.namelist()] == ["a.txt"]
        assert (await client.get(f"{HERE}/archive/main.rar")).status_code == 400
        assert (await client.get(f"{HERE}/archive/nope.zip")).status_code == 404


async def test_files_are_moved_in_a_commit(front: Front) -> None:
    repository = front.repository()
    front.push(repository, {"a.txt": "1"})
    body = {
        "branch": "main",
        "message": "move",
        "changes": [{"path": "b/c.txt", "from": "a.txt"}, {"path": "new", "content": "2"}],
    }
    async with front.client(front.token()) as client:
        assert (await client.post(f"{HERE}/commits", json=body)).status_code == 201
        assert (await client.get(f"{HERE}/files/b/c.txt")).json()["content"] == "1"
        assert (await client.get(f"{HERE}/files/a.txt")).status_code == 404
        body["changes"] = [{"path": "x"}]
        answer = await client.post(f"{HERE}/commits", json=body)
        assert answer.status_code == 400 and answer.json()["field"] == "changes.0.content"


async def test_a_repository_is_proved_whole_and_cleaned(front: Front) -> None:
    repository = front.repository()
    async with front.client(front.token()) as client:
        proof = (await client.post(f"{HERE}/fsck")).json()
        assert proof["whole"] and proof["objects"] == 4 and proof["problems"] == []
        assert (await client.post(f"{HERE}/gc")).json() == {"dropped": 0}
    reader = front.user("eve")
    front.role(reader, repository, Role.WRITER)
    async with front.client(front.token(reader)) as client:
        for what in ("gc", "fsck"):
            assert (await client.post(f"{HERE}/{what}")).status_code == 403
