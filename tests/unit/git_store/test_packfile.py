"""What a client may not send: trees that could harm a checkout, objects that cannot be read."""

from __future__ import annotations

import pytest

from git_store.errors import BadPack
from git_store.packfile import (
    COMMIT,
    TAG,
    TREE,
    commit_time,
    entry_at,
    entry_header,
    references,
)
from git_store.treecheck import checked_references

SHA = b"\1" * 20


def tree(*names: bytes, mode: bytes = b"100644") -> bytes:
    return b"".join(mode + b" " + name + b"\0" + SHA for name in names)


@pytest.mark.parametrize(
    "name",
    [
        b".",
        b"..",
        b".git",
        b".GiT",
        b"a/b",
        b"",
        b"git~1",
        b".git ",
        b".git.",
        b".git::$INDEX_ALLOCATION",
        ".g\u200cit".encode(),
        ".\ufeffgit".encode(),
    ],
)
def test_names_that_lead_out_or_into_git_are_refused(name: bytes) -> None:
    with pytest.raises(BadPack):
        checked_references(TREE, tree(name))
    with pytest.raises(BadPack):
        checked_references(TREE, tree(b"%a", name, b"\xff"))


@pytest.mark.parametrize(
    "name",
    [
        b".gitignore",
        b".gitmodules",
        b"git",
        b"a.git",
        b"...",
        b" ",
        "ünï".encode(),
        b"latin-\xe9",
        b"~",
        b"new\nline",
        b"con",
    ],
)
def test_ordinary_names_are_accepted(name: bytes) -> None:
    assert checked_references(TREE, tree(name)) == [SHA]


def test_trees_are_sorted_and_have_each_name_once() -> None:
    checked_references(TREE, tree(b"a-b") + tree(b"a", mode=b"40000") + tree(b"a0"))
    for bad in (tree(b"b", b"a"), tree(b"a", b"a"), tree(b"a", mode=b"40000") + tree(b"a-b")):
        with pytest.raises(BadPack):
            checked_references(TREE, bad)


@pytest.mark.parametrize("mode", [b"777777", b"0", b"20000", b"x", b""])
def test_modes_git_does_not_know_are_refused(mode: bytes) -> None:
    with pytest.raises(BadPack):
        checked_references(TREE, tree(b"a", mode=mode))


def test_old_modes_are_accepted() -> None:
    assert checked_references(TREE, tree(b"a", mode=b"100664")) == [SHA]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (COMMIT, b""),
        (COMMIT, b"tree xyz\n"),
        (COMMIT, b"tree " + b"g" * 40 + b"\n"),
        (COMMIT, b"tree " + b"1" * 40 + b"\nparent 12\n"),
        (TAG, b"object 1\n"),
        (TAG, b""),
        (TREE, b"100644 a\0short"),
    ],
)
def test_objects_that_cannot_be_read_are_refused(kind: int, content: bytes) -> None:
    with pytest.raises(BadPack):
        references(kind, content)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (b"committer A <a@b> 12 +0000", 12),
        (b"committer A <a@b> -5 +0000", 0),
        (b"committer A <a@b> x +0000", 0),
        (b"committer", 0),
        (b"committer A <a@b> 99999999999999999999999 +0000", 1 << 40),
    ],
)
def test_odd_times_of_commits_are_survived(line: bytes, seconds: int) -> None:
    assert commit_time(b"tree x\n" + line + b"\n\nm") == seconds


@pytest.mark.parametrize("size", [0, 15, 16, 2047, 2048, 1 << 20, 1 << 40])
@pytest.mark.parametrize("base", [None, 1, 127, 128, 16511, 16512, 1 << 33])
def test_an_entry_header_reads_as_it_was_written(size: int, base: int | None) -> None:
    kind = 3 if base is None else 6
    header = entry_header(kind, size, base)
    assert entry_at(header + b"x", 0) == (kind, size, len(header), base)


@pytest.mark.parametrize("header", [b"\xbf" * 40, b"\xef\x01" + b"\xff" * 40])
def test_impossible_sizes_are_refused(header: bytes) -> None:
    with pytest.raises(BadPack):
        entry_at(header, 0)
