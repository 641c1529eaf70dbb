"""What packs are kept in fails: nothing visible that is not whole, and the pusher is told."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from git_store import Limits, ObjectNotFound, StorageFailed, packs
from tests.integration.git_world import GitWorld

ROOT = Path(__file__).parents[2]


class Flaky:
    """The functions of obstore that packs use; they fail while `broken` says so."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.fails_after = 0  # calls that still work

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if name in self.broken:
                if self.fails_after < 1:
                    raise GenericError("the object store is away")
                self.fails_after -= 1
            return getattr(obstore, name)(*arguments, **named)

        return call


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    flaky = Flaky()
    monkeypatch.setattr(packs, "obstore", flaky)
    return flaky


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path, objects=MemoryStore(), limits=Limits(inline_pack_bytes=1000))
    yield world
    world.close()


@pytest.mark.parametrize("works", [0, 1])
def test_a_push_while_the_object_store_is_away_is_refused_and_works_later(
    world: GitWorld, flaky: Flaky, works: int
) -> None:
    url = world.create()
    work = world.work("work", url)
    head = world.commit(work, {"large.bin": os.urandom(50_000)})
    flaky.broken, flaky.fails_after = {"put"}, works  # the pack, or after it the index
    said = world.git("push", "origin", "main", cwd=work, ok=False)
    assert "try again later" in said and "unpacker error" in said
    repository = world.store.repositories.get("acme", "app")
    assert world.store.refs.all(repository.id) == [] and repository.pack_bytes == 0
    assert world.store.pending_events() == [] == world.listener.events
    flaky.broken = set()
    world.git("push", "-q", "origin", "main", cwd=work)
    assert world.store.refs.resolve(repository.id, "main") == head
    world.clock.ms = 4_000_000_000_000
    world.store.sweep()
    assert len([item for page in obstore.list(world.objects) for item in page]) == 2
    world.fsck(world.clone(url, "clone"))


def test_a_fetch_while_the_object_store_is_away_fails_and_works_later(
    world: GitWorld, flaky: Flaky, tmp_path: Path
) -> None:
    url = world.create()
    work = world.work("work", url)
    world.commit(work, {"large.bin": os.urandom(50_000)})
    world.git("push", "-q", "origin", "main", cwd=work)
    world.store.close()  # forget what was opened
    flaky.broken = {"get"}
    assert "try again later" in world.git("clone", url, "clone", ok=False)
    cached = tmp_path / "cache/packs"
    assert not cached.exists() or not list(cached.iterdir()), "no half copy stays"
    flaky.broken = set()
    world.fsck(world.clone(url, "clone"))


def test_packs_are_not_joined_while_the_object_store_is_away(world: GitWorld, flaky: Flaky) -> None:
    url = world.create()
    work = world.work("work", url)
    for number in range(60):
        world.commit(work, {"f": str(number)})
        world.git("push", "-q", "origin", "main", cwd=work)
    repository = world.store.repositories.get("acme", "app")
    before = world.store.fsck(repository.id)
    flaky.broken = {"put"}
    with pytest.raises(StorageFailed):
        world.store.maintain()
    assert world.store.fsck(repository.id) == before
    flaky.broken = set()
    world.store.maintain()
    after = world.store.fsck(repository.id)
    assert after.packs < 10 and after.objects == before.objects and after.problems == ()


def test_a_full_disk_refuses_a_push_and_keeps_what_is_there(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: both are errors of a write."""
    world = GitWorld(tmp_path)
    try:
        url = world.create()
        work = world.work("work", url)
        first = world.commit(work, {"a.txt": "1"})
        world.git("push", "-q", "origin", "main", cwd=work)
        world.commit(work, {"large.bin": os.urandom(6_000_000)})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
        try:
            said = world.git("push", "origin", "main", cwd=work, ok=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "try again later" in said
        repository = world.store.repositories.get("acme", "app")
        assert world.store.refs.resolve(repository.id, "main") == first
        assert not list((tmp_path / "cache/quarantine").iterdir())
        world.git("push", "-q", "origin", "main", cwd=work)
        world.fsck(world.clone(url, "clone"))
    finally:
        world.close()


def test_a_pack_that_is_lost_is_named(world: GitWorld) -> None:
    url = world.create()
    work = world.work("work", url)
    head = world.commit(work, {"large.bin": os.urandom(50_000)})
    world.git("push", "-q", "origin", "main", cwd=work)
    world.store.close()
    for item in [item for page in obstore.list(world.objects) for item in page]:
        obstore.delete(world.objects, item["path"])
    for path in (world.directory / "cache/packs").glob("*"):
        path.unlink()
    repository = world.store.repositories.get("acme", "app")
    problems = world.store.fsck(repository.id).problems
    assert problems and "cannot be read" in problems[0]
    with pytest.raises((StorageFailed, ObjectNotFound)):
        world.store.files(repository.id).commit(head)
