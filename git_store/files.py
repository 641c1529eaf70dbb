"""Reading a repository without a git client: commits, files, trees, differences, export.

Reads only; writing is edits.py. Made by `GitStore.files` and handed to push listeners, where it
also sees the objects of the push that is not accepted yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class EntryKind(StrEnum):
    FILE = "file"
    DIRECTORY = "dir"
    LINK = "link"
    SUBMODULE = "submodule"


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

    def commit(self, sha: str) -> CommitInfo:
        """A commit, or the commit a tag object points at. Raises ObjectNotFound."""
        raise NotImplementedError

    def has_commit(self, sha: str) -> bool:
        raise NotImplementedError

    def log(self, sha: str, *, limit: int = 50) -> list[CommitInfo]:
        """The commit and its ancestors, newest first by commit time. Raises ObjectNotFound."""
        raise NotImplementedError

    def is_ancestor(self, ancestor: str, sha: str) -> bool:
        """True if `ancestor` is `sha` or in its history."""
        raise NotImplementedError

    def entry(self, sha: str, path: str) -> TreeEntry | None:
        """What is at a path of a commit; None if nothing. "" is the root."""
        raise NotImplementedError

    def read(self, sha: str, path: str, *, max_bytes: int | None = None) -> bytes:
        """A file (a link: its target). Raises ObjectNotFound, or OverLimit if it is longer."""
        raise NotImplementedError

    def size(self, sha: str, path: str) -> int:
        """The length of a file, without reading it whole where possible. Raises ObjectNotFound."""
        raise NotImplementedError

    def list(self, sha: str, path: str = "") -> list[TreeEntry]:
        """A directory's entries in git's order. Raises ObjectNotFound if it is not one."""
        raise NotImplementedError

    def walk(self, sha: str, path: str = "") -> Iterator[TreeEntry]:
        """Everything below a directory that is not a directory, depth first, in git's order.
        Nothing if there is no such directory."""
        raise NotImplementedError

    def changed_paths(self, before: str | None, after: str) -> list[str]:
        """Paths of files that differ between two commits, sorted, at most `Limits.changed_paths`.

        `before` None, or no longer here: everything in `after` counts as changed.
        """
        raise NotImplementedError

    def export(self, sha: str, into: Path) -> str:
        """Write a commit's files below `into`, a directory that exists and is empty.

        Links are made as links and never followed; executable bits are kept; submodules become
        empty directories. Returns the tree's id. Raises ObjectNotFound, OverLimit.
        """
        raise NotImplementedError
