"""Ids for what the store itself names: `usr_` and 26 characters that sort by time."""

from __future__ import annotations

import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, without i, l, o, u


def new_id(prefix: str, now_ms: int) -> str:
    number = (now_ms & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
