"""Reading a repository without a git client: commits, files, trees, differences, export.

Reads only; writing is edits.py. Made by `GitStore.files` and handed to push listeners, where it
also sees the objects of the push that is not accepted yet.
"""

from __future__ import annotations

import builtins
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from git_store.archive import ArchiveFormat, Archiver
from git_store.diffs import Differ, FileDiff, tree_changes
from git_store.errors import BadPack, ObjectNotFound, OverLimit
from git_store.export import Exporter
from git_store.graph import Graph
from git_store.history import write_history
from git_store.limits import Limits
from git_store.names import is_sha
from git_store.objects import Objects
from git_store.packfile import BLOB, COMMIT, DIRECTORY, GITLINK, LINK, TREE, Tree, entries

_FORMAT = 0o170000
_DEPTH = 512  # directories inside directories


class EntryKind(StrEnum):
    FILE = "file"
    DIRECTORY = "dir"
    LINK = "link"
    SUBMODULE = "submodule"


_KINDS = {DIRECTORY: EntryKind.DIRECTORY, LINK: EntryKind.LINK, GITLINK: EntryKind.SUBMODULE}


@dataclass(frozen=True, slots=True)
class TreeEntry:
    name: str  # of the entry alone; bytes that are not UTF-8 come as surrogate escapes
    path: str  # from the repository's root
    kind: EntryKind
    executable: bool
    sha: str


@dataclass(frozen=True, slots=True)
class CommitInfo:
    sha: str
    tree: str
    parents: tuple[str, ...]
    author: str  # Name <mail>
    committed_ms: int
    message: str  # undecodable bytes replaced


class Files:
    """The content of one repository. One per request: it caches and is not for two threads."""

    def __init__(self, objects: Objects, limits: Limits) -> None:
        self._objects = objects
        self._limits = limits
        self._graph = Graph(objects)

    # --- commits ----------------------------------------------------------------------------------

    def commit(self, sha: str) -> CommitInfo:
        """A commit, or the commit a tag object points at. Raises ObjectNotFound."""
        name = self._commit(sha)
        head, _, message = self._objects.get(name)[1].partition(b"\n\n")
        headers = dict(reversed([line.partition(b" ")[::2] for line in head.split(b"\n")]))
        encoding = headers.get(b"encoding", b"utf-8").decode("ascii", "replace")
        author, found, _ = headers.get(b"author", b"").rpartition(b">")
        node = self._graph.get(name)
        return CommitInfo(
            sha=name.hex(),
            tree=node.tree.hex(),
            parents=tuple(parent.hex() for parent in node.parents),
            author=_text(author + found, encoding),
            committed_ms=node.time * 1000,
            message=_text(message, encoding),
        )

    def has_commit(self, sha: str) -> bool:
        return is_sha(sha) and self._objects.is_commit(bytes.fromhex(sha))

    def log(self, sha: str, *, skip: int = 0, limit: int = 50) -> builtins.list[CommitInfo]:
        """The commit and its ancestors, newest first by commit time, without the first `skip`.
        Raises ObjectNotFound, OverLimit."""
        if skip > self._limits.log_skip:
            raise OverLimit(
                f"a page of the log begins after at most {self._limits.log_skip} commits"
                " (log_skip); begin at an older commit",
                limit="log_skip",
            )
        walk = self._graph.newest_first([self._commit(sha)])
        commits = itertools.islice(walk, max(0, skip), max(0, skip) + max(0, limit))
        return [self.commit(commit.hex()) for commit in commits]

    def is_ancestor(self, ancestor: str, sha: str) -> bool:
        """True if `ancestor` is `sha` or in its history."""
        if not self.has_commit(ancestor):
            return False
        return self._graph.reaches([self._commit(sha)], bytes.fromhex(ancestor))

    def _commit(self, sha: str) -> bytes:
        if is_sha(sha) and self._objects.has(bytes.fromhex(sha)):
            name, kind, _ = self._objects.peel(bytes.fromhex(sha))
            if kind == COMMIT:
                return name
        raise ObjectNotFound(f"there is no commit {sha[:100]} in this repository")

    # --- files ------------------------------------------------------------------------------------

    def entry(self, sha: str, path: str) -> TreeEntry | None:
        """What is at a path of a commit; None if nothing. "" is the root."""
        found = self._find(sha, path)
        return None if found is None else _entry(_parent(path), _base(path), *found)

    def read(self, sha: str, path: str, *, max_bytes: int | None = None) -> bytes:
        """A file (a link: its target). Raises ObjectNotFound, or OverLimit if it is longer."""
        limit = self._limits.file_bytes if max_bytes is None else max_bytes
        blob, size = self._blob(sha, path)
        if size > limit:
            raise OverLimit(
                f"{path} has {size} bytes; at most {limit} are read (file_bytes)",
                limit="file_bytes",
            )
        return self._objects.get(blob)[1]

    def slices(self, sha: str, path: str) -> Iterator[bytes]:
        """A file of any size in pieces. Raises ObjectNotFound."""
        return self._objects.slices(self._blob(sha, path)[0])

    def size(self, sha: str, path: str) -> int:
        """The length of a file, without reading it whole where possible. Raises ObjectNotFound."""
        return self._blob(sha, path)[1]

    def walk(self, sha: str, path: str = "") -> Iterator[TreeEntry]:
        """Everything below a directory that is not a directory, depth first, in git's order.
        Nothing if there is no such directory."""
        found = self._find(sha, path)
        if found is None or found[0] & _FORMAT != DIRECTORY:
            return
        todo = [(path.strip("/"), found[1])]
        while todo:
            parent, tree = todo.pop()
            if parent.count("/") > _DEPTH:
                raise OverLimit(f"directories are nested deeper than {_DEPTH}", limit="depth")
            below: builtins.list[tuple[str, bytes]] = []
            for name, mode, child in self._tree(tree):
                entry = _entry(parent, os.fsdecode(name), mode, bytes.fromhex(child.decode()))
                if entry.kind is EntryKind.DIRECTORY:
                    below.append((entry.path, bytes.fromhex(entry.sha)))
                else:
                    yield entry
            todo += reversed(below)

    def changed_paths(self, before: str | None, after: str) -> builtins.list[str]:
        """Paths of files that differ between two commits, sorted, at most `Limits.changed_paths`.

        `before` None, or no longer here: everything in `after` counts as changed.
        """
        new = self._graph.get(self._commit(after)).tree
        old = None
        if before is not None and self.has_commit(before):
            old = self._graph.get(bytes.fromhex(before)).tree
        changed = (os.fsdecode(path) for path, _, _ in tree_changes(self._objects, old, new))
        return sorted(itertools.islice(changed, self._limits.changed_paths))

    def diff(self, before: str | None, after: str) -> tuple[Sequence[FileDiff], bool]:
        """What differs between two commits, file by file, with renames found; `before` None: all of
        `after` is new. And whether there is more than `Limits.diff_files`. Raises ObjectNotFound.
        """
        new = self._graph.get(self._commit(after)).tree
        old = None if before is None else self._graph.get(self._commit(before)).tree
        return Differ(self._objects, self._limits).files(old, new)

    def export(self, sha: str, into: Path) -> str:
        """Write a commit's files below `into`, a directory that exists and is empty.

        Links are made as links and never followed; executable bits are kept; submodules become
        empty directories. Returns the tree's id. Raises ObjectNotFound, OverLimit.
        """
        tree = self._graph.get(self._commit(sha)).tree
        Exporter(self._objects, self._limits).export(tree, into)
        return tree.hex()

    def history(self, sha: str, into: Path, *, depth: int) -> None:
        """Make `into/.git`, which is not there: the commit with `depth` generations of commits.

        Raises ObjectNotFound, OverLimit.
        """
        write_history(self._objects, self._graph, self._commit(sha), into, depth=depth)

    def archive(self, sha: str, kind: ArchiveFormat, *, prefix: str = "") -> Iterator[bytes]:
        """A commit's files as one archive, in pieces; `prefix` stands before every path.

        Raises ObjectNotFound at once, OverLimit and BadPack while it is read.
        """
        node = self._graph.get(self._commit(sha))
        archiver = Archiver(self._objects, self._limits)
        members = archiver.members(node.tree, prefix)
        write = archiver.tar if kind is ArchiveFormat.TAR else archiver.zip
        return write(members, node.time)

    def list(self, sha: str, path: str = "") -> builtins.list[TreeEntry]:
        """A directory's entries in git's order. Raises ObjectNotFound if it is not one."""
        found = self._find(sha, path)
        if found is None or found[0] & _FORMAT != DIRECTORY:
            raise ObjectNotFound(f"there is no directory {path!r} in {sha[:100]}")
        parent = path.strip("/")
        return [
            _entry(parent, os.fsdecode(name), mode, bytes.fromhex(child.decode()))
            for name, mode, child in self._tree(found[1])
        ]

    # --- inside -----------------------------------------------------------------------------------

    def _tree(self, name: bytes) -> Tree:
        kind, content = self._objects.get(name)
        if kind != TREE:
            raise BadPack(f"{name.hex()} should be a tree")
        return entries(content)

    def _find(self, sha: str, path: str) -> tuple[int, bytes] | None:
        """(mode, name) of what is at a path."""
        mode, name = DIRECTORY, self._graph.get(self._commit(sha)).tree
        for part in _parts(path):
            if mode & _FORMAT != DIRECTORY:
                return None
            below = {entry: (mode, child) for entry, mode, child in self._tree(name)}
            if part not in below:
                return None
            mode, name = below[part][0], bytes.fromhex(below[part][1].decode())
        return mode, name

    def _blob(self, sha: str, path: str) -> tuple[bytes, int]:
        found = self._find(sha, path)
        about = None if found is None else self._objects.info(found[1])
        if found is None or about is None or about[0] != BLOB:
            raise ObjectNotFound(f"there is no file {path!r} in {sha[:100]}")
        return found[1], about[1]


def _entry(parent: str, name: str, mode: int, sha: bytes) -> TreeEntry:
    return TreeEntry(
        name=name,
        path=f"{parent}/{name}" if parent else name,
        kind=_KINDS.get(mode & _FORMAT, EntryKind.FILE),
        executable=mode & 0o170100 == 0o100100,
        sha=sha.hex(),
    )


def _parts(path: str) -> builtins.list[bytes]:
    try:
        raw = os.fsencode(path.strip("/"))
    except UnicodeEncodeError as error:
        raise ObjectNotFound(f"there is nothing at {path!r}: it is no path") from error
    return raw.split(b"/") if raw else []


def _parent(path: str) -> str:
    return path.strip("/").rpartition("/")[0]


def _base(path: str) -> str:
    return path.strip("/").rpartition("/")[2]


def _text(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding, "replace")
    except LookupError:
        return raw.decode("utf-8", "replace")
