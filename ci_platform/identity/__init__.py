"""Who asks and what they may do: users, sessions, tokens, roles, the one authorisation function."""

from ci_platform.identity.access import (
    Action,
    Scope,
    authorise,
    check_decider,
    may,
    may_decide,
    readable,
    role_in,
)
from ci_platform.identity.door import ANONYMOUS, Identity, console
from ci_platform.identity.sessions import COOKIE, CSRF_FIELD, Session, Sessions

__all__ = [
    "ANONYMOUS",
    "COOKIE",
    "CSRF_FIELD",
    "Action",
    "Identity",
    "Scope",
    "Session",
    "Sessions",
    "authorise",
    "check_decider",
    "console",
    "may",
    "may_decide",
    "readable",
    "role_in",
]
