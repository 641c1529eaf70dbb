"""A webhook end to end: the commit is really fetched, over HTTP, from another git store."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import uvicorn

import git_store
from ci_platform.commands import StartRun
from ci_platform.commands.hooks import Receipt
from ci_platform.errors import InvalidRequest
from ci_platform.model import SYSTEM, Repository
from ci_platform.ports import RunFilter
from git_store import Access, GitHttp
from tests.integration.api.front import PUSHED, Front

SECRET = "It's a Secret to Everybody"


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[tuple[Front, str]]:
    """Another deployment, whose repositories anyone may read."""
    (tmp_path / "forge").mkdir()
    made = Front(tmp_path / "forge")

    def anyone(
        authorization: str | None,
        owner: str,
        name: str,
        *,
        repository: git_store.Repository | None,
        write: bool,
    ) -> Access:
        return Access.allow(None, "anyone")

    git = GitHttp(made.git, authenticate=anyone)
    config = uvicorn.Config(git, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield made, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    git.close()
    made.close()


def deliver(front: Front, hook_id: str, commit: str, delivery: str) -> Receipt:
    moved = {"ref": "refs/heads/main", "before": "0" * 40, "after": commit}
    body = json.dumps(moved).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "content-type": "application/json",
        "x-github-event": "push",
        "x-github-delivery": delivery,
        "x-hub-signature-256": f"sha256={signature}",
    }
    return front.commands.hooks.receive(hook_id, headers, body)


@contextmanager
def mirrored(
    directory: Path, url: str, *, private: bool
) -> Iterator[tuple[Front, Repository, str]]:
    """A deployment with a repository whose commits live at `url`, and its hook."""
    directory.mkdir()
    with closing(Front(directory, private_remotes=private)) as front:
        mirror = front.commands.repositories.create(SYSTEM, "acme", "mirror")
        remote_url = f"{url}/acme/widget.git"
        made = front.commands.hooks.create(
            SYSTEM, "acme", "mirror", remote_url=remote_url, secret=SECRET
        )
        yield front, mirror, made.hook.id


def test_a_delivered_commit_is_fetched_and_run(tmp_path: Path, forge: tuple[Front, str]) -> None:
    elsewhere, url = forge
    theirs = elsewhere.repository()
    commit = elsewhere.runs(theirs)[0].commit
    with mirrored(tmp_path / "here", url, private=True) as (front, mirror, hook_id):
        assert deliver(front, hook_id, commit, "1").status == "accepted"
        assert front.commands.hooks.finish_pending() == 1
        (run,) = front.runs(mirror)
        assert (run.commit, run.pipeline) == (commit, "CI")
        # Its default branch is known, though it lives elsewhere.
        again = front.commands.runs.start(SYSTEM, "acme", "mirror", StartRun())
        assert again.commit == commit

        newer = elsewhere.push(theirs, {".ci/pipeline.py": PUSHED + "\n", "a": "b"})
        deliver(front, hook_id, newer, "2")
        assert front.commands.hooks.finish_pending() == 1
        assert front.parts.source.resolve(mirror.id, "refs/heads/main") == newer
        page = front.queries.repository_page(SYSTEM, "acme", "mirror", which=RunFilter())
        assert page.head is not None and page.head.sha == newer


def test_a_remote_on_this_machine_is_refused_unless_allowed(
    tmp_path: Path, forge: tuple[Front, str]
) -> None:
    elsewhere, url = forge
    commit = elsewhere.runs(elsewhere.repository())[0].commit
    with mirrored(tmp_path / "here", url, private=False) as (front, mirror, hook_id):
        deliver(front, hook_id, commit, "1")
        assert front.commands.hooks.finish_pending() == 0
        assert not front.runs(mirror)
        with pytest.raises(InvalidRequest):
            front.parts.source.fetch(mirror.id, url + "/acme/widget.git", commit, "refs/heads/main")
