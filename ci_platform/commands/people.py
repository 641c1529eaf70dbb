"""Commands on users, roles and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.commands.parts import Parts
from ci_platform.model import Actor, Role, User
from ci_platform.ports import Token


@dataclass(frozen=True, slots=True)
class NewToken:
    token: Token
    secret: str  # shown once


@dataclass(frozen=True, slots=True)
class People:
    parts: Parts

    def set_up(self, secret: str, name: str, password: str) -> User:
        """Use the one-time link: make the first admin. Raises NotFound if it is used or over."""
        raise NotImplementedError

    def create_user(
        self, actor: Actor, name: str, password: str | None, *, admin: bool = False
    ) -> User:
        raise NotImplementedError

    def set_password(self, actor: Actor, name: str, password: str) -> None:
        """One's own, or as an admin anybody's."""
        raise NotImplementedError

    def set_role(
        self, actor: Actor, owner: str, name: str, *, user: str, role: Role | None
    ) -> None:
        """Give a user a role in a repository; None takes it away."""
        raise NotImplementedError

    def create_token(
        self,
        actor: Actor,
        name: str,
        scopes: Sequence[str],
        *,
        repository: str | None = None,
        days: int | None = None,
        user: str | None = None,
    ) -> NewToken:
        """A token of the actor (as SYSTEM: of `user`, or of nobody), for all its repositories or
        for `repository` (owner/name) alone."""
        raise NotImplementedError

    def revoke_token(self, actor: Actor, token_id: str) -> None:
        raise NotImplementedError
