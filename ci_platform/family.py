"""The values of child runs: who started whom, and the store's part in telling them of each other.

A link is due when one of its two runs has ended, or when the parent let go of its child; the commit
that did that says so in the link. `commands/family.py` acts on it and is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DEPTH_MAX = 10  # generations below a run that no run has started


@dataclass(frozen=True, slots=True)
class Kin:
    """What a new run must know of the run that starts it."""

    parent_id: str
    step: str  # of the parent: str(StepKey)
    waits: bool  # the step ends with the child
    depth: int  # 1 for the child of a run that has no parent


@dataclass(frozen=True, slots=True)
class Link:
    """A parent and its child."""

    child_id: str
    kin: Kin
    # Counts what has happened to either; below zero once all of it was looked at. It never goes
    # back: two workers may look at once, and what happens between them must look like neither.
    due: int

    @property
    def is_due(self) -> bool:
        return self.due > 0


class FamilyStore(Protocol):
    def parent(self, run_id: str) -> Link | None: ...

    def children(self, run_id: str) -> Sequence[Link]:
        """In order of creation."""

    def due(self, *, limit: int = 100) -> Sequence[Link]: ...

    def settled(self, link: Link) -> None:
        """All is done that `link.due` asked for; what happened since stays due."""
