"""Pushes of the real git client against the real server."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from git_store import Limits, RefChange
from tests.integration.git_world import READ_TOKEN, GitWorld, Recorder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path_factory.mktemp("git"), limits=Limits(repository_refs=20_000))
    yield world
    world.close()


@pytest.fixture
def world(server: GitWorld) -> GitWorld:
    fresh = Recorder()
    server.listener = fresh
    server.store.listen(fresh)
    return server


@pytest.fixture
def url(world: GitWorld, request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:90].strip("-")
    return world.create(f"acme/{name}")


@pytest.fixture
def work(world: GitWorld, url: str) -> Path:
    """A working copy with one commit on main that is not pushed yet."""
    path = world.work(f"work-{url.rsplit('/', 1)[1]}", url)
    world.commit(path, {"a.txt": "hello\n", "dir/b.txt": "x" * 1000})
    return path


def remote_refs(world: GitWorld, url: str) -> dict[str, str]:
    lines = world.git("ls-remote", url).splitlines()
    return {name: sha for sha, name in (line.split("\t") for line in lines)}


def test_what_is_pushed_can_be_cloned(world: GitWorld, url: str, work: Path) -> None:
    world.git("push", "origin", "main", cwd=work)
    clone = world.clone(url, f"{work.name}-clone")
    world.fsck(clone)
    assert (clone / "dir/b.txt").read_text() == "x" * 1000
    assert world.head(clone) == world.head(work)


def test_the_listener_hears_of_a_push_and_speaks_in_the_terminal(
    world: GitWorld, work: Path
) -> None:
    world.listener.words = ["run #12 started, http://ci/runs/12", "zwölf ☃"]
    output = world.git("push", "origin", "main", cwd=work)
    assert "remote: run #12 started, http://ci/runs/12" in output
    assert "remote: zwölf ☃" in output
    [event] = world.listener.events
    assert event.changes == (RefChange("refs/heads/main", None, world.head(work)),)
    assert event.pusher.name == "alice"
    assert event not in world.store.pending_events()


def test_a_listener_that_fails_leaves_the_event_in_the_outbox(world: GitWorld, work: Path) -> None:
    world.listener.fail = True
    output = world.git("push", "origin", "main", cwd=work)
    assert "remote: The push is stored, but what should follow it failed (RuntimeError)" in output
    [event] = world.listener.events
    assert event in world.store.pending_events()
    world.store.mark_handled(event.id)
    assert event not in world.store.pending_events()


def test_a_policy_sees_the_new_files_and_its_refusal_reaches_the_pusher(
    world: GitWorld, url: str, work: Path
) -> None:
    seen: list[bytes] = []
    world.listener.look = lambda push: seen.append(
        push.files.read(push.changes[0].new or "", "a.txt")
    )
    world.listener.refuse = "a.txt must not say hello\nsee the rules"
    output = world.git("push", "origin", "main", cwd=work, ok=False)
    assert seen == [b"hello\n"]
    assert "remote: a.txt must not say hello" in output
    assert "remote: see the rules" in output
    assert "[remote rejected] main -> main (a.txt must not say hello)" in output
    assert remote_refs(world, url) == {}
    assert world.listener.events == []


def test_push_options_reach_the_event(world: GitWorld, work: Path) -> None:
    world.git("push", "-o", "ci.skip", "-o", "a=b c", "origin", "main", cwd=work)
    assert world.listener.events[0].options == ("ci.skip", "a=b c")


def test_refs_are_created_moved_and_deleted(world: GitWorld, url: str, work: Path) -> None:
    world.git("push", "origin", "main", "main:refs/heads/topic/one", cwd=work)
    world.git("tag", "light", cwd=work)
    world.git("tag", "-a", "-m", "first", "v1", cwd=work)
    world.git("push", "--tags", "origin", cwd=work)
    assert set(remote_refs(world, url)) == {
        "HEAD",
        "refs/heads/main",
        "refs/heads/topic/one",
        "refs/tags/light",
        "refs/tags/v1",
        "refs/tags/v1^{}",
    }
    world.git("push", "origin", ":topic/one", ":refs/tags/v1", cwd=work)
    assert set(remote_refs(world, url)) == {"HEAD", "refs/heads/main", "refs/tags/light"}


def test_the_default_branch_cannot_be_deleted(world: GitWorld, work: Path) -> None:
    world.git("push", "origin", "main", cwd=work)
    output = world.git("push", "origin", ":main", cwd=work, ok=False)
    assert "deletion of the default branch is not allowed" in output


def test_a_force_push_replaces_history(world: GitWorld, url: str, work: Path) -> None:
    world.commit(work, {"a.txt": "two"})
    world.git("push", "origin", "main", cwd=work)
    world.git("reset", "-q", "--hard", "HEAD~1", cwd=work)
    new = world.commit(work, {"a.txt": "other"})
    world.git("push", "origin", "main", cwd=work, ok=False)
    world.git("push", "-f", "origin", "main", cwd=work)
    assert remote_refs(world, url)["refs/heads/main"] == new
    world.fsck(world.clone(url, f"{work.name}-clone"))


def test_refs_that_cannot_stand_beside_each_other_are_refused(world: GitWorld, work: Path) -> None:
    world.git("push", "origin", "main", "main:refs/heads/a", cwd=work)
    output = world.git("push", "origin", "main:refs/heads/a/b", cwd=work, ok=False)
    assert "name conflict with refs/heads/a" in output
    world.git("push", "origin", "main:refs/heads/c/d", cwd=work)
    output = world.git("push", "origin", "main:refs/heads/c", cwd=work, ok=False)
    assert "name conflict with refs/heads/c/d" in output
    world.git("push", "origin", ":refs/heads/a", "main:refs/heads/a/b", cwd=work)


def test_hidden_refs_can_be_neither_seen_nor_pushed_nor_fetched(
    world: GitWorld, url: str, work: Path
) -> None:
    world.git("push", "origin", "main", cwd=work)
    repository = world.store.repositories.get("acme", url.rsplit("/", 1)[1].removesuffix(".git"))
    world.git("checkout", "-q", "-b", "gone", cwd=work)
    gone = world.commit(work, {"secret.txt": "s"})
    world.git("push", "origin", "gone", cwd=work)
    world.store.refs.keep(repository.id, "run_1", gone)
    world.git("push", "origin", ":gone", cwd=work)
    assert set(remote_refs(world, url)) == {"HEAD", "refs/heads/main"}
    assert world.store.files(repository.id).read(gone, "secret.txt") == b"s"
    output = world.git("push", "origin", "main:refs/sluice/keep/mine", cwd=work, ok=False)
    assert "deny updating a hidden ref" in output
    clone = world.clone(url, f"{work.name}-clone")
    for version in "012":
        output = world.git(
            "-c", f"protocol.version={version}", "fetch", "origin", gone, cwd=clone, ok=False
        )
        assert f"not our ref {gone}" in output
    world.git("cat-file", "-e", gone, cwd=clone, ok=False)


def test_an_atomic_push_does_all_or_nothing(world: GitWorld, url: str, work: Path) -> None:
    world.git("push", "origin", "main", "main:refs/heads/a", cwd=work)
    before = remote_refs(world, url)
    world.commit(work, {"a.txt": "two"})
    output = world.git(
        "push", "--atomic", "origin", "main", "main:refs/heads/a/b", cwd=work, ok=False
    )
    assert "atomic push failed" in output
    assert remote_refs(world, url) == before
    output = world.git("push", "origin", "main", "main:refs/heads/a/b", cwd=work, ok=False)
    assert remote_refs(world, url)["refs/heads/main"] == world.head(work)


def test_of_many_pushes_to_one_ref_exactly_one_wins(world: GitWorld, url: str, work: Path) -> None:
    world.git("push", "origin", "main", cwd=work)
    clones = [world.clone(url, f"{work.name}-{number}") for number in range(6)]
    heads = [world.commit(clone, {"n.txt": clone.name}) for clone in clones]

    def push(clone: Path) -> bool:
        done = subprocess.run(
            ["git", "push", "-q", "origin", "main"], cwd=clone, capture_output=True, check=False
        )
        return done.returncode == 0

    with ThreadPoolExecutor(6) as threads:
        won = list(threads.map(push, clones))
    assert won.count(True) == 1
    assert remote_refs(world, url)["refs/heads/main"] == heads[won.index(True)]


def test_a_thin_pack_is_completed(world: GitWorld, url: str, work: Path) -> None:
    lines = "\n".join(f"line {number} of a file that deltas well" for number in range(5000))
    world.commit(work, {"big.txt": lines})
    world.git("push", "origin", "main", cwd=work)
    world.commit(work, {"big.txt": lines.replace("line 77 ", "line seventy-seven ")})
    world.git("push", "--thin", "origin", "main", cwd=work)
    clone = world.clone(url, f"{work.name}-clone")
    world.fsck(clone)
    assert "line seventy-seven " in (clone / "big.txt").read_text()


def test_a_push_from_a_shallow_clone(world: GitWorld, url: str, work: Path) -> None:
    for number in range(5):
        world.commit(work, {"a.txt": str(number)})
    world.git("push", "origin", "main", cwd=work)
    shallow = world.clone(url, f"{work.name}-shallow", "--depth=1")
    head = world.commit(shallow, {"b.txt": "b"})
    world.git("push", "origin", "main", cwd=shallow)
    assert remote_refs(world, url)["refs/heads/main"] == head
    world.fsck(world.clone(url, f"{work.name}-clone"))


def test_existing_objects_under_a_new_ref(world: GitWorld, url: str, work: Path) -> None:
    world.git("push", "origin", "main", cwd=work)
    world.git("push", "origin", "main:refs/heads/copy", cwd=work)
    refs = remote_refs(world, url)
    assert refs["refs/heads/copy"] == refs["refs/heads/main"]


def test_hundreds_of_tags_in_one_push(world: GitWorld, url: str, work: Path) -> None:
    head = world.head(work)
    lines = "".join(f"create refs/tags/t{number} {head}\n" for number in range(600))
    subprocess.run(["git", "update-ref", "--stdin"], cwd=work, input=lines, text=True, check=True)
    world.git("push", "-q", "--tags", "origin", "main", cwd=work)
    assert len(remote_refs(world, url)) == 602


def test_a_branch_must_point_at_a_commit(world: GitWorld, work: Path) -> None:
    world.git("tag", "-a", "-m", "x", "v1", cwd=work)
    tree = world.head(work, "HEAD^{tree}")
    for source in ("v1^{}", tree, world.head(work, "v1")):
        ok = source == "v1^{}"
        world.git("push", "origin", f"{source}:refs/heads/x", cwd=work, ok=ok)


def test_a_missing_repository_is_named_in_the_terminal(world: GitWorld, work: Path) -> None:
    output = world.git("push", world.url("acme/nowhere"), "main", cwd=work, ok=False)
    assert "remote: There is no repository acme/nowhere, or you may not see it." in output
    hidden = world.git("push", world.url("secret/x"), "main", cwd=work, ok=False)
    assert "remote: There is no repository secret/x, or you may not see it." in hidden


def test_missing_rights_are_explained_in_the_terminal(
    world: GitWorld, url: str, work: Path
) -> None:
    read_only = url.replace("s3cret", READ_TOKEN)
    output = world.git("push", read_only, "main", cwd=work, ok=False)
    assert "remote: You may read acme/" in output
    assert "but not push to it." in output
    world.git("ls-remote", read_only)
    output = world.git("push", url.replace("s3cret", "wrong"), "main", cwd=work, ok=False)
    assert "remote: The token is wrong or has expired." in output


def test_a_push_over_a_limit_is_explained_in_the_terminal(tmp_path: Path) -> None:
    limits = Limits(push_bytes=300_000, blob_bytes=400_000, repository_bytes=500_000)
    world = GitWorld(tmp_path, limits=limits)
    try:
        url = world.create()
        world.work("work", url)
        noise = (bytes(range(256)) * 4000)[: 1 << 20]
        world.commit("work", {"zeros.bin": noise})
        output = world.git("push", "origin", "main", cwd="work", ok=False)
        assert "a file of 1024000 bytes is over the limit of 400000 (blob_bytes)" in output
        world.work("large", url)
        world.commit("large", {"a.bin": os.urandom(350_000)})
        output = world.git("push", "origin", "main", cwd="large", ok=False)
        assert "larger than 300000 bytes, which is the limit of one push (push_bytes)" in output
        world.commit("large", {"a.bin": os.urandom(5_000_000)})  # sent in chunks, still coming
        output = world.git("push", "origin", "main", cwd="large", ok=False)
        assert "which is the limit of one push (push_bytes)" in output
        world.work("many", url)
        world.commit("many", {"a.bin": os.urandom(250_000)})
        world.git("push", "origin", "main", cwd="many")
        world.commit("many", {"b.bin": os.urandom(280_000)})
        output = world.git("push", "origin", "main", cwd="many", ok=False)
        assert "would grow over its quota of 500000 bytes (repository_bytes)" in output
        assert list((tmp_path / "cache" / "quarantine").iterdir()) == []
    finally:
        world.close()
