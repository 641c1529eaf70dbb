"""The deployment's one secret, and the keys derived from it for each purpose.

All web processes of a deployment need the same: on several machines it comes from
SLUICE_SECRET_KEY, on one from a file only its owner may read. Called by app.py.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ci_platform.errors import InvalidRequest

KEY_FILE = "secret.key"
KEY_BYTES = 32
SECRET_CHARS_MIN = 32


def master_secret(data: Path, configured: str | None) -> bytes:
    """The configured secret, or that of the data directory, made at first use."""
    if configured is not None:
        if len(configured) < SECRET_CHARS_MIN:
            raise InvalidRequest(
                f"SLUICE_SECRET_KEY has {len(configured)} characters; the least is "
                f"{SECRET_CHARS_MIN}: python3 -c 'import secrets; print(secrets.token_hex(32))'",
                field="secret_key",
            )
        return configured.encode()
    path = data / KEY_FILE
    if not path.exists():
        _create(path)
    if path.stat().st_mode & 0o077:
        raise InvalidRequest(f"{path} can be read by others than its owner: chmod 600 {path}")
    return path.read_bytes()


def _create(path: Path) -> None:
    """Write a new secret whole, so that no other process ever reads half of it or another one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):  # another process was first: its secret counts
        os.link(fresh, path)
    fresh.unlink()


def derive(master: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose; knowing one tells nothing of the others."""
    kdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=f"sluice {purpose}".encode())
    return kdf.derive(master)
