"""Reading and exporting trees that nobody should trust."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from git_store.errors import BadPack, ObjectNotFound, OverLimit
from git_store.files import EntryKind, Files
from git_store.limits import Limits
from tests.unit.git_store.made import Maker

FILE, EXECUTABLE, LINK, DIRECTORY, SUBMODULE = 0o100644, 0o100755, 0o120000, 0o40000, 0o160000


@pytest.fixture
def made() -> Maker:
    return Maker()


def files(made: Maker, **limits: int) -> Files:
    return Files(made.objects(), Limits(**limits))


def test_links_are_made_and_never_followed(made: Maker, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = made.blob(os.fsencode(outside))
    inner = made.tree((FILE, b"x", made.blob(b"evil")))
    good = made.tree((LINK, b"link", link), (FILE, b"z", made.blob(b"fine")))
    bad = made.tree((LINK, b"link", link), (DIRECTORY, b"link", inner))
    commits = made.commit(good), made.commit(bad)
    reader = files(made)
    target = tmp_path / "good"
    target.mkdir()
    reader.export(commits[0].hex(), target)
    assert (target / "link").is_symlink() and (target / "z").read_bytes() == b"fine"
    target = tmp_path / "bad"
    target.mkdir()
    with pytest.raises((BadPack, FileExistsError)):
        reader.export(commits[1].hex(), target)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", [b"..", b".git", b"a/../../x", b"/etc/x", b""])
def test_names_that_lead_out_are_refused(made: Maker, tmp_path: Path, name: bytes) -> None:
    commit = made.commit(made.tree((FILE, name, made.blob(b"evil"))))
    target = tmp_path / "in"
    target.mkdir()
    with pytest.raises(BadPack):
        files(made).export(commit.hex(), target)
    assert list(target.iterdir()) == [] and [p.name for p in tmp_path.iterdir()] == ["in"]


def test_modes_links_and_submodules_survive(made: Maker, tmp_path: Path) -> None:
    tree = made.tree(
        (LINK, b"a", made.blob(b"../b")),
        (EXECUTABLE, b"b", made.blob(b"#!")),
        (SUBMODULE, b"c", b"\1" * 20),
        (FILE, b"\xff\n", made.blob(b"odd")),
    )
    commit = made.commit(tree).hex()
    reader = files(made)
    assert reader.export(commit, tmp_path) == tree.hex()
    assert os.readlink(tmp_path / "a") == "../b"
    assert os.access(tmp_path / "b", os.X_OK)
    assert (tmp_path / "c").is_dir()
    assert (tmp_path / "\udcff\n").read_bytes() == b"odd"
    kinds = [entry.kind for entry in reader.list(commit)]
    assert kinds == [EntryKind.LINK, EntryKind.FILE, EntryKind.SUBMODULE, EntryKind.FILE]
    odd = reader.list(commit)[-1]
    assert reader.read(commit, odd.path) == b"odd"


def test_the_same_tree_many_times_over_is_cut_off(made: Maker, tmp_path: Path) -> None:
    """A few kilobytes can name a tree of any size."""
    tree = made.tree((FILE, b"f", made.blob(b"x" * 100)))
    for _ in range(30):
        tree = made.tree((DIRECTORY, b"a", tree), (DIRECTORY, b"b", tree))
    commit = made.commit(tree).hex()
    with pytest.raises(OverLimit, match="export_files"):
        files(made, export_files=500).export(commit, tmp_path)


def test_bytes_and_depth_are_cut_off(made: Maker, tmp_path: Path) -> None:
    large = made.commit(made.tree((FILE, b"f", made.blob(b"x" * 100)))).hex()
    tree = made.tree()
    for _ in range(2000):
        tree = made.tree((DIRECTORY, b"d", tree))
    deep = made.commit(tree).hex()
    with pytest.raises(OverLimit, match="export_bytes"):
        files(made, export_bytes=50).export(large, tmp_path)
    target = tmp_path / "deep"
    target.mkdir()
    with pytest.raises(OverLimit, match="nested deeper"):
        files(made).export(deep, target)
    with pytest.raises(OverLimit, match="nested deeper"):
        list(files(made).walk(deep))
    with pytest.raises(OverLimit, match="nested deeper"):
        files(made).changed_paths(large, deep)


def test_what_is_not_what_it_should_be_is_said(made: Maker, tmp_path: Path) -> None:
    blob, tree = made.blob(b"x"), made.tree()
    swapped = made.commit(made.tree((DIRECTORY, b"d", blob), (FILE, b"f", tree))).hex()
    reader = files(made)
    with pytest.raises(BadPack):
        reader.export(swapped, tmp_path)
    with pytest.raises(ObjectNotFound):
        reader.read(swapped, "f")
    with pytest.raises(BadPack):
        reader.list(swapped, "d")
    for sha in (blob.hex(), tree.hex(), "1" * 40, "", "main", "A" * 40, "1" * 41):
        with pytest.raises(ObjectNotFound):
            reader.commit(sha)


def test_a_changed_mode_or_kind_is_a_change(made: Maker) -> None:
    blob = made.blob(b"x")
    below = made.tree((FILE, b"y", blob))
    one = made.commit(made.tree((FILE, b"a", blob), (FILE, b"d", blob))).hex()
    two = made.commit(made.tree((EXECUTABLE, b"a", blob), (DIRECTORY, b"d", below))).hex()
    assert files(made).changed_paths(one, two) == ["a", "d", "d/y"]
    assert files(made).changed_paths(two, one) == ["a", "d", "d/y"]


def test_messages_in_other_encodings_are_read(made: Maker) -> None:
    tree = made.tree()
    text = f"tree {tree.hex()}\nauthor J\xfcrgen <j@b> 1 +0000\ncommitter A <a@b> 2 +0000\n"
    raw = text.encode("latin-1") + b"encoding ISO-8859-1\n\ngr\xfc\xdfe\n"
    commit = made.add(1, raw).hex()
    info = files(made).commit(commit)
    assert (info.author, info.message, info.committed_ms) == ("Jürgen <j@b>", "grüße\n", 2000)
