"""What the platform asks of its repositories beyond the ordinary: many at once, pages, differences.

Values and one Protocol, which `ports.Repositories` contains. Implemented by source.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.errors import InvalidRequest, RepositoryExists
from ci_platform.model import Repository, RepositoryId


@dataclass(frozen=True, slots=True)
class Commit:
    sha: str
    tree: str
    parents: Sequence[str]
    author: str
    committed_ms: int
    message: str


@dataclass(frozen=True, slots=True)
class NewRepository:
    owner: str
    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class FileDiff:
    """How one file differs between two commits."""

    status: str  # added, deleted, modified, renamed
    path: str
    old_path: str | None  # of a renamed one
    old_mode: int | None
    new_mode: int | None
    binary: bool
    additions: int
    deletions: int
    text: bytes | None  # unified, with its header; None: over a limit


class Hosting(Protocol):
    def create_many(
        self, wanted: Sequence[NewRepository], *, template: RepositoryId | None
    ) -> Sequence[Repository | InvalidRequest | RepositoryExists]:
        """Make repositories, empty or sharing what a template stores; for each in turn what was
        made, or why not. Raises RepositoryNotFound for a template that is gone."""

    def log(
        self, repository_id: RepositoryId, commit: str, *, skip: int = 0, limit: int = 50
    ) -> Sequence[Commit]:
        """The commit and its ancestors, newest first. Raises NotFound, TooLarge for a `skip`."""

    def diff(
        self, repository_id: RepositoryId, before: str | None, after: str
    ) -> tuple[Sequence[FileDiff], bool]:
        """File by file, and whether there are more files than are listed. Raises NotFound."""
