"""Refs as rows: read, resolve, and the hidden ones that keep commits alive.

Refs move only in the transaction of push.py. Called through `GitStore.refs`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ref:
    name: str  # full: refs/heads/main
    sha: str  # what it points at: a commit, or a tag object
    peeled: str | None  # for an annotated tag: what the tag finally points at

    @property
    def target(self) -> str:
        return self.peeled or self.sha


class Refs:
    def get(self, repository_id: str, name: str) -> Ref | None:
        """A ref by its full name."""
        raise NotImplementedError

    def list(
        self, repository_id: str, prefix: str = "refs/heads/", *, after: str = "", limit: int = 1000
    ) -> list[Ref]:
        """By name, ascending, those after `after`; never hidden ones."""
        raise NotImplementedError

    def resolve(self, repository_id: str, name: str) -> str | None:
        """The commit behind HEAD, a full ref (tags peeled), a branch or tag by its short name, or
        a full object id that is in the repository. None if there is none."""
        raise NotImplementedError

    def keep(self, repository_id: str, name: str, sha: str) -> None:
        """Keep a commit and its history alive under a hidden ref until `release(name)`.

        Calling again with the same name moves it. Raises ObjectNotFound if it is not here.
        """
        raise NotImplementedError

    def release(self, repository_id: str, name: str) -> None:
        """Let go of what `keep` kept. Nothing happens if there is nothing."""
        raise NotImplementedError
