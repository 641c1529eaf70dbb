"""Writing to a branch without a git client: a set of changes becomes a commit and a push.

Called through `GitStore.commit`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileEdit:
    """A write (`content`) or a deletion (`content` None) of one file."""

    path: str
    content: bytes | None
    executable: bool = False
