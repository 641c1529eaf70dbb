"""The Protocol of inbound webhooks and of their deliveries.

A part of the ports, under their contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import RepositoryId


@dataclass(frozen=True, slots=True)
class Hook:
    """An inbound webhook of a repository, and where its commits are fetched from."""

    id: str
    repository_id: RepositoryId
    provider: str  # github, gitlab, gitea, bitbucket
    secret: bytes  # stored encrypted
    remote_url: str | None
    created_ms: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A verified delivery of a webhook, kept until its work is done."""

    hook_id: str
    id: str  # the provider's; the same when it is sent again
    event: str  # push, ...
    body: bytes  # as received
    received_ms: int
    tries: int = 0  # how often its work was put off


class HookStore(Protocol):
    def add(self, hook: Hook) -> None: ...

    def get(self, hook_id: str) -> Hook:
        """Raises HookNotFound."""

    def of_repository(self, repository_id: RepositoryId) -> list[Hook]: ...

    def remove(self, hook_id: str) -> None: ...

    def first_delivery(self, hook_id: str, delivery_id: str, at_ms: int) -> bool:
        """Note a delivery; False if this id was noted before."""

    def enqueue(self, delivery: Delivery) -> bool:
        """Note a delivery and keep it until `finish`; False if this id was noted before."""

    def pending(self, now_ms: int, *, limit: int = 100) -> list[Delivery]:
        """Kept deliveries that are due, oldest first."""

    def defer(self, hook_id: str, delivery_id: str, until_ms: int) -> None:
        """Put one off: it is due again at `until_ms`, with one try more."""

    def finish(self, hook_id: str, delivery_id: str, outcome: str) -> None:
        """Drop the body; the id and the outcome stay. Safe to call twice."""

    def forget(self, now_ms: int, *, limit: int = 500) -> int:
        """Drop finished deliveries that are older than a repetition can be (30 days), at most
        `limit`. Returns how many."""
