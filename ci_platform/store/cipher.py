"""Secrets at rest: AES-GCM under one key per deployment.

The key is the caller's to keep; without it the secrets are lost and everything else is there. What
a secret belongs to is bound to it, so that a sealed value moved to another row opens nothing.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ci_platform.errors import InternalError, InvalidRequest

KEY_BYTES = 32
_NONCE_BYTES = 12


class Cipher:
    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise InvalidRequest(
                f"the secret key has {len(key)} bytes: expected {KEY_BYTES}", field="key"
            )
        self._box = AESGCM(key)

    def seal(self, secret: bytes, belongs_to: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._box.encrypt(nonce, secret, belongs_to.encode())

    def open(self, sealed: bytes, belongs_to: str) -> bytes:
        """Raises InternalError if it was sealed with another key, for something else, or cut."""
        nonce, data = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._box.decrypt(nonce, data, belongs_to.encode())
        except (InvalidTag, ValueError) as error:
            raise InternalError(
                f"the secret of {belongs_to} cannot be decrypted: the deployment's secret key is"
                " not the one it was stored with"
            ) from error
