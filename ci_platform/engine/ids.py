"""Ids: what kind of thing, then 26 lower-case Crockford characters. No I/O.

`new_id` sorts by time (48 bits of milliseconds, 80 of chance, as a ULID). `stable_id` gives equal
parts equal ids, which is what makes a redelivered trigger start nothing twice.
"""

from __future__ import annotations

import hashlib
import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26
_CHANCE_BYTES = 10


def new_id(prefix: str, now_ms: int) -> str:
    """Make an id that nothing else has: `run_01j8…`."""
    return _join(prefix, now_ms, secrets.token_bytes(_CHANCE_BYTES))


def stable_id(prefix: str, *parts: object) -> str:
    """The id that belongs to these parts, the same each time; it does not sort by time."""
    digest = _digest(parts)
    return f"{prefix}_{_encode(int.from_bytes(digest[:16], 'big'))}"


def derived_id(prefix: str, now_ms: int, *parts: object) -> str:
    """An id that sorts by time and is otherwise decided by its parts."""
    return _join(prefix, now_ms, _digest(parts)[:_CHANCE_BYTES])


def seed_of(run_id: str) -> str:
    """The seed of a run's randomness: the same in each of its activations."""
    return hashlib.sha256(b"seed\0" + run_id.encode()).hexdigest()


def _digest(parts: tuple[object, ...]) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.digest()


def _join(prefix: str, now_ms: int, tail: bytes) -> str:
    number = ((now_ms & ((1 << 48) - 1)) << 80) | int.from_bytes(tail, "big")
    return f"{prefix}_{_encode(number)}"


def _encode(number: int) -> str:
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
