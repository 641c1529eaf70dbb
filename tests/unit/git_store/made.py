"""Objects made in memory, for tests of what reads them."""

from __future__ import annotations

import hashlib
import zlib

from git_store.index import index_bytes, index_pack
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.pack import Pack
from git_store.packfile import (
    BLOB,
    COMMIT,
    TREE,
    TYPE_NAMES,
    entry_at,
    entry_header,
    inflate,
    pack_header,
)


class Maker:
    """Collects objects, then packs them."""

    def __init__(self) -> None:
        self.made: dict[bytes, tuple[int, bytes]] = {}

    def add(self, kind: int, content: bytes) -> bytes:
        name = hashlib.sha1(b"%s %d\0" % (TYPE_NAMES[kind], len(content)) + content).digest()
        self.made[name] = (kind, content)
        return name

    def blob(self, content: bytes) -> bytes:
        return self.add(BLOB, content)

    def tree(self, *entries: tuple[int, bytes, bytes]) -> bytes:
        """Entries as they are, in the order given: trees may be bad."""
        lines = [b"%o %s\0" % (mode, name) + sha for mode, name, sha in entries]
        return self.add(TREE, b"".join(lines))

    def commit(self, tree: bytes, *parents: bytes, time: int = 1, message: str = "m") -> bytes:
        lines = [f"tree {tree.hex()}", *(f"parent {parent.hex()}" for parent in parents)]
        lines += [f"author A <a@b> {time} +0000", f"committer A <a@b> {time} +0000", "", message]
        return self.add(COMMIT, "\n".join(lines).encode())

    def pack(self) -> bytes:
        entries = [entry_header(k, len(c)) + zlib.compress(c) for k, c in self.made.values()]
        content = pack_header(len(entries)) + b"".join(entries)
        return content + hashlib.sha1(content).digest()

    def objects(self) -> Objects:
        return Objects([opened(self.pack(), checked=False)])


def opened(data: bytes, *, checked: bool = True) -> Pack:
    """A pack in memory. `checked` False takes bad trees, too, as an old store might hold."""
    if checked:
        indexed = index_pack(data, limits=Limits(), lookup=lambda name: None)
        return Pack("pack_test", data, index_bytes(indexed.entries, data[-20:]), None)
    return Pack("pack_test", data, index_bytes(_entries(data), data[-20:]), None)


def _entries(data: bytes) -> list[tuple[bytes, int, int]]:
    position, entries = 12, []
    while position < len(data) - 20:
        kind, size, start, _ = entry_at(data, position)
        content, end = inflate(data, start, size)
        name = hashlib.sha1(b"%s %d\0" % (TYPE_NAMES[kind], size) + content).digest()
        entries.append((name, position, 0))
        position = end
    return sorted(entries)
