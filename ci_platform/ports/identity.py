"""The Protocol of people: users, tokens, roles and one-time links, as they are kept.

A part of the ports, under their contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import RepositoryId, Role, User, UserId


@dataclass(frozen=True, slots=True)
class Token:
    id: str
    name: str
    user_id: UserId | None
    scopes: frozenset[str]
    repository_id: RepositoryId | None
    created_ms: int
    expires_ms: int | None
    last_used_ms: int | None


class IdentityStore(Protocol):
    """Users, password hashes, tokens and roles; knows nothing of what they allow."""

    def create_user(self, name: str, password_hash: str | None, *, admin: bool) -> User:
        """Raises Conflict if the name is taken."""

    def user(self, user_id: UserId) -> User | None: ...

    def user_by_name(self, name: str) -> tuple[User, str | None] | None:
        """The user and their password hash."""

    def users(self) -> list[User]: ...

    def set_password(self, user_id: UserId, password_hash: str) -> None: ...

    def set_role(self, user_id: UserId, repository_id: RepositoryId, role: Role | None) -> None: ...

    def roles(self, user_id: UserId) -> Mapping[RepositoryId, Role]: ...

    def add_token(self, token: Token, digest: str) -> None: ...

    def token(self, digest: str) -> Token | None:
        """By the SHA-256 of the secret, in hex."""

    def tokens(self, user_id: UserId | None = None) -> list[Token]: ...

    def revoke_token(self, token_id: str) -> None: ...

    def touch_token(self, token_id: str, at_ms: int) -> None: ...

    def put_link(self, digest: str, purpose: str, expires_ms: int) -> None:
        """Keep a one-time link by the digest of its secret; replaces one of the same purpose."""

    def take_link(self, digest: str, now_ms: int) -> str | None:
        """Use a link up: its purpose, or None if unknown, used or expired. At most one caller
        ever gets it."""

    def forget_links(self, now_ms: int) -> int:
        """Drop links that have expired. Returns how many."""
