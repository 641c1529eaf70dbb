"""Large packs are indexed in a process of their own: the same result, errors and limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import BadPack, Limits, OverLimit, index_process
from git_store.index import index_pack
from git_store.index_process import index_apart
from git_store.packfile import BLOB, REF_DELTA
from tests.integration.git_world import GitWorld
from tests.integration.test_git_wire import entry, raw_pack
from tests.unit.git_store.made import Maker

APART = Limits(inline_pack_bytes=1000, process_bytes=2000)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path, limits=APART)
    yield world
    world.close()


def nothing(name: bytes) -> None:
    return None


def test_a_pack_indexed_apart_gives_the_same(tmp_path: Path) -> None:
    maker = Maker()
    tree = maker.tree((0o100644, b"a", maker.blob(os.urandom(5000))))
    maker.commit(tree, maker.commit(tree))
    path = tmp_path / "x.pack"
    path.write_bytes(maker.pack())
    said: list[str] = []
    apart = index_apart(path, limits=Limits(), lookup=nothing, progress=said.append)
    assert apart == index_pack(maker.pack(), limits=Limits(), lookup=nothing)


def test_a_thin_pack_indexed_apart_asks_for_its_bases(tmp_path: Path) -> None:
    base = b"x" * 100
    maker = Maker()
    name = maker.blob(base)
    delta = b"\x64\x65" + b"\x90\x64" + b"\x01y"  # copy 100 bytes, insert one
    body = bytes([REF_DELTA << 4 | len(delta)]) + name
    pack = raw_pack(body + entry(BLOB, delta)[1:])
    path = tmp_path / "x.pack"
    path.write_bytes(pack)
    asked: list[bytes] = []

    def lookup(wanted: bytes) -> tuple[int, bytes] | None:
        asked.append(wanted)
        return BLOB, base

    apart = index_apart(path, limits=Limits(), lookup=lookup, progress=lambda text: None)
    assert asked == [name] and [one[0] for one in apart.bases] == [name]


def test_what_is_wrong_with_a_pack_is_said_from_there(tmp_path: Path) -> None:
    path = tmp_path / "x.pack"
    path.write_bytes(raw_pack(b"\x00" * 50))
    with pytest.raises(BadPack, match="unknown type 0"):
        index_apart(path, limits=Limits(), lookup=nothing, progress=print)
    path.write_bytes(raw_pack(entry(BLOB, b"x" * 1000)))
    with pytest.raises(OverLimit, match="blob_bytes") as over:
        index_apart(path, limits=Limits(blob_bytes=10), lookup=nothing, progress=print)
    assert over.value.limit == "blob_bytes"


def test_a_push_goes_through_it_unnoticed(world: GitWorld) -> None:
    url = world.create()
    work = world.work("work", url)
    first: dict[str, str | bytes] = {f"{n}.txt": os.urandom(200).hex() for n in range(300)}
    world.commit(work, first)
    world.git("push", "-q", "origin", "main", cwd=work)
    for number in range(2):
        world.commit(work, {name: os.urandom(200).hex() for name in list(first)[number::7]})
        world.git("push", "-q", "origin", "main", cwd=work)
    repository = world.store.repositories.get("acme", "app")
    assert world.store.fsck(repository.id).problems == ()
    world.fsck(world.clone(url, "clone"))


def test_a_process_that_dies_refuses_the_push(
    world: GitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = world.create()
    work = world.work("work", url)
    world.commit(work, {"noise.bin": os.urandom(10_000)})

    with monkeypatch.context() as patched:
        patched.setattr(index_process, "CHILD", [sys.executable, "-c", "raise SystemExit(1)"])
        said = world.git("push", "origin", "main", cwd=work, ok=False)
    assert "died; push again" in said
    repository = world.store.repositories.get("acme", "app")
    assert world.store.refs.all(repository.id) == []
    world.git("push", "-q", "origin", "main", cwd=work)
