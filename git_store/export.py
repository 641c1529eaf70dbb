"""Writing a tree into a directory, whatever the tree says.

The tree is not trusted: a file is only ever made where nothing is, through the open directory it
belongs in, so no link inside the tree can lead a later write elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from git_store.errors import BadPack, OverLimit
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.packfile import BLOB, DIRECTORY, GITLINK, LINK, TREE, entries
from git_store.treecheck import checked_references

_FORMAT = 0o170000
_DEPTH = 200  # directories inside directories: each holds a descriptor while it is written
_LINK_BYTES = 4095


class Exporter:
    def __init__(self, objects: Objects, limits: Limits) -> None:
        self._objects = objects
        self._limits = limits
        self._files = 0
        self._bytes = 0

    def export(self, tree: bytes, into: Path) -> None:
        """Raises BadPack for a tree that no checkout should follow, OverLimit, OSError."""
        directory = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._directory(tree, directory, 0)
        finally:
            os.close(directory)

    def _directory(self, tree: bytes, directory: int, depth: int) -> None:
        if depth > _DEPTH:
            raise OverLimit(f"directories are nested deeper than {_DEPTH}", limit="depth")
        kind, content = self._objects.get(tree)
        if kind != TREE:
            raise BadPack(f"{tree.hex()} should be a tree")
        checked_references(kind, content)  # no `..`, no `.git`, no slash, nothing twice
        for name, mode, child in entries(content):
            self._count()
            sha = bytes.fromhex(child.decode())
            if mode & _FORMAT in (DIRECTORY, GITLINK):
                os.mkdir(name, 0o755, dir_fd=directory)
                if mode & _FORMAT == DIRECTORY:
                    self._below(name, sha, directory, depth)
            elif mode & _FORMAT == LINK:
                os.symlink(self._link(sha), name, dir_fd=directory)
            else:
                self._file(sha, name, 0o755 if mode & 0o100 else 0o644, directory)

    def _below(self, name: bytes, tree: bytes, directory: int, depth: int) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        below = os.open(name, flags, dir_fd=directory)
        try:
            self._directory(tree, below, depth + 1)
        finally:
            os.close(below)

    def _file(self, blob: bytes, name: bytes, mode: int, directory: int) -> None:
        self._blob(blob)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(name, flags, mode, dir_fd=directory)
        with open(descriptor, "wb") as file:
            for content in self._objects.slices(blob):
                file.write(content)

    def _link(self, blob: bytes) -> bytes:
        if self._blob(blob) > _LINK_BYTES:
            raise BadPack(f"a link's target is longer than {_LINK_BYTES} bytes")
        target = self._objects.get(blob)[1]
        if not target or b"\0" in target:
            raise BadPack("a link without a proper target")
        return target

    def _blob(self, blob: bytes) -> int:
        about = self._objects.info(blob)
        if about is None or about[0] != BLOB:
            raise BadPack(f"{blob.hex()} should be a file")
        self._bytes += about[1]
        if self._bytes > self._limits.export_bytes:
            raise OverLimit(
                f"the tree has more than {self._limits.export_bytes} bytes (export_bytes)",
                limit="export_bytes",
            )
        return about[1]

    def _count(self) -> None:
        self._files += 1
        if self._files > self._limits.export_files:
            raise OverLimit(
                f"the tree has more than {self._limits.export_files} entries (export_files)",
                limit="export_files",
            )
