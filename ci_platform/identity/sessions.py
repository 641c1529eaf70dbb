"""Sessions as signed cookies, and the CSRF tokens of forms. Values and signatures only.

The web mounts them: it sets the cookie and asks `read` on every request. A session names a user
and nothing else; what the user may do is read fresh each time, so a role taken away is gone.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from itsdangerous import BadData, URLSafeSerializer

from ci_platform.errors import Forbidden
from ci_platform.model import UserId
from ci_platform.ports import Clock

COOKIE = "sluice_session"
SESSION_MS = 14 * 24 * 3600 * 1000
CSRF_FIELD = "csrf"
CSRF_HEADER = "x-csrf-token"
CSRF_MS = 24 * 3600 * 1000
COOKIE_MAX = 1024  # characters; ours have about 150


@dataclass(frozen=True, slots=True)
class Session:
    """Who a browser is, until when. `id` binds its forms to it."""

    id: str
    user_id: UserId | None  # None: a browser that has not signed in yet, but has forms
    expires_ms: int
    stamp: str = ""  # of the password it was signed in with: another password ends it


class Sessions:
    """Issues and reads session cookies; `secret` is the deployment's own."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        if len(secret) < 16:
            raise ValueError("the session secret must have at least 16 bytes")
        self._cookies = URLSafeSerializer(secret, salt="sluice.session")
        self._forms = URLSafeSerializer(secret, salt="sluice.csrf")
        self._clock = clock

    def issue(self, user_id: UserId | None, stamp: str = "") -> tuple[Session, str]:
        """A new session and the cookie's value. Never reuse one across a sign-in."""
        expires_ms = self._clock.now_ms() + SESSION_MS
        session = Session(secrets.token_urlsafe(16), user_id, expires_ms, stamp)
        value = self._cookies.dumps([session.id, user_id, session.expires_ms, stamp])
        return session, str(value)

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None if it is missing, forged or over."""
        if not cookie or len(cookie) > COOKIE_MAX:
            return None
        try:
            session_id, user_id, expires_ms, stamp = self._cookies.loads(cookie)
        except (BadData, ValueError, TypeError):
            return None
        if expires_ms <= self._clock.now_ms():
            return None
        return Session(session_id, user_id, expires_ms, stamp)

    def csrf_token(self, session: Session) -> str:
        """The hidden field of every form this session is shown."""
        return str(self._forms.dumps([session.id, self._clock.now_ms() + CSRF_MS]))

    def check_csrf(self, session: Session | None, token: str | None) -> None:
        """Raise Forbidden unless the form came from a page this session was shown."""
        try:
            session_id, expires_ms = self._forms.loads(token or "")
        except (BadData, ValueError, TypeError):
            session_id, expires_ms = None, 0
        if session is None or session_id != session.id or expires_ms <= self._clock.now_ms():
            raise Forbidden("this form is too old or not from this page; reload it and try again")
