"""Taking over other repositories, over loopback: whole, again, mirrored, and damaged ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import Busy, GitStore, Limits, OverLimit, Pusher, PushEvent, RemoteFailed
from tests.integration.git_world import GitWorld

ALICE = Pusher("usr_alice", "alice")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path)
    yield world
    world.close()


@pytest.fixture
def source(world: GitWorld) -> Path:
    """A working copy with two branches, a merge, tags of both kinds; HEAD is `trunk`."""
    work = world.work("source")
    world.commit(work, {"a.txt": "1", "dir/b.txt": "2"})
    world.git("checkout", "-q", "-b", "side", cwd=work)
    world.commit(work, {"c.txt": "3"})
    world.git("checkout", "-q", "-b", "trunk", "main", cwd=work)
    world.commit(work, {"a.txt": "4"})
    world.git("merge", "-q", "--no-ff", "-m", "merge", "side", cwd=work)
    world.git("tag", "light", cwd=work)
    world.git("tag", "-a", "-m", "t", "v1", cwd=work)
    world.git("branch", "-qD", "main", cwd=work)
    return work


def take(world: GitWorld, work: Path, *, prune: bool = False) -> tuple[str, dict[str, str]]:
    repository = world.store.repositories.get("acme", "app")
    done = world.store.import_remote(
        repository.id,
        f"file://{work}/.git",
        pusher=ALICE,
        prune=prune,
        options=["ci.skip"],
        allow_private=True,
    )
    return repository.id, dict(done.refused)


def test_a_repository_is_taken_over_whole(world: GitWorld, source: Path) -> None:
    url = world.create()
    repository_id, refused = take(world, source)
    assert refused == {}
    theirs = world.git("for-each-ref", "--format=%(objectname) %(refname)", cwd=source)
    ours = [f"{ref.sha} {ref.name}" for ref in world.store.refs.all(repository_id)]
    assert ours == theirs.split("\n")[:-1]
    assert world.store.repositories.by_id(repository_id).default_branch == "trunk"
    assert world.store.fsck(repository_id).problems == ()
    clone = world.clone(url, "clone")
    world.fsck(clone)
    assert world.head(clone) == world.head(source)
    event = world.listener.events[-1]
    assert event.pusher == ALICE and event.options == ("ci.skip",) and len(event.changes) == 4


def test_taking_it_over_again_brings_only_what_is_new(world: GitWorld, source: Path) -> None:
    world.create()
    repository_id, _ = take(world, source)
    packs = world.store.fsck(repository_id).objects
    take(world, source)
    assert len(world.listener.events) == 1, "nothing moved, so nobody was told"
    new = world.commit(source, {"a.txt": "5"})
    take(world, source)
    assert world.store.refs.resolve(repository_id, "trunk") == new
    assert world.store.fsck(repository_id).objects == packs + 3


def test_a_mirror_follows_rewritten_and_deleted_branches(world: GitWorld, source: Path) -> None:
    world.create()
    repository_id, _ = take(world, source)
    world.git("branch", "-qD", "side", cwd=source)
    world.git("tag", "-d", "light", cwd=source)
    world.git("reset", "-q", "--hard", "HEAD~1", cwd=source)
    rewritten = world.commit(source, {"a.txt": "other"})
    take(world, source)
    assert world.store.refs.resolve(repository_id, "side") is not None, "not asked to prune"
    take(world, source, prune=True)
    names = [ref.name for ref in world.store.refs.all(repository_id)]
    assert names == ["refs/heads/trunk", "refs/tags/v1"]
    assert world.store.refs.resolve(repository_id, "trunk") == rewritten


def test_an_empty_remote_brings_nothing(world: GitWorld) -> None:
    world.create()
    work = world.work("empty")
    repository_id, refused = take(world, work)
    assert world.store.refs.all(repository_id) == [] and refused == {}


def test_a_damaged_source_is_reported_and_leaves_nothing(world: GitWorld, source: Path) -> None:
    world.create()
    blob = world.head(source, "side:c.txt")
    (source / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(RemoteFailed, match="file://.*source/.git"):
        take(world, source)
    repository = world.store.repositories.get("acme", "app")
    assert world.store.refs.all(repository.id) == [] and repository.pack_bytes == 0


def test_over_http_with_credentials_that_are_never_shown(world: GitWorld, source: Path) -> None:
    url = world.create("acme/origin")
    world.git("push", "-q", url, "trunk", "--tags", cwd=source)
    into = world.store.repositories.create("acme", "copy").id
    plain = url.replace("any:s3cret@", "")
    for credentials in (None, ("any", "wr0ng")):
        with pytest.raises(RemoteFailed) as failed:
            world.store.import_remote(
                into, plain, pusher=ALICE, credentials=credentials, allow_private=True
            )
        assert "wr0ng" not in str(failed.value)
    done = world.store.import_remote(
        into, plain, pusher=ALICE, credentials=("any", "s3cret"), allow_private=True
    )
    assert done.moved == 3
    with pytest.raises(RemoteFailed, match="not a public address"):
        world.store.import_remote(into, plain, pusher=ALICE)


def test_limits_hold_for_an_import(tmp_path: Path, source: Path, world: GitWorld) -> None:
    (tmp_path / "tight").mkdir()
    tight = GitWorld(tmp_path / "tight", limits=Limits(push_bytes=300))
    try:
        tight.create()
        with pytest.raises(OverLimit, match="push_bytes"):
            take(tight, source)
    finally:
        tight.close()


def test_imports_at_once_are_bounded(world: GitWorld, source: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(event: PushEvent) -> None:
        entered.set()
        assert leave.wait(20)

    busy = GitStore(
        world.engine,
        world.objects,
        world.directory / "busy",
        clock=world.clock,
        limits=Limits(remote_imports=1),
    )
    busy.listen(_Holding(hold))
    repository_id = busy.repositories.create("acme", "app").id
    where = f"file://{source}/.git"
    first = threading.Thread(
        target=lambda: busy.import_remote(repository_id, where, pusher=ALICE, allow_private=True)
    )
    first.start()
    assert entered.wait(20)
    with pytest.raises(Busy, match="remote_imports"):
        busy.import_remote(repository_id, where, pusher=ALICE, allow_private=True)
    leave.set()
    first.join()
    busy.close()


class _Holding:
    """A listener that keeps a push from ending."""

    def __init__(self, hold: object) -> None:
        self._hold = hold

    def before(self, push: object) -> None: ...

    def after(self, event: PushEvent, say: object) -> None:
        assert callable(self._hold)
        self._hold(event)


def test_a_remote_of_another_object_format_is_refused_in_words(world: GitWorld) -> None:
    work = world.directory / "sha256"
    world.git("init", "-q", "--object-format=sha256", "-b", "main", "sha256")
    world.commit(work, {"a": "a"})
    world.create()
    with pytest.raises(RemoteFailed, match="only sha1 can be taken over"):
        take(world, work)
    repository = world.store.repositories.get("acme", "app")
    assert world.store.refs.all(repository.id) == []


def test_a_remote_that_is_empty_all_at_once_takes_nothing_away(
    world: GitWorld, source: Path
) -> None:
    world.create()
    repository_id, _ = take(world, source)
    before = world.store.refs.all(repository_id)
    empty = world.work("empty")
    with pytest.raises(RemoteFailed, match="what is here stays"):
        take(world, empty, prune=True)
    assert world.store.refs.all(repository_id) == before
