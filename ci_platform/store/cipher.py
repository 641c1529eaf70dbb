"""Secrets at rest: AES-GCM under one key per deployment.

The key is a file beside the database (or comes from the environment, which is app's business).
What a secret belongs to is bound to it, so that a sealed value moved to another row opens nothing.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

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


def load_or_create_key(path: Path) -> bytes:
    """Read the key, or make one that only this user can read. Safe for two processes at once."""
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails if another process was first
        except FileExistsError:
            return _read(path)
    finally:
        draft.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise InvalidRequest(f"{path} has {len(key)} bytes: expected {KEY_BYTES}", field="key")
    return key
