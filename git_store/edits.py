"""Writing to a branch without a git client: a set of changes becomes a commit and a push.

Builds the new blobs, trees and commit as a small pack, which then goes the way of every other
pack: quarantine, checks, transaction, event, listener. Called through `GitStore.commit`.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dulwich.objects import ObjectID, serialize_tree

from git_store.errors import BadName, ObjectNotFound, OverLimit
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.packfile import (
    BLOB,
    COMMIT,
    DIRECTORY,
    REGULAR,
    TREE,
    TYPE_NAMES,
    entries,
    entry_header,
    pack_header,
    references,
)
from git_store.treecheck import checked_references

_AUTHOR = re.compile(r"[^<>\n\0]* ?<[^<>\n\0]*>")
_FORMAT = 0o170000
_PATH_CHARACTERS = 4096
_EDITS_MAX = 10_000
_MESSAGE_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEdit:
    """A write (`content`), a move (`moved_from`), or a deletion (neither) of one file."""

    path: str
    content: bytes | None
    executable: bool = False  # of a write; a move keeps what was
    moved_from: str | None = None


@dataclass(frozen=True, slots=True)
class NewCommit:
    sha: str
    pack: Sequence[bytes]  # the chunks of a pack


class _Directory:
    """A directory being changed: entries by name, each (mode, raw sha), or a changed directory."""

    def __init__(self, entries: dict[bytes, tuple[int, bytes]]) -> None:
        self.entries = entries
        self.below: dict[bytes, _Directory] = {}


class CommitBuilder:
    """Collects new objects on top of those of a repository."""

    def __init__(self, objects: Objects, limits: Limits) -> None:
        self._objects = objects
        self._limits = limits
        self._new: dict[bytes, tuple[int, bytes]] = {}

    def build(
        self,
        edits: Sequence[FileEdit],
        *,
        parent: str | None,
        message: str,
        author: str,
        at_seconds: int,
    ) -> NewCommit:
        """Raises BadName (field path, author or message), ObjectNotFound, OverLimit."""
        _check(edits, message, author)
        root = self._root(parent)
        # What is moved is taken away first, so that files may change places.
        taken = {edit.path: self._take(root, edit) for edit in edits if edit.moved_from is not None}
        for edit in edits:
            self._apply(root, edit, taken.get(edit.path))
        tree = self._save(root) or self._add(TREE, b"")
        signature = f"{author} {at_seconds} +0000"
        lines = [f"tree {tree.hex()}"]
        if parent is not None:
            lines.append(f"parent {parent}")
        lines += [f"author {signature}", f"committer {signature}", "", message]
        commit = self._add(COMMIT, "\n".join(lines).encode("utf-8"))
        return NewCommit(commit.hex(), list(self._pack()))

    def _root(self, parent: str | None) -> _Directory:
        if parent is None:
            return _Directory({})
        kind, content = self._objects.get(bytes.fromhex(parent))
        return self._open(references(kind, content)[0])

    def _open(self, tree: bytes) -> _Directory:
        content = self._objects.get(tree)[1]
        return _Directory(
            {name: (mode, bytes.fromhex(sha.decode())) for name, mode, sha in entries(content)}
        )

    def _apply(self, root: _Directory, edit: FileEdit, moved: tuple[int, bytes] | None) -> None:
        if edit.content is None and moved is None:
            self._remove(root, edit.path, "delete")
            return
        directory, name = self._directory_of(root, edit.path)
        there = directory.entries.get(name)
        if name in directory.below or (there is not None and there[0] & _FORMAT == DIRECTORY):
            raise BadName(f"path {edit.path!r} is a directory", field="path")
        directory.entries[name] = moved or self._written(edit)

    def _take(self, root: _Directory, edit: FileEdit) -> tuple[int, bytes]:
        """Take away what is to be moved, and answer what it was."""
        assert edit.moved_from is not None
        if edit.content is not None:
            raise BadName(f"path {edit.path!r} is both written and moved to", field="path")
        return self._remove(root, edit.moved_from, "move")

    def _remove(self, root: _Directory, path: str, what: str) -> tuple[int, bytes]:
        directory, name = self._directory_of(root, path)
        there = directory.entries.get(name)
        if there is None or there[0] & _FORMAT == DIRECTORY or name in directory.below:
            raise ObjectNotFound(f"there is no file {path!r} to {what}")
        return directory.entries.pop(name)

    def _written(self, edit: FileEdit) -> tuple[int, bytes]:
        assert edit.content is not None
        if len(edit.content) > self._limits.blob_bytes:
            raise OverLimit(
                f"{edit.path!r} has {len(edit.content)} bytes, over the limit of"
                f" {self._limits.blob_bytes} (blob_bytes)",
                limit="blob_bytes",
            )
        blob = self._add(BLOB, edit.content)
        return REGULAR | (0o755 if edit.executable else 0o644), blob

    def _directory_of(self, root: _Directory, path: str) -> tuple[_Directory, bytes]:
        """The opened directory a path is in, and its last part."""
        *parents, name = _parts(path)
        directory = root
        for part in parents:
            directory = self._enter(directory, part, path)
        return directory, name

    def _enter(self, directory: _Directory, part: bytes, path: str) -> _Directory:
        if part not in directory.below:
            there = directory.entries.pop(part, None)
            if there is not None and there[0] & _FORMAT != DIRECTORY:
                raise BadName(
                    f"path {path!r} leads through {os.fsdecode(part)!r}, which is a file",
                    field="path",
                )
            directory.below[part] = _Directory({}) if there is None else self._open(there[1])
        return directory.below[part]

    def _save(self, directory: _Directory) -> bytes | None:
        """The name of the directory's tree; None if nothing is left in it."""
        for name, below in directory.below.items():
            tree = self._save(below)
            if tree is not None:
                directory.entries[name] = (DIRECTORY, tree)
        if not directory.entries:
            return None
        ordered = sorted(
            directory.entries.items(),
            key=lambda item: item[0] + b"/" if item[1][0] & _FORMAT == DIRECTORY else item[0],
        )
        content = b"".join(
            serialize_tree(
                [(name, mode, ObjectID(sha.hex().encode())) for name, (mode, sha) in ordered]
            )
        )
        checked_references(TREE, content)
        return self._add(TREE, content)

    def _add(self, kind: int, content: bytes) -> bytes:
        name = hashlib.sha1(b"%s %d\0" % (TYPE_NAMES[kind], len(content)) + content).digest()
        self._new[name] = (kind, content)
        return name

    def _pack(self) -> Iterator[bytes]:
        header = pack_header(len(self._new))
        digest = hashlib.sha1(header)
        yield header
        for kind, content in self._new.values():
            entry = entry_header(kind, len(content)) + zlib.compress(content)
            digest.update(entry)
            yield entry
        yield digest.digest()


def _check(edits: Sequence[FileEdit], message: str, author: str) -> None:
    if len(edits) > _EDITS_MAX:
        raise OverLimit(f"at most {_EDITS_MAX} files can be changed at once", limit="edits")
    if len({edit.path for edit in edits}) != len(edits):
        raise BadName("a path is named twice", field="path")
    if not _AUTHOR.fullmatch(author) or not author.isprintable():
        raise BadName(f"author {author[:120]!r} is not of the form 'Name <mail>'", field="author")
    if "\0" in message or len(message) > _MESSAGE_CHARACTERS or not message.strip():
        raise BadName(
            f"message must not be empty, contain NUL or be longer than {_MESSAGE_CHARACTERS}"
            " characters",
            field="message",
        )


def _parts(path: str) -> list[bytes]:
    """The parts of a path. What git forbids inside them is checked on the finished trees."""
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
    if bad or len(path) > _PATH_CHARACTERS or "\0" in path or not _encodes(path):
        raise BadName(
            f"path {path[:120]!r} is not acceptable: relative, without empty parts, '.', '..' or"
            f" '.git', at most {_PATH_CHARACTERS} characters",
            field="path",
        )
    return [part.encode("utf-8") for part in parts]


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
