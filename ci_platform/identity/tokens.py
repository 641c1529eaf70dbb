"""API tokens and one-time links: how their secrets look and how they are stored.

A secret is shown once and kept only as a SHA-256, which is enough: it has 256 bits of its own, so
there is nothing to guess slowly.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

from ci_platform.errors import InvalidRequest
from ci_platform.identity.access import Scope

PREFIX = "slu_"
SECRET_MAX = 200  # characters; longer ones are not looked up
SETUP = "setup"  # the purpose of the link that makes the first admin
LINK_MS = 24 * 3600 * 1000


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What the store keeps of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def check_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """Check the scopes of a new token: at least one, all known."""
    known = [scope.value for scope in Scope]
    wanted = frozenset(str(scope) for scope in scopes)
    unknown = sorted(wanted - set(known))
    if unknown:
        raise InvalidRequest(
            f"unknown scope {unknown[0]!r}; there are {', '.join(known)}", field="scopes"
        )
    if not wanted:
        raise InvalidRequest(f"name at least one of {', '.join(known)}", field="scopes")
    return wanted
