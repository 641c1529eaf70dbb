"""`.gitattributes` under all its names, and how long it may be: as `git fsck --strict` decides."""

from __future__ import annotations

import pytest

from git_store.errors import BadPack
from git_store.gitattributes import LINE_MAX, check_gitattributes
from git_store.packfile import TREE
from git_store.treecheck import TreeCheck

SHA = b"\1" * 20
NAMES = [
    b".gitattributes",
    b".GitAttributes",
    b".gitattributes . .",
    b".gitattributes:$DATA",
    b"gitatt~1",
    b"GITATT~4",
    b"gi7d29~9",
    b"gi7d2~10",
    b"g~123456",
    b"~1000000",
    ".git\u200cattributes".encode(),
]
OTHERS = [b"gitatt~5", b"gi7d29~0", b"gi7d29~10", b"sub\\.gitattributes", b".gitattributesx"]
LONGEST = b"* text " + b"x" * (LINE_MAX - 8)
GOOD = [b"", LONGEST, LONGEST + b"\n" + LONGEST + b"\n", b"a\n" * 5000, b"\0" + LONGEST * 2]
BAD = [LONGEST + b"x", b"a\n" + LONGEST + b"x\nb\n", LONGEST + b"x\0"]


@pytest.mark.parametrize("name", NAMES)
def test_what_some_system_reads_as_gitattributes_is_found(name: bytes) -> None:
    check = TreeCheck()
    check.references(TREE, b"100644 " + name + b"\0" + SHA)
    assert check.attributes == {SHA}


@pytest.mark.parametrize("name", NAMES[:8])
def test_it_may_be_a_link_but_no_directory_or_submodule(name: bytes) -> None:
    check = TreeCheck()
    assert check.references(TREE, b"120000 " + name + b"\0" + SHA) == [SHA]
    assert not check.attributes
    for mode in (b"40000", b"160000"):
        with pytest.raises(BadPack, match="must be a file"):
            check.references(TREE, mode + b" " + name + b"\0" + SHA)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_of_no_concern(name: bytes) -> None:
    check = TreeCheck()
    check.references(TREE, b"40000 " + name + b"\0" + SHA)
    assert not check.attributes


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_lines_are_measured_across_slices(size: int) -> None:
    for text in GOOD:
        check_gitattributes(text[at : at + size] for at in range(0, len(text), size))
    for text in BAD:
        with pytest.raises(BadPack, match="2048 bytes or more"):
            check_gitattributes(text[at : at + size] for at in range(0, len(text), size))
