"""The Protocols of repositories: the code of pipelines, pushes, and what people do with them.

A part of the ports, under their contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import Push, Repository, RepositoryId, SourceFiles
from ci_platform.ports.hosting import Commit, Hosting


@dataclass(frozen=True, slots=True)
class FileChange:
    """A write (`content`), a move (`moved_from`), or a deletion (neither) of one file."""

    path: str
    content: bytes | None
    executable: bool = False
    moved_from: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import brought."""

    refs: int  # branches and tags that moved
    refused: Mapping[str, str]  # ref -> why it was not taken over


@dataclass(frozen=True, slots=True)
class Proof:
    """What reading a whole repository found. It is whole if there are no problems."""

    packs: int
    objects: int
    refs: int
    problems: Sequence[str]


class Source(Protocol):
    """Pipeline code, read from the git store."""

    def load(self, repository_id: RepositoryId, commit: str) -> SourceFiles:
        """The `.ci/**/*.py` of a commit. Raises SourceError (no .ci/pipeline.py, not a file, too
        large, not UTF-8), naming path and limit."""

    def has_pipeline(self, repository_id: RepositoryId, commit: str) -> bool: ...

    def resolve(self, repository_id: RepositoryId, ref: str) -> str | None:
        """The commit a ref points at (refs/heads/x, refs/tags/x peeled, HEAD); None if gone."""

    def default_ref(self, repository_id: RepositoryId) -> str:
        """refs/heads/… of the default branch. Raises NotFound."""

    def keep(self, repository_id: RepositoryId, commit: str) -> None:
        """Keep a commit alive by a hidden ref until `release`. Cheap when it is kept already."""

    def release(self, repository_id: RepositoryId, commit: str) -> None:
        """Let go of it. Whoever asks has made sure that no run is left that needs it."""

    def commit(self, repository_id: RepositoryId, sha: str) -> Commit:
        """Raises NotFound."""

    def changed_paths(
        self, repository_id: RepositoryId, before: str | None, after: str
    ) -> list[str]: ...

    def fetch(self, repository_id: RepositoryId, url: str, commit: str, ref: str) -> None:
        """Fetch `ref` from a remote until `commit` is here. Raises InvalidRequest."""


class Pushes(Protocol):
    """The outbox of the git store: pushes whose refs have moved, until their runs exist."""

    def pending(self, *, limit: int = 100) -> list[Push]:
        """Oldest first."""

    def done(self, push_id: str) -> None:
        """Safe to call twice."""


class Repositories(Hosting, Protocol):
    def create(
        self, owner: str, name: str, *, default_branch: str = "main", description: str = ""
    ) -> Repository:
        """Raises RepositoryExists, InvalidRequest."""

    def get(self, owner: str, name: str) -> Repository:
        """Raises RepositoryNotFound."""

    def by_id(self, repository_id: RepositoryId) -> Repository:
        """Raises RepositoryNotFound."""

    def by_ids(self, ids: Iterable[RepositoryId]) -> Sequence[Repository]:
        """In no order, without those that are gone."""

    def list(
        self, *, after: str = "", limit: int = 100, among: Iterable[RepositoryId] | None = None
    ) -> list[Repository]:
        """By full name, ascending; `among`: only those of these ids."""

    def delete(self, repository_id: RepositoryId) -> None: ...

    def fork(self, repository_id: RepositoryId, owner: str, name: str) -> Repository:
        """A copy that shares what is stored. Raises as `create`."""

    def import_remote(
        self,
        repository_id: RepositoryId,
        url: str,
        *,
        credentials: tuple[str, str] | None,
        prune: bool,
        options: Sequence[str],
        pusher_id: str | None,
        pusher: str,
    ) -> Imported:
        """Make a remote's branches and tags those of the repository, as one push: listeners hear
        of it. `prune` drops those the remote does not have. Raises InvalidRequest, TooLarge,
        Conflict, TooMany."""

    def collect_garbage(self, repository_id: RepositoryId) -> int:
        """Drop what no ref has reached for a while. Returns how many objects."""

    def prove(self, repository_id: RepositoryId) -> Proof:
        """Read every object and follow every reference."""

    def archive(
        self, repository_id: RepositoryId, commit: str, *, kind: str, prefix: str
    ) -> Iterator[bytes]:
        """A commit's files as one archive in pieces; `kind` is "tar.gz" or "zip". Raises
        NotFound, TooLarge, also while it is read."""

    def branches(self, repository_id: RepositoryId) -> Mapping[str, str]:
        """Short name -> commit, at most 1,000."""

    def read_file(self, repository_id: RepositoryId, commit: str, path: str) -> bytes:
        """Raises NotFound, TooLarge."""

    def list_tree(
        self, repository_id: RepositoryId, commit: str, path: str
    ) -> Sequence[tuple[str, str]]:
        """(name, "file" | "dir" | "link" | "submodule") of a directory. Raises NotFound."""

    def commit_files(
        self,
        repository_id: RepositoryId,
        *,
        branch: str,
        changes: Sequence[FileChange],
        message: str,
        author: str,
        expected_parent: str | None,
        pusher_id: str | None = None,
        pusher: str = "sluice",
    ) -> str:
        """Commit changes on a branch, as a push would: listeners hear of it. Returns the commit.
        Raises Conflict when the branch is not at expected_parent (None: do not check)."""
