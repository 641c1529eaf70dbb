"""The values of mirrors: repositories that follow a remote, by the clock or when they are told to.

What a synchronisation does is commands/mirrors.py; which mirrors are due, and who has one in hand,
are rows. Used by commands, store and worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import RepositoryId


@dataclass(frozen=True, slots=True)
class Mirror:
    repository_id: RepositoryId
    url: str  # without credentials
    username: str | None
    password: str | None  # stored encrypted, shown nowhere
    every_ms: int | None  # None: only when told to
    next_ms: int | None  # when it is due
    held_ms: int = 0  # until when somebody has it in hand
    tries: int = 0  # failures since it last worked
    checked_ms: int | None = None
    synced_ms: int | None = None  # when it last worked
    outcome: str | None = None  # of the last synchronisation, for people


class MirrorStore(Protocol):
    """Any number of processes may ask at once; one of them gets a mirror that is due."""

    def put(self, mirror: Mirror) -> None:
        """Make or replace the mirror of a repository."""

    def get(self, repository_id: RepositoryId) -> Mirror | None: ...

    def remove(self, repository_id: RepositoryId) -> bool:
        """False if there was none."""

    def hasten(self, repository_id: RepositoryId, now_ms: int) -> bool:
        """It is due now, even if it is in hand: then again afterwards. False if there is none."""

    def take(self, now_ms: int, *, until_ms: int, limit: int) -> list[Mirror]:
        """Take in hand what is due; if nothing comes of it, it is due again at `until_ms`."""

    def done(
        self, mirror: Mirror, now_ms: int, *, next_ms: int | None, outcome: str, worked: bool
    ) -> None:
        """Let go of one that was taken. Nothing happens if somebody else has it by now."""
