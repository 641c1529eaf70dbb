"""Receiving a push: what a push is, and whom it is told to.

One transaction checks every old value, adds the pack, moves the refs and writes the event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from git_store.files import Files
from git_store.repos import Repository


@dataclass(frozen=True, slots=True)
class Pusher:
    """Who pushes: as the platform names them; the git store only writes it down."""

    id: str | None
    name: str


@dataclass(frozen=True, slots=True)
class RefChange:
    ref: str  # full name
    old: str | None  # None: created
    new: str | None  # None: deleted


@dataclass(frozen=True, slots=True)
class Push:
    """A push that has passed every check but is not visible to anyone yet."""

    repository: Repository
    pusher: Pusher
    changes: tuple[RefChange, ...]
    options: tuple[str, ...]  # git push -o ...
    files: Files  # also sees the new objects


@dataclass(frozen=True, slots=True)
class PushEvent:
    """A push that happened. Kept in the outbox until `GitStore.mark_handled`."""

    id: str  # push_..., sorts by time
    repository_id: str
    pusher: Pusher
    changes: tuple[RefChange, ...]  # only the accepted ones; never hidden refs
    options: tuple[str, ...]
    at_ms: int


class PushListener(Protocol):
    """Hears of every push, by HTTP or by `GitStore.commit`. Called from any thread.

    `before` is called once for a push, when all is checked and nothing is visible; raising
    PushRejected refuses the whole push with that message. `after` is called when the push is
    committed, before the client has its answer: what it says appears in the pusher's terminal as
    `remote: ...`. When `after` returns, the event is marked handled; when it raises, the pusher is
    told and the event stays in the outbox, so `after` may see the same event again.
    """

    def before(self, push: Push) -> None: ...

    def after(self, event: PushEvent, say: Callable[[str], None]) -> None: ...
