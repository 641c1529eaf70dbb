"""Whose turn it is to write to a SQLite file.

SQLite admits one writer, and those that wait for its lock sleep between looks, up to 100 ms each:
under load the unlucky wait for long. So our writers queue before they ask for it, within a process
on a lock, between processes on a lock of a file beside the database, and the next one is woken at
once. It is a courtesy: whoever writes without it is still kept out by SQLite itself.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from ci_platform.errors import StoreUnavailable


class Turn:
    """Held as a context manager. A process that dies gives its turn away."""

    def __init__(self, path: Path) -> None:
        """Raises StoreUnavailable if the file cannot be made."""
        self._threads = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from error

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if self._file < 0:
                raise StoreUnavailable("the store is closed")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def close(self) -> None:
        with self._threads:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
