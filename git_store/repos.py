"""Repositories as rows: create, get, list, fork, delete, and the rules for their names.

Owns the repository rows and nothing of their content. Called through `GitStore.repositories`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Repository:
    id: str  # repo_...
    owner: str
    name: str
    default_branch: str  # without refs/heads/
    description: str
    created_ms: int
    pack_bytes: int  # what counts against the quota

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class Repositories:
    """Safe to call from any thread and from several processes at once."""

    def create(
        self, owner: str, name: str, *, default_branch: str = "main", description: str = ""
    ) -> Repository:
        """Create an empty repository. Raises BadName (with `.field`), RepoExists."""
        raise NotImplementedError

    def get(self, owner: str, name: str) -> Repository:
        """Raises RepoNotFound."""
        raise NotImplementedError

    def by_id(self, repository_id: str) -> Repository:
        """Raises RepoNotFound."""
        raise NotImplementedError

    def list(self, *, after: str = "", limit: int = 100) -> list[Repository]:
        """By full name, ascending, those after the full name `after`."""
        raise NotImplementedError

    def fork(self, repository_id: str, owner: str, name: str) -> Repository:
        """Copy refs (not hidden ones) and pack list; the packs are shared. Raises as `create`."""
        raise NotImplementedError

    def set_default_branch(self, repository_id: str, branch: str) -> None:
        """The branch need not exist yet. Raises BadName, RepoNotFound."""
        raise NotImplementedError

    def delete(self, repository_id: str) -> None:
        """Remove the repository and every row of it. Packs nobody uses go with `GitStore.sweep`.
        Raises RepoNotFound."""
        raise NotImplementedError
