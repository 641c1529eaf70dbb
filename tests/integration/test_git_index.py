"""Packs of many objects are indexed by the git binary: the same result as without it."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from git_store import BadPack, Limits, OverLimit, index_process
from git_store.git_index import ByGit, index_by_git
from git_store.index import Lookup
from git_store.index_process import Indexing
from git_store.objects import Objects
from git_store.pack_process import lay_out
from git_store.packfile import BLOB, REF_DELTA, entry_header, pack_header
from git_store.settle import Settled
from tests.integration.git_world import GIT, GitWorld
from tests.unit.git_store.made import Maker

BY_GIT = Limits(inline_pack_bytes=1000, process_bytes=2000, git_objects_min=1)
NOISE = os.urandom(4000)


def nothing(name: bytes) -> None:
    return None


def indexed(
    place: Path,
    data: bytes,
    tips: Sequence[bytes],
    *,
    git: Path | None = GIT,
    here: Objects | None = None,
    limits: Limits = BY_GIT,
) -> tuple[Settled, bytes]:
    """What there is to know of a pack that arrives in pieces, and its index."""
    pack, index = place / "x.pack", place / "x.idx"
    packs = here.packs if here else []
    lookup: Lookup = here.find if here else nothing
    by = None
    if git is not None:
        lay_out(place / "new", (), ())
        lay_out(place / "here", packs, ())
        by = ByGit(git, place / "new", place / "here", tips)
    with (
        pack.open("wb", buffering=0) as file,
        Indexing(
            pack, index, limits=limits, lookup=lookup, progress=lambda text: None, by=by
        ) as work,
    ):
        for at in range(0, len(data), 3000):
            file.write(data[at : at + 3000])
            work.arrived(min(len(data), at + 3000))
        settled = work.finish()
    return settled, index.read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        made = tmp_path / os.urandom(4).hex()
        made.mkdir()
        return made

    return make


def history(maker: Maker, *parents: bytes, commits: int = 3) -> bytes:
    for number in range(commits):
        entries = (0o100644, b"a", maker.blob(b"%d" % number + os.urandom(900)))
        parents = (maker.commit(maker.tree(entries), *parents),)
    return parents[0]


def test_git_gives_the_same_index_and_roots(place: Callable[[], Path]) -> None:
    maker = Maker()
    tip = history(maker)
    by_git, index = indexed(place(), maker.pack(), [tip])
    ours, same = indexed(place(), maker.pack(), [tip], git=None)
    assert by_git.needs is None, "it was git"
    assert index == same
    assert replace(by_git, needs=frozenset()) == ours
    assert by_git.roots == (tip,)


def test_what_no_tip_reaches_makes_a_pack_that_is_never_sent_whole(
    place: Callable[[], Path],
) -> None:
    maker = Maker()
    tip = history(maker)
    maker.blob(NOISE)
    settled, _ = indexed(place(), maker.pack(), [tip])
    assert settled.needs is None and settled.roots is None


def test_a_pack_that_builds_on_another_has_the_same_roots(place: Callable[[], Path]) -> None:
    old, new = Maker(), Maker()
    base = history(old)
    tip = history(new, base)
    settled, index = indexed(place(), new.pack(), [tip, base], here=old.objects())
    ours, same = indexed(place(), new.pack(), [tip, base], git=None, here=old.objects())
    assert settled.needs is None and settled.roots == ours.roots == (tip,)
    assert index == same


def test_a_thin_pack_is_completed_by_git(place: Callable[[], Path]) -> None:
    old = Maker()
    base = old.blob(b"x" * 100)
    delta = b"\x64\x65" + b"\x90\x64" + b"\x01y"  # copy 100 bytes, insert one
    noise = entry_header(BLOB, len(NOISE)) + zlib.compress(NOISE)
    thin = entry_header(REF_DELTA, len(delta), base) + zlib.compress(delta)
    data = pack_header(2) + noise + thin
    data += hashlib.sha1(data).digest()
    settled, _ = indexed(place(), data, (), here=old.objects())
    assert settled.needs is None
    assert settled.completed == {base} and settled.objects == 3


def bad(what: str) -> tuple[bytes, str]:
    """A pack that must not be taken, and what our own indexing says of it."""
    maker = Maker()
    blob = maker.blob(NOISE)
    if what == "mode":
        tree = maker.tree((0o644, b"a", blob))
        said = "mode git does not know"
    elif what == "name":
        tree = maker.tree((0o100644, b".gIt", blob))
        said = "'.git'"
    elif what == "order":
        tree = maker.tree((0o100644, b"b", blob), (0o100644, b"a", blob))
        said = "not sorted"
    else:
        tree = maker.tree((0o120000, b".gitmodules", blob))
        said = "must be a file"
    maker.commit(tree)
    return maker.pack(), said


@pytest.mark.parametrize("what", ["mode", "name", "order", "link"])
def test_what_we_refuse_is_refused_in_our_words(place: Callable[[], Path], what: str) -> None:
    pack, said = bad(what)
    with pytest.raises(BadPack, match=said):
        indexed(place(), pack, ())


@pytest.mark.parametrize("limit", ["blob_bytes", "tree_bytes", "delta_result_bytes"])
def test_limits_hold_for_what_git_would_take(place: Callable[[], Path], limit: str) -> None:
    maker = Maker()
    names = [maker.blob(b"%d" % n + os.urandom(100)) for n in range(40)]
    tip = maker.commit(maker.tree(*((0o100644, b"%02d" % n, x) for n, x in enumerate(names))))
    blob, tree = sorted(names)[0], 1000
    assert len(maker.made[blob][1]) < tree
    bounds = replace(BY_GIT, **{limit: 100})
    if limit == "delta_result_bytes":  # nothing here is a delta, so it is fine after a second look
        assert indexed(place(), maker.pack(), [tip], limits=bounds)[0].needs == frozenset()
        return
    with pytest.raises(OverLimit, match=limit):
        indexed(place(), maker.pack(), [tip], limits=bounds)


def test_what_only_git_refuses_is_taken(place: Callable[[], Path]) -> None:
    maker = Maker()
    tree = maker.tree((0o100644, b"a", maker.blob(NOISE)))
    tip = maker.add(1, b"tree %s\n\nno author, and nobody who committed it\n" % tree.hex().encode())
    settled, _ = indexed(place(), maker.pack(), [tip])
    assert settled.needs == frozenset() and settled.roots == (tip,)


def test_what_is_referred_to_and_nowhere_is_found_missing(place: Callable[[], Path]) -> None:
    maker = Maker()
    maker.blob(NOISE)
    maker.commit(maker.tree((0o100644, b"a", b"\1" * 20)))
    settled, _ = indexed(place(), maker.pack(), ())
    assert settled.needs == frozenset({b"\1" * 20})


@pytest.mark.parametrize("there", [True, False])
def test_a_git_that_is_old_or_gone_is_not_asked(place: Callable[[], Path], there: bool) -> None:
    here = place()
    old = here / "git"
    if there:
        old.write_text("#!/bin/sh\necho git version 2.38.1\n")
        old.chmod(0o755)
    by = ByGit(old, here, here, ())
    nowhere = here / "x.pack"
    found = index_by_git(by, nowhere, nowhere, sizes=(), limits=BY_GIT, progress=lambda text: None)
    assert found is None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path, limits=BY_GIT, git=GIT)
    yield world
    world.close()


def test_pushes_go_through_git_unnoticed(world: GitWorld) -> None:
    url = world.create()
    work = world.work("work", url)
    names = [f"{n % 7}/{n}.txt" for n in range(300)]
    world.commit(work, {name: os.urandom(200).hex() for name in names})
    world.git("push", "-q", "origin", "main", cwd=work)
    for number in range(2):
        world.commit(work, {name: os.urandom(200).hex() for name in names[number::7]})
        world.git("tag", "-am", "x", f"v{number}", cwd=work)
        world.git("push", "-q", "--follow-tags", "origin", "main", cwd=work)
    repository = world.store.repositories.get("acme", "app")
    assert world.store.fsck(repository.id).problems == ()
    objects = world.store.objects(repository.id)
    assert [pack.roots is not None for pack in objects.packs] == [True] * 3
    world.fsck(world.clone(url, "clone"))
    assert list((world.directory / "cache" / "quarantine").iterdir()) == []


def test_objects_that_go_while_git_looks_are_missed(world: GitWorld) -> None:
    """Between the check and the transaction: what the pack builds on is then looked for again."""
    url = world.create()
    work = world.work("work", url)
    world.commit(work, {"a": os.urandom(5000)})
    world.git("push", "-q", "origin", "main", cwd=work)
    world.commit(work, {"b": os.urandom(5000)})
    repository = world.store.repositories.get("acme", "app")
    old = world.store.objects(repository.id).packs
    with world.store.pushes.quarantine() as quarantine:
        packed = world.git("rev-parse", "HEAD", "HEAD~1", cwd=work).split()
        world.git("bundle", "create", "-q", "made", f"{packed[1]}..main", cwd=work)
        arrived = quarantine.admit(
            [(work / "made").read_bytes().partition(b"\n\n")[2]],
            Objects(old),
            tips=[bytes.fromhex(packed[0])],
            progress=lambda text: None,
            room=1 << 30,
        )
    assert arrived is not None and arrived.needs is None
    assert bytes.fromhex(packed[1]) in arrived.what_it_needs(world.store.limits)


def test_a_process_that_dies_with_git_in_it_refuses_the_push(
    world: GitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = world.create()
    work = world.work("work", url)
    world.commit(work, {"noise.bin": os.urandom(10_000)})
    with monkeypatch.context() as patched:
        patched.setattr(index_process, "MODULE", "no_such_module")
        assert "died; push again" in world.git("push", "origin", "main", cwd=work, ok=False)
    assert list((world.directory / "cache" / "quarantine").iterdir()) == []
    world.git("push", "-q", "origin", "main", cwd=work)
