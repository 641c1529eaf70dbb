"""Passwords: argon2 hashes, rules for new ones, and a bounded limit on tries.

Knows no store: identity/door.py asks it, and commands hash new passwords with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from ci_platform.errors import InvalidRequest, TooMany
from ci_platform.ports import Clock

PASSWORD_MIN = 8
PASSWORD_MAX = 256  # argon2 takes any length; a megabyte of password is an attack

TRIES_MAX = 10  # failed tries per name or address …
TRIES_WINDOW_MS = 15 * 60 * 1000  # … within a quarter of an hour
TRACKED_MAX = 10_000  # names and addresses remembered; the oldest are forgotten first

_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's minimum
_hashing = threading.Semaphore(4)  # each takes 19 MiB: a flood of sign-ins queues here


@cache
def _decoy() -> str:
    return _hasher.hash("no user has this name")


def hash_password(password: str) -> str:
    """Check and hash a new password."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise InvalidRequest(
            f"a password has {PASSWORD_MIN} to {PASSWORD_MAX} characters, this has {len(password)}",
            field="password",
        )
    with _hashing:
        return _hasher.hash(password.encode(errors="surrogatepass"))


def verify_password(password: str, password_hash: str | None) -> bool:
    """Compare. Without a hash it takes as long, so that names cannot be told apart by time."""
    if len(password) > PASSWORD_MAX:
        return False
    with _hashing:
        try:
            _hasher.verify(password_hash or _decoy(), password.encode(errors="surrogatepass"))
        except (VerificationError, InvalidHashError):
            return False
    return password_hash is not None


@dataclass(slots=True)
class Throttle:
    """Counts failed tries per key; in memory of one process, bounded."""

    clock: Clock
    tries_max: int = TRIES_MAX
    _failed: OrderedDict[str, deque[int]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, *keys: str) -> None:
        """Count a try, before it is known how it ends: many at once get no more than one by one.

        Raises TooMany if one of the keys has used up its tries.
        """
        with self._lock:
            now_ms = self.clock.now_ms()
            recent = [self._recent(key) for key in keys]
            for tries in recent:
                if len(tries) >= self.tries_max:
                    wait_s = -(-(tries[0] + TRIES_WINDOW_MS - now_ms) // 1000)
                    raise TooMany(
                        f"{self.tries_max} failed tries in {TRIES_WINDOW_MS // 60_000} minutes; "
                        f"try again in {wait_s} s"
                    )
            for key, tries in zip(keys, recent, strict=True):
                tries.append(now_ms)
                self._failed[key] = tries
                self._failed.move_to_end(key)
            while len(self._failed) > TRACKED_MAX:
                self._failed.popitem(last=False)

    def passed(self, *keys: str) -> None:
        """The try was right: it does not count."""
        with self._lock:
            for key in keys:
                tries = self._failed.get(key)
                if tries:
                    tries.pop()

    def _recent(self, key: str) -> deque[int]:
        tries = self._failed.get(key, deque())
        oldest = self.clock.now_ms() - TRIES_WINDOW_MS
        while tries and tries[0] <= oldest:
            tries.popleft()
        return tries
