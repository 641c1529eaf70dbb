"""Commands on repositories: create, delete, fork, write files without a git client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.commands.parts import Parts
from ci_platform.model import Actor, Repository
from ci_platform.ports import FileChange


@dataclass(frozen=True, slots=True)
class Repositories:
    parts: Parts

    def create(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        default_branch: str = "main",
        description: str = "",
    ) -> Repository:
        raise NotImplementedError

    def delete(self, actor: Actor, owner: str, name: str) -> None:
        """Remove a repository, its runs first; refused while one of them is not finished."""
        raise NotImplementedError

    def fork(
        self, actor: Actor, owner: str, name: str, *, into_owner: str, into_name: str
    ) -> Repository:
        raise NotImplementedError

    def commit_files(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        branch: str,
        changes: Sequence[FileChange],
        message: str,
        expected_parent: str | None = None,
    ) -> str:
        """Commit on a branch as a push would; returns the commit."""
        raise NotImplementedError
