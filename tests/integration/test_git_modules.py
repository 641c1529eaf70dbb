"""`.gitmodules` and `.gitattributes` that would harm a clone: git judges as we do, and pushes of
them are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from git_store import Limits
from git_store.errors import BadPack
from git_store.packfile import TREE
from git_store.treecheck import checked_references
from tests.integration.git_world import GIT, GitWorld
from tests.unit.git_store import test_gitattributes as attributes
from tests.unit.git_store.test_gitmodules import BAD, GOOD, NAMES

EVIL = '[submodule "x"]\n\tpath = x\n\turl = -u./run\n'


def git(at: Path, *arguments: str, given: bytes = b"") -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=at, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout.decode()


def test_git_refuses_the_same_contents(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", ".")
    texts = [*GOOD, *(bad for _, bad in BAD)]
    for number, text in enumerate(texts):
        (tmp_path / str(number)).write_bytes(text.encode())
    blobs = git(tmp_path, "hash-object", "-w", *map(str, range(len(texts)))).split()
    trees = [f"100644 blob {blob}\t.gitmodules\n" for blob in blobs]
    git(tmp_path, "mktree", "--batch", given="\n".join(trees).encode())
    said = git(tmp_path, "fsck", "--strict")
    for blob, text in zip(blobs, texts, strict=True):
        assert (f"error in blob {blob}" not in said) == (text in GOOD), text


def test_git_refuses_the_same_attributes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", ".")
    texts = [*attributes.GOOD, *attributes.BAD]
    for number, text in enumerate(texts):
        (tmp_path / str(number)).write_bytes(text)
    blobs = git(tmp_path, "hash-object", "-w", *map(str, range(len(texts)))).split()
    listed = [b"100644 blob %s\t.gitattributes\n" % blob.encode() for blob in blobs]
    trees = git(tmp_path, "mktree", "--batch", given=b"\n".join(listed)).split()
    said = git(tmp_path, "fsck", "--strict")
    for blob, text in zip(blobs, texts, strict=True):
        assert (f"error in blob {blob}" not in said) == (text in attributes.GOOD), text
    tree = git(tmp_path, "mktree", given=b"040000 tree %s\t.gitattributes\n" % trees[0].encode())
    assert "gitattributesBlob" in git(tmp_path, "fsck", "--strict"), tree


def test_git_reads_the_same_names_as_attributes(tmp_path: Path) -> None:
    for number, name in enumerate([*attributes.NAMES, *attributes.OTHERS]):
        place = tmp_path / str(number)
        place.mkdir()
        git(place, "init", "-q", ".")
        (place / "long").write_bytes(attributes.BAD[0])
        blob = git(place, "hash-object", "-w", "long").strip().encode()
        git(place, "mktree", given=b"100644 blob %s\t%s\n" % (blob, name))
        refused = "gitattributesLineLength" in git(place, "fsck", "--strict")
        assert refused == (name in attributes.NAMES), name


def test_git_refuses_the_same_links(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", ".")
    (tmp_path / "target").write_text("elsewhere")
    (blob,) = git(tmp_path, "hash-object", "-w", "target").split()
    others = [b".gitattributes", b".gitignore", b".mailmap", b"gi7eba~10", b"gitmod~5", b"~123456"]
    names = [*NAMES, *others]
    given = b"\n".join(b"120000 blob %s\t%s\n" % (blob.encode(), name) for name in names)
    trees = git(tmp_path, "mktree", "--batch", given=given).split()
    said = git(tmp_path, "fsck", "--strict")
    for name, tree in zip(names, trees, strict=True):
        refused = f"error in tree {tree}: gitmodulesSymlink" in said
        assert refused == (name in NAMES), name
        try:
            checked_references(TREE, b"120000 %s\0%s" % (name, bytes.fromhex(blob)))
            assert not refused, name
        except BadPack:
            assert refused, name


@pytest.fixture(params=["in the server", "in a process", "by git"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GitWorld]:
    apart = replace(Limits(), process_bytes=100, inline_pack_bytes=50, git_objects_min=1)
    limits = Limits() if request.param == "in the server" else apart
    made = GitWorld(tmp_path, limits=limits, git=GIT if request.param == "by git" else None)
    yield made
    made.close()


def test_pushes_of_them_are_refused_and_leave_nothing(world: GitWorld) -> None:
    url = world.create()
    work = world.work("evil")
    world.commit(work, {"harmless.txt": EVIL})
    world.git("push", "-q", url, "main", cwd=work)
    good = world.head(work)
    world.commit(work, {".gitmodules": EVIL})  # the file is there already, under another name
    said = world.git("push", url, "main", cwd=work, ok=False)
    assert "submodule with the url '-u./run'" in said
    world.git("reset", "-q", "--hard", good, cwd=work)
    blob = world.head(work, "HEAD:harmless.txt")  # a link, which git itself would not add
    tree = git(work, "mktree", given=f"120000 blob {blob}\t.gitmodules\n".encode()).strip()
    link = world.git("commit-tree", "-m", "link", "-p", good, tree, cwd=work).strip()
    said = world.git("push", url, f"{link}:refs/heads/main", cwd=work, ok=False)
    assert ".gitmodules', which must be a file" in said
    world.commit(work, {".gitmodules": GOOD[0]})
    world.git("push", "-q", url, "main", cwd=work)
    clone = world.clone(url, "clone")
    assert world.head(clone) == world.head(work)


def test_pushes_of_harmful_attributes_are_refused(world: GitWorld) -> None:
    url = world.create()
    work = world.work("long")
    world.commit(work, {"harmless.txt": attributes.BAD[0]})
    world.git("push", "-q", url, "main", cwd=work)
    good = world.head(work)
    world.commit(work, {"a/.gitattributes": attributes.BAD[0]})  # there already, under another name
    said = world.git("push", url, "main", cwd=work, ok=False)
    assert "a .gitattributes has a line of 2048 bytes or more" in said
    world.git("reset", "-q", "--hard", good, cwd=work)
    world.commit(work, {"a/.gitattributes": attributes.GOOD[1]})
    world.git("push", "-q", url, "main", cwd=work)
