"""Checks the trees that a client sent: what could harm a checkout is refused.

Nine trees in ten differ in one entry from one before, so entries are checked once and then known.
index.py holds one for each pack.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dulwich.index import validate_path_element_hfs, validate_path_element_ntfs

from git_store.aliases import may_be_alias
from git_store.errors import BadPack
from git_store.gitattributes import is_gitattributes
from git_store.gitmodules import is_gitmodules
from git_store.packfile import DIRECTORY, GITLINK, LINK, REGULAR, TREE, raw_entries, references

_MODE = re.compile(rb"[0-7]{1,7}")
_SHA = 20
_FORMAT = 0o170000
_FORMATS = {DIRECTORY, REGULAR, LINK, GITLINK}
_KNOWN = 10_000  # entries; then all are forgotten


class TreeCheck:
    def __init__(self) -> None:
        self._keys: dict[bytes, bytes] = {}  # entry -> what trees are sorted by
        self._names: dict[bytes, bytes] = {}
        self.modules: set[bytes] = set()  # names of the files found at .gitmodules
        self.attributes: set[bytes] = set()  # and at .gitattributes

    def references(self, kind: int, content: bytes) -> Sequence[bytes]:
        """As packfile's `references`, but of a tree only those not answered before. Raises
        BadPack."""
        if kind != TREE:
            return references(kind, content)
        entries = raw_entries(content)
        if len(self._keys) > _KNOWN:
            self._keys.clear()
            self._names.clear()
        fresh = set(entries).difference(self._keys)
        found = [target for entry in fresh if (target := self._check(entry)) is not None]
        keys = list(map(self._keys.__getitem__, entries))
        if keys != sorted(keys):
            raise BadPack("a tree is not sorted")
        if len(set(map(self._names.__getitem__, entries))) != len(entries):
            raise BadPack("a tree has two entries of one name")
        return found

    def _check(self, entry: bytes) -> bytes | None:
        """Learn an entry; answers what it refers to, unless it is a submodule."""
        octal, space, name = entry[: -_SHA - 1].partition(b" ")
        if not space or _MODE.fullmatch(octal) is None:
            raise BadPack("a tree cannot be parsed: it has an entry without a mode")
        mode = int(octal, 8)
        if mode & _FORMAT not in _FORMATS:
            raise BadPack("a tree has an entry with a mode git does not know")
        check_name(name)
        if may_be_alias(name):
            self._check_alias(name, mode & _FORMAT, entry[-_SHA:])
        self._names[entry] = name
        self._keys[entry] = name + b"/" if mode == DIRECTORY else name
        return None if mode == GITLINK else entry[-_SHA:]

    def _check_alias(self, name: bytes, form: int, target: bytes) -> None:
        if is_gitmodules(name):
            if form != REGULAR:
                raise BadPack(f"a tree has {name!r}, which must be a file and no link")
            self.modules.add(target)
        if is_gitattributes(name) and form != LINK:  # git does not follow it
            if form != REGULAR:
                raise BadPack(f"a tree has {name!r}, which must be a file")
            self.attributes.add(target)


def check_name(name: bytes) -> None:
    """Raises BadPack for a name that leads out of a checkout, or into its .git."""
    if not name or b"/" in name:
        raise BadPack("a tree has an entry with an empty name or a slash in its name")
    lower = name.lower()
    if lower in (b".", b"..", b".git"):
        raise BadPack("a tree has an entry named '.', '..' or '.git'")
    if lower.startswith((b".git", b"git~")) or b"\\" in name or not name.isascii():
        git = b"git" in lower and not validate_path_element_ntfs(name)
        if git or (not name.isascii() and not validate_path_element_hfs(name) and _is_text(name)):
            raise BadPack(f"a tree has an entry that some systems read as .git: {name!r}")


def _is_text(name: bytes) -> bool:
    """HFS names are UTF-8; dulwich also calls bytes that are not UTF-8 invalid there."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def checked_references(kind: int, content: bytes) -> Sequence[bytes]:
    """`TreeCheck.references` of a single object."""
    return TreeCheck().references(kind, content)
