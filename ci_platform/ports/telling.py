"""The values of telling others: what happened, who wants to hear of it, and each attempt to say so.

A notice is written in the transaction of what it tells of, and turned exactly once into a sending
for each subscription. Used by commands, store and webhooks; the rules are in commands/telling.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ci_platform.model import Json, RepositoryId


class NoticeKind(StrEnum):
    PUSHED = "pushed"
    CREATED = "created"  # a repository; only subscriptions to all of them can hear of it
    DELETED = "deleted"
    FORKED = "forked"  # told of the repository it was forked from
    IMPORTED = "imported"
    TOKEN_CREATED = "token_created"
    TOKEN_REVOKED = "token_revoked"


@dataclass(frozen=True, slots=True)
class Notice:
    id: str  # evt_..., or a push's own
    kind: NoticeKind
    repository_id: RepositoryId | None  # None: of the whole deployment
    at_ms: int
    detail: Mapping[str, Json]  # names and ids; no secrets


@dataclass(frozen=True, slots=True)
class Subscription:
    """An outbound webhook."""

    id: str
    repository_id: RepositoryId | None  # None: of all repositories, and what belongs to none
    url: str
    secret: bytes  # stored encrypted
    kinds: Sequence[NoticeKind]
    created_ms: int


@dataclass(frozen=True, slots=True)
class Sending:
    """One notice on its way to one subscription; kept a while after it has ended."""

    subscription_id: str
    notice_id: str
    kind: NoticeKind
    body: bytes
    created_ms: int
    due_ms: int | None  # None: it has ended
    tries: int = 0
    status: int | None = None  # of the last answer
    outcome: str | None = None  # of the last try, for people


@dataclass(frozen=True, slots=True)
class Posted:
    """What another server answered."""

    status: int
    text: str  # its beginning


class Post(Protocol):
    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Posted:
        """Send it to a public address, following no redirect, within seconds. Raises
        InvalidRequest when there is no answer, or the address is none to send to."""


class NoticeStore(Protocol):
    """Any number of processes may work on it at once."""

    def pending(self, *, limit: int = 100) -> list[Notice]:
        """Notices that nobody has spread, oldest first."""

    def spread(self, told: Sequence[tuple[Notice, bytes]]) -> int:
        """Make a sending of each notice, with the body it has, for each subscription that wants to
        hear of it, and take the notices out of the outbox. Safe to call twice. Returns how many
        sendings are new."""

    def subscribe(self, subscription: Subscription) -> None: ...

    def subscriptions(self, repository_id: RepositoryId | None) -> list[Subscription]:
        """Those of one repository, or those of all (None), oldest first."""

    def subscription(self, subscription_id: str) -> Subscription | None: ...

    def unsubscribe(self, subscription_id: str) -> None: ...

    def take(self, now_ms: int, *, until_ms: int, limit: int) -> list[Sending]:
        """Take in hand what is due; if nothing comes of it, it is due again at `until_ms`. Each has
        one try more than before."""

    def tried(
        self, sending: Sending, *, due_ms: int | None, status: int | None, outcome: str
    ) -> None:
        """Say what became of one that was taken; it is due again at `due_ms`, or has ended."""

    def sendings(self, subscription_id: str, *, limit: int) -> list[Sending]:
        """The newest first."""

    def again(self, subscription_id: str, notice_id: str, now_ms: int) -> bool:
        """Send one again, as if for the first time. False if it is not known."""

    def forget(self, before_ms: int, *, limit: int = 500) -> int:
        """Drop what ended before, and subscriptions of repositories that are gone once nothing is
        on its way to them. Returns how many rows."""
