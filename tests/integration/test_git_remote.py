"""Fetching from other servers, over loopback: another git store, and sources that misbehave."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import BadName, GitStore, Limits, ObjectNotFound, OverLimit, RemoteFailed
from git_store.pktline import packet
from git_store.remote_http import is_public
from tests.integration.git_world import Clock, GitWorld, MemoryStore, sqlite_engine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path_factory.mktemp("git"))
    yield world
    world.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GitStore]:
    engine = sqlite_engine(tmp_path / "here.db")
    limits = Limits(push_bytes=1_000_000, remote_seconds=3.0)
    store = GitStore(engine, MemoryStore(), tmp_path / "cache", clock=Clock(), limits=limits)
    store.create_tables()
    yield store
    store.close()
    engine.dispose()


@pytest.fixture
def here(store: GitStore) -> str:
    return store.repositories.create("mirror", "app").id


@pytest.fixture
def source(world: GitWorld, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The URL of a remote with two commits and a tag, and the working copy behind it."""
    name = request.node.name.replace("[", "-").replace("]", "").replace("_", "-")[:90]
    url = world.create(f"acme/{name}")
    work = world.work(name, url)
    world.commit(work, {"a.txt": "1"})
    world.commit(work, {"a.txt": "2", "b/c.txt": "3"})
    world.git("tag", "-a", "-m", "t", "v1", cwd=work)
    world.git("push", "-q", "origin", "main", "v1", cwd=work)
    return url, work


def test_a_branch_and_then_what_is_new_of_it(
    world: GitWorld, store: GitStore, here: str, source: tuple[str, Path]
) -> None:
    url, work = source
    first = store.fetch_remote(here, url, ref="refs/heads/main", allow_private=True)
    assert first == world.head(work)
    assert store.files(here).read(first, "b/c.txt") == b"3"
    assert store.refs.all(here) == [], "no visible ref moves"
    second = world.commit(work, {"a.txt": "new"})
    world.git("push", "-q", "origin", "main", cwd=work)
    assert store.fetch_remote(here, url, ref="main", allow_private=True) == second
    assert store.files(here).log(second)[1].sha == first


def test_a_tag_leads_to_its_commit(
    world: GitWorld, store: GitStore, here: str, source: tuple[str, Path]
) -> None:
    url, work = source
    found = store.fetch_remote(here, url, ref="refs/tags/v1", keep="run_1", allow_private=True)
    assert found == world.head(work)


def test_a_commit_that_its_branch_has_left_behind(
    world: GitWorld, store: GitStore, here: str, source: tuple[str, Path]
) -> None:
    url, work = source
    old = world.head(work, "HEAD~1")
    world.commit(work, {"a.txt": "later"})
    world.git("push", "-q", "origin", "main", cwd=work)
    got = store.fetch_remote(here, url, ref="refs/heads/main", commit=old, allow_private=True)
    assert got == old
    assert store.fetch_remote(here, url, commit=old, allow_private=True) == old


def test_a_commit_alone_is_asked_for_by_its_id(
    world: GitWorld, store: GitStore, here: str, source: tuple[str, Path]
) -> None:
    url, work = source
    old = world.head(work, "HEAD~1")
    assert store.fetch_remote(here, url, commit=old, allow_private=True) == old


def test_a_directory_can_be_a_remote_where_allowed(
    world: GitWorld, store: GitStore, here: str, source: tuple[str, Path]
) -> None:
    _, work = source
    url = f"file://{work}/.git"
    assert store.fetch_remote(here, url, ref="main", allow_private=True) == world.head(work)
    with pytest.raises(BadName, match="must begin with https:// or http://"):
        store.fetch_remote(here, url, ref="main")


def test_what_is_not_there_is_said(
    store: GitStore, here: str, source: tuple[str, Path], world: GitWorld
) -> None:
    url, _ = source
    with pytest.raises(ObjectNotFound, match="has no ref 'nope'"):
        store.fetch_remote(here, url, ref="nope", allow_private=True)
    with pytest.raises(RemoteFailed):
        store.fetch_remote(here, url, commit="1" * 40, allow_private=True)
    with pytest.raises(RemoteFailed, match="NotGitRepository"):
        store.fetch_remote(here, world.url("acme/none"), ref="main", allow_private=True)


def test_credentials_stay_out_of_messages(
    store: GitStore, here: str, source: tuple[str, Path]
) -> None:
    url, _ = source
    with pytest.raises(RemoteFailed) as failed:
        store.fetch_remote(here, url.replace("s3cret", "wr0ng"), ref="main", allow_private=True)
    assert "wr0ng" not in str(failed.value) and "127.0.0.1" in str(failed.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.git",
        "http://localhost:1/x.git",
        "http://[::1]/x.git",
        "http://[::ffff:10.0.0.1]/x.git",
        "http://169.254.169.254/latest",
        "http://10.1.2.3/x.git",
        "https://0/x.git",
        "http://2130706433/x.git",
    ],
)
def test_addresses_inside_are_refused(store: GitStore, here: str, url: str) -> None:
    with pytest.raises(RemoteFailed, match="not a public address"):
        store.fetch_remote(here, url, ref="main")


@pytest.mark.parametrize(
    "url",
    ["", "ssh://x/y", "git://x/y", "/etc", "http://", "http://a:b:c/", "http://x/\n", "x" * 3000],
)
def test_other_urls_are_refused_by_field(store: GitStore, here: str, url: str) -> None:
    with pytest.raises(BadName) as refused:
        store.fetch_remote(here, url, ref="main")
    assert refused.value.field == "url"


def test_public_addresses_are_told_from_others() -> None:
    assert is_public("8.8.8.8") and is_public("2606:4700:4700::1111")
    for address in ("100.64.0.1", "fe80::1%eth0", "fc00::1", "224.0.0.1", "::", "64:ff9b::a00:1"):
        assert not is_public(address), address


class _Misbehaving(http.server.BaseHTTPRequestHandler):
    """Answers in the way the path names."""

    def do_GET(self) -> None:
        if "elsewhere" in self.path:
            self.send_response(302)
            self.send_header("location", "http://elsewhere.invalid/x")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-type", "application/x-git-upload-pack-advertisement")
        self.end_headers()
        try:
            if "endless" in self.path:
                self.wfile.write(packet(b"# service=git-upload-pack\n") + b"0000")
                while True:
                    self.wfile.write(packet(b"1" * 40 + b" refs/heads/" + b"x" * 60_000) * 10)
            if "nonsense" in self.path:
                self.wfile.write(b"\xff" * 1000)
        except OSError:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Misbehaving)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["nonsense", "empty"])
def test_a_remote_that_speaks_nonsense(
    store: GitStore, here: str, misbehaving: str, path: str
) -> None:
    with pytest.raises(RemoteFailed, match="failed"):
        store.fetch_remote(here, f"{misbehaving}/{path}", ref="main", allow_private=True)


def test_a_remote_that_never_ends(store: GitStore, here: str, misbehaving: str) -> None:
    with pytest.raises(OverLimit, match="sends more than 1000000 bytes"):
        store.fetch_remote(here, f"{misbehaving}/endless", ref="main", allow_private=True)


def test_a_remote_that_redirects_elsewhere(store: GitStore, here: str, misbehaving: str) -> None:
    with pytest.raises(RemoteFailed, match="redirects to another host"):
        store.fetch_remote(here, f"{misbehaving}/elsewhere", ref="main", allow_private=True)


def test_a_remote_over_the_limit(
    world: GitWorld, store: GitStore, here: str, source: tuple[str, Path]
) -> None:
    url, work = source
    world.commit(work, {"noise.bin": os.urandom(50_000)})
    world.git("push", "-q", "origin", "main", cwd=work)
    small = Limits(push_bytes=10_000)
    engine = sqlite_engine(work / "tight.db")
    tight = GitStore(engine, MemoryStore(), work / "c", clock=Clock(), limits=small)
    tight.create_tables()
    repository = tight.repositories.create("a", "b").id
    with pytest.raises(OverLimit, match="push_bytes"):
        tight.fetch_remote(repository, url, ref="main", allow_private=True)
    assert tight.repositories.by_id(repository).pack_bytes == 0
    engine.dispose()
