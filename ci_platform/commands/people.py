"""Commands on users, roles and tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.commands.parts import Parts, check_text
from ci_platform.engine.ids import new_id
from ci_platform.errors import Forbidden, InvalidRequest, NotFound
from ci_platform.identity import Action, authorise
from ci_platform.identity.passwords import hash_password
from ci_platform.identity.tokens import SECRET_MAX, SETUP, check_scopes, digest, new_secret
from ci_platform.model import SYSTEM, Actor, RepositoryId, Role, User, UserId
from ci_platform.ports.identity import Token

DAY_MS = 86_400_000
TOKEN_DAYS_MAX = 3650
TOKENS_MAX = 200  # of one user
_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class NewToken:
    token: Token
    secret: str  # shown once


@dataclass(frozen=True, slots=True)
class People:
    parts: Parts

    def set_up(self, secret: str, name: str, password: str) -> User:
        """Use the one-time link: make the first admin. Raises NotFound if it is used or over."""
        name, password_hash = check_user_name(name), hash_password(password)
        store = self.parts.store.identity
        gone = NotFound("this link has been used, or is over; `sluice serve` prints a new one")
        if store.users() or len(secret) > SECRET_MAX:
            raise gone
        # Taken only after name and password are known to be good: a typo must not use it up.
        if store.take_link(digest(secret), self.parts.clock.now_ms()) != SETUP:
            raise gone
        user = store.create_user(name, password_hash, admin=True)
        self.parts.audit(SYSTEM, "first admin created", name)
        return user

    def create_user(
        self, actor: Actor, name: str, password: str | None, *, admin: bool = False
    ) -> User:
        authorise(actor, Action.MANAGE_PEOPLE)
        password_hash = None if password is None else hash_password(password)
        user = self.parts.store.identity.create_user(
            check_user_name(name), password_hash, admin=admin
        )
        self.parts.audit(actor, "user created", name, admin=admin)
        return user

    def set_password(self, actor: Actor, name: str, password: str) -> None:
        """One's own, signed in as oneself, or as an admin anybody's."""
        if actor.kind != "user" or actor.name != name:
            authorise(actor, Action.MANAGE_PEOPLE)
        user = self._user(name)
        self.parts.store.identity.set_password(user.id, hash_password(password))
        self.parts.audit(actor, "password set", name)

    def set_role(
        self, actor: Actor, owner: str, name: str, *, user: str, role: Role | None
    ) -> None:
        """Give a user a role in a repository; None takes it away."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        found = self._user(user)
        self.parts.store.identity.set_role(found.id, repository.id, role)
        self.parts.audit(actor, "role set", repository.full_name, user=user, role=role)

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
        """A token of the actor (at the console: of `user`, or of nobody), for all its repositories
        or for `repository` (owner/name) alone."""
        authorise(actor, Action.MANAGE_TOKENS)
        check_text(name, field="name", chars_max=100)
        if days is not None and not 1 <= days <= TOKEN_DAYS_MAX:
            raise InvalidRequest(f"days must be 1 to {TOKEN_DAYS_MAX}", field="days")
        now_ms = self.parts.clock.now_ms()
        user_id = self._token_user(actor, user)
        if len(self.parts.store.identity.tokens(user_id)) >= TOKENS_MAX:
            raise InvalidRequest(f"there are {TOKENS_MAX} tokens already; revoke some")
        token = Token(
            id=new_id("tok", now_ms),
            name=name,
            user_id=user_id,
            scopes=check_scopes(scopes),
            repository_id=self._token_repository(actor, repository),
            created_ms=now_ms,
            expires_ms=None if days is None else now_ms + days * DAY_MS,
            last_used_ms=None,
        )
        secret = new_secret()
        self.parts.store.identity.add_token(token, digest(secret))
        self.parts.audit(actor, "token created", token.id, name=name, scopes=sorted(token.scopes))
        return NewToken(token, secret)

    def revoke_token(self, actor: Actor, token_id: str) -> None:
        """One's own; an admin anybody's. Raises NotFound."""
        authorise(actor, Action.MANAGE_TOKENS)
        own = None if actor.admin else UserId(actor.id)
        if not any(token.id == token_id for token in self.parts.store.identity.tokens(own)):
            raise NotFound("no token of yours has this id")
        self.parts.store.identity.revoke_token(token_id)
        self.parts.audit(actor, "token revoked", token_id)

    def _user(self, name: str) -> User:
        found = self.parts.store.identity.user_by_name(name)
        if found is None:
            raise NotFound(f"there is no user {name[:64]!r}")
        return found[0]

    def _token_user(self, actor: Actor, user: str | None) -> UserId | None:
        if actor.kind in ("system", "console"):
            return None if user is None else self._user(user).id
        if user is not None and user != actor.name:
            raise Forbidden("a token can be made for oneself only")
        if actor.id == actor.token_id:
            raise Forbidden("this token belongs to nobody; sign in to make tokens")
        return UserId(actor.id)

    def _token_repository(self, actor: Actor, full_name: str | None) -> RepositoryId | None:
        if full_name is None:
            return None
        owner, slash, name = full_name.partition("/")
        if not slash:
            raise InvalidRequest("repository must be OWNER/NAME", field="repository")
        return self.parts.repository(actor, Action.READ_REPOSITORY, owner, name).id


def check_user_name(name: str) -> str:
    if not _USER_NAME.fullmatch(name):
        raise InvalidRequest(
            "a user name has 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-' "
            "and begins with a letter or digit",
            field="name",
        )
    return name
