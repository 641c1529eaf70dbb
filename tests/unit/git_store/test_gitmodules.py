"""`.gitmodules` under all its names, and what it may say: as `git fsck --strict` decides."""

from __future__ import annotations

import pytest

from git_store.errors import BadPack
from git_store.gitmodules import check_gitmodules, is_gitmodules
from git_store.packfile import TREE
from git_store.treecheck import TreeCheck

SHA = b"\1" * 20
NAMES = [
    b".gitmodules",
    b".GitModules",
    b".gitmodules .",
    b".gitmodules::$INDEX_ALLOCATION",
    b"gitmod~1",
    b"GITMOD~4",
    b"gi7eba~9",
    b"gi7eb~10",
    b"g~123456",
    b"~1000000",
    b"sub\\.gitmodules",
    ".git\u200cmodules".encode(),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [b"120000", b"40000", b"160000"])
def test_only_a_file_may_be_what_some_system_reads_as_gitmodules(name: bytes, mode: bytes) -> None:
    check = TreeCheck()
    with pytest.raises(BadPack, match="must be a file"):
        check.references(TREE, mode + b" " + name + b"\0" + SHA)
    assert check.references(TREE, b"100644 " + name + b"\0" + SHA) == [SHA]
    assert check.modules == {SHA}


@pytest.mark.parametrize(
    "name",
    [b"gitmodules", b".gitmodules2", b"gitmod~5", b"gi7eba~0", b"gi7eba~10", b"gi7d29~1"]
    + [b".gitattributes", b".gitignore", b".mailmap", b"x.gitmodules", b".gitmodule\xff"],
)
def test_others_may_be_links_as_in_git(name: bytes) -> None:
    assert not is_gitmodules(name)
    check = TreeCheck()
    check.references(TREE, b"120000 " + name + b"\0" + SHA)
    assert not check.modules


GOOD = [
    '[submodule "a/b"]\n\tpath = a/b\n\turl = https://example.org/b.git\n',
    '[submodule "x"]\n url=../b.git\n update = rebase\n branch = -x\n',
    '[submodule "x"]\n url = "git@example.org:b.git" ; -c\n',
    '[submodule "x"]\n url = /srv/b.git\n path = "a-b"\n',
    '[submodule "x"]\n url = ssh://host/-x\n',
    '[submodule "x"]\n url = ../../a:b\n',
    '[submodule "x"]\n url = git://example.org/%2e/b\n',
    '[submodule "x"]\n url = http::https://example.org\n',
    '[submodule "x..y"]\n url = a\n',
    "[submodule]\n url = -x\n",
    '[other "../x"]\n url = -x\n',
    '[submodule "x',
    "[submodule.../x]\n",
    "nothing but words",
    "",
    "\ufeff# only a comment",
]


@pytest.mark.parametrize("text", GOOD)
def test_ordinary_and_unreadable_ones_pass(text: str) -> None:
    check_gitmodules(text.encode())


BAD = [
    ("name", '[submodule "../x"]\n path = a\n'),
    ("name", '[submodule "a\\\\..\\\\b"]\n path = a\n'),
    ("name", '[submodule ""]\n path = a\n'),
    ("url", '[submodule "x"]\n\turl = -b\n'),
    ("url", '[SubModule "x"]\r\n\tURL = "-"b\r\n'),
    ("url", '[submodule "x"] url = \\\n-b'),
    ("url", '[submodule "x"]\n path = a # c\n url = ../../../../:localhost:8080/foo\n'),
    ("url", '[submodule "x"]\n url = ./..\\\\/host\n'),
    ("url", '[submodule "x"]\n url = ./%0ahost/foo\n'),
    ("url", '[submodule "x"]\n url = https://example.org/%0ahost\n'),
    ("url", '[submodule "x"]\n url = https:///example.org/a\n'),
    ("url", '[submodule "x"]\n url = https::example.org/a\n'),
    ("url", '[submodule "x"]\n url = "git://example.org/\\nhost"\n'),
    ("path", '[submodule "x"]\n path = -a\n'),
    ("update", '[submodule "x"]\n update = !touch\n'),
    ("update", '[submodule "x"]\n update = !touch\n]broken'),
]


@pytest.mark.parametrize(("what", "text"), BAD)
def test_what_git_refuses_is_refused(what: str, text: str) -> None:
    with pytest.raises(BadPack, match=f"with the {what} "):
        check_gitmodules(text.encode())


@pytest.mark.parametrize("text", ["[" * 100_000, '[submodule "x"]\n' + "a=" + '"' * 99_999] * 2)
def test_hostile_ones_take_no_time(text: str) -> None:
    check_gitmodules(text.encode())
