"""Large packs are indexed in a process of their own: the same result, errors and limits."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import BadPack, Limits, OverLimit, index_process
from git_store.index import Lookup, PackIndex, Progress, index_pack
from git_store.index_process import Indexing
from git_store.packfile import BLOB, REF_DELTA
from git_store.settle import Settled, settle
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


def ignore(text: str) -> None:
    return None


def apart(
    path: Path,
    *,
    limits: Limits = APART,
    lookup: Lookup = nothing,
    progress: Progress = ignore,
) -> Settled:
    """Index a file as if it arrived just now, a piece at a time."""
    index = path.with_suffix(".idx")
    with Indexing(path, index, limits=limits, lookup=lookup, progress=progress) as indexing:
        for size in range(0, path.stat().st_size, 1 << 20):
            indexing.arrived(size)
        return indexing.finish()


def test_a_pack_indexed_apart_gives_the_same(tmp_path: Path) -> None:
    maker = Maker()
    tree = maker.tree((0o100644, b"a", maker.blob(os.urandom(5000))))
    maker.commit(tree, maker.commit(tree))
    path = tmp_path / "x.pack"
    path.write_bytes(maker.pack())
    here, _, index = settle(maker.pack(), index_pack(maker.pack(), limits=APART, lookup=nothing))
    assert apart(path) == here
    assert path.with_suffix(".idx").read_bytes() == index


def test_a_pack_is_indexed_while_it_arrives(tmp_path: Path) -> None:
    maker = Maker()
    for _ in range(4):
        maker.blob(os.urandom(3 << 20))
    maker.blob(os.urandom(6 << 20))  # large enough to be read in slices
    pack = maker.pack()
    path = tmp_path / "x.pack"
    index = path.with_suffix(".idx")
    with (
        path.open("wb", buffering=0) as file,
        Indexing(path, index, limits=APART, lookup=nothing, progress=ignore) as indexing,
    ):
        for at in range(0, len(pack), 700_000):
            file.write(pack[at : at + 700_000])
            indexing.arrived(min(len(pack), at + 700_000))
        settled = indexing.finish()
    assert settled.objects == 5 and settled.checksum == pack[-20:]
    assert PackIndex(index.read_bytes()).count == 5


def test_a_thin_pack_indexed_apart_asks_for_its_bases(tmp_path: Path) -> None:
    base = b"x" * 100
    maker = Maker()
    name = maker.blob(base)
    delta = b"\x64\x65" + b"\x90\x64" + b"\x01y"  # copy 100 bytes, insert one
    body = bytes([REF_DELTA << 4 | len(delta)]) + name
    path = tmp_path / "x.pack"
    path.write_bytes(raw_pack(body + entry(BLOB, delta)[1:]))
    asked: list[bytes] = []

    def lookup(wanted: bytes) -> tuple[int, bytes] | None:
        asked.append(wanted)
        return BLOB, base

    settled = apart(path, lookup=lookup)
    assert asked == [name] and settled.completed == {name}
    subprocess.run(["git", "index-pack", "--verify", str(path)], check=True, cwd=tmp_path)


def test_what_is_wrong_with_a_pack_is_said_from_there(tmp_path: Path) -> None:
    path = tmp_path / "x.pack"
    path.write_bytes(raw_pack(b"\x00" * 50))
    with pytest.raises(BadPack, match="unknown type 0"):
        apart(path)
    path.write_bytes(raw_pack(entry(BLOB, b"x" * 1000)))
    with pytest.raises(OverLimit, match="blob_bytes") as over:
        apart(path, limits=Limits(blob_bytes=10))
    assert over.value.limit == "blob_bytes"


def test_what_is_wrong_is_said_before_the_whole_pack_is_there(tmp_path: Path) -> None:
    maker = Maker()
    maker.tree((0o100644, b".git", maker.blob(os.urandom(100))))
    maker.blob(os.urandom(3 << 20))
    path = tmp_path / "x.pack"
    path.write_bytes(maker.pack())
    index = path.with_suffix(".idx")
    with (
        Indexing(path, index, limits=APART, lookup=nothing, progress=ignore) as indexing,
        pytest.raises(BadPack, match="named"),
    ):
        for megabytes in itertools.count(2):  # the client never comes to an end
            indexing.arrived(megabytes << 20)


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
        patched.setattr(index_process, "MODULE", "no_such_module")
        said = world.git("push", "origin", "main", cwd=work, ok=False)
    assert "died; push again" in said
    repository = world.store.repositories.get("acme", "app")
    assert world.store.refs.all(repository.id) == []
    world.git("push", "-q", "origin", "main", cwd=work)
