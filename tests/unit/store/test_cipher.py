"""Secrets at rest."""

from __future__ import annotations

import pytest

from ci_platform.errors import InternalError
from ci_platform.store.cipher import Cipher

KEY = bytes(range(32))


def test_a_sealed_secret_opens_and_never_looks_the_same() -> None:
    cipher = Cipher(KEY)
    one, two = (cipher.seal(b"hunter2", "hook_1") for _ in range(2))
    assert one != two
    assert b"hunter2" not in one
    assert cipher.open(one, "hook_1") == cipher.open(two, "hook_1") == b"hunter2"


def test_a_secret_opens_only_for_what_it_belongs_to_and_with_its_key() -> None:
    sealed = Cipher(KEY).seal(b"hunter2", "hook_1")
    for cipher, belongs_to, data in (
        (Cipher(KEY), "hook_2", sealed),
        (Cipher(KEY[::-1]), "hook_1", sealed),
        (Cipher(KEY), "hook_1", sealed[:-1]),
        (Cipher(KEY), "hook_1", b""),
        (Cipher(KEY), "hook_1", bytes([sealed[0] ^ 1]) + sealed[1:]),
    ):
        with pytest.raises(InternalError, match="cannot be decrypted"):
            cipher.open(data, belongs_to)
