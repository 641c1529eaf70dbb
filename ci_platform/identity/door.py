"""The door: turns credentials into an Actor. The only maker of actors but the platform's own.

Reads users, roles and tokens; changes nothing but the use of a token or link. Called by api, web,
the git server and the command line. What an actor may do is access.py's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from ci_platform.errors import NotSignedIn
from ci_platform.identity import tokens
from ci_platform.identity.passwords import Throttle, verify_password
from ci_platform.identity.sessions import Session, Sessions
from ci_platform.model import Actor, User, UserId
from ci_platform.ports import Clock
from ci_platform.ports.identity import IdentityStore, Token

ANONYMOUS = Actor(kind="anonymous", id="anonymous", name="anonymous")
CONSOLE_ID = "console"
STAMP_CHARS = 16
TOUCH_EVERY_MS = 60_000  # `last used` of a token is exact to a minute, not a write per request


def console(name: str) -> Actor:
    """Whoever runs a command on the deployment's own files: they own it, so they are its admin.

    A person, unlike SYSTEM, so they may answer an approval that is not for somebody by name.
    """
    return Actor(kind="console", id=CONSOLE_ID, name=name, admin=True)


@dataclass(slots=True)
class Identity:
    """Who is asking. Safe to call from many threads."""

    store: IdentityStore
    sessions: Sessions
    clock: Clock
    throttle: Throttle = field(init=False)

    def __post_init__(self) -> None:
        self.throttle = Throttle(self.clock)

    def sign_in(self, name: str, password: str, *, address: str = "") -> tuple[Session, str]:
        """Check a password: a new session and its cookie. Raises NotSignedIn, TooMany.

        Failed tries are limited per name and per address.
        """
        keys = [f"name:{name.casefold()[:100]}"] + ([f"address:{address}"] if address else [])
        self.throttle.begin(*keys)
        found = self.store.user_by_name(name) if len(name) <= 100 else None
        if not verify_password(password, found[1] if found else None) or found is None:
            raise NotSignedIn("wrong name or password")
        self.throttle.passed(*keys)
        return self.sessions.issue(found[0].id, _stamp(found[1]))

    def of_session(self, session: Session | None) -> Actor:
        """The user of a session as they are now; ANONYMOUS without one, and when their password
        is another than the one that began it."""
        if session is None or session.user_id is None:
            return ANONYMOUS
        user = self.store.user(session.user_id)
        found = None if user is None else self.store.user_by_name(user.name)
        if found is None or _stamp(found[1]) != session.stamp:
            return ANONYMOUS
        return self.of_user(found[0])

    def of_cookie(self, cookie: str | None) -> Actor:
        return self.of_session(self.sessions.read(cookie))

    def of_user(self, user: User) -> Actor:
        """A user, already known to be who they say: by session, or at the machine itself."""
        roles = self.store.roles(user.id)
        return Actor(kind="user", id=user.id, name=user.name, admin=user.admin, roles=roles)

    def of_token(self, secret: str) -> Actor:
        """The actor of a token's secret. Raises NotSignedIn if unknown, revoked or expired."""
        token = None
        if secret.startswith(tokens.PREFIX) and len(secret) <= tokens.SECRET_MAX:
            token = self.store.token(tokens.digest(secret))
        now_ms = self.clock.now_ms()
        if token is None or (token.expires_ms is not None and token.expires_ms <= now_ms):
            raise NotSignedIn("this token is unknown, revoked or expired")
        actor = self._of_known_token(token)
        if token.last_used_ms is None or token.last_used_ms <= now_ms - TOUCH_EVERY_MS:
            self.store.touch_token(token.id, now_ms)
        return actor

    def of_authorization(self, header: str | None) -> Actor:
        """The actor of an `Authorization: Bearer` header; ANONYMOUS without a header."""
        if not header:
            return ANONYMOUS
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise NotSignedIn("send `Authorization: Bearer` and a token")
        return self.of_token(secret.strip())

    def of_git(self, user: str, password: str) -> Actor:
        """The actor of git's basic authentication: a token as password, with any name."""
        return self.of_token(password or user)

    def needs_setup(self) -> bool:
        """True while nobody can sign in: the first admin is still to be made."""
        return not self.store.users()

    def setup_link(self) -> str | None:
        """The secret of a new one-time link for the first admin; None once there is a user."""
        if not self.needs_setup():
            return None
        secret = tokens.new_secret()
        expires_ms = self.clock.now_ms() + tokens.LINK_MS
        self.store.put_link(tokens.digest(secret), tokens.SETUP, expires_ms)
        return secret

    def _of_known_token(self, token: Token) -> Actor:
        if token.user_id is None:
            # Made at the machine itself, for no one in particular: its scopes alone bound it.
            return Actor(
                kind="token",
                id=token.id,
                name=token.name,
                admin=True,
                scopes=token.scopes,
                repository_id=token.repository_id,
                token_id=token.id,
            )
        user = self.store.user(UserId(token.user_id))
        if user is None:
            raise NotSignedIn("the user of this token is gone")
        return replace(
            self.of_user(user),
            kind="token",
            scopes=token.scopes,
            repository_id=token.repository_id,
            token_id=token.id,
        )


def _stamp(password_hash: str | None) -> str:
    """What changes with the password, and tells nothing of it."""
    if password_hash is None:
        return ""
    return hashlib.sha256(password_hash.encode()).hexdigest()[:STAMP_CHARS]
