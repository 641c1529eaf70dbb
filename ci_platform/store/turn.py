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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ci_platform.errors import StoreUnavailable


class Turn:
    def __init__(self, path: Path) -> None:
        """Raises StoreUnavailable if the file cannot be made."""
        self._threads = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from error

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn and hold it. A process that dies gives its turn away."""
        with self._threads:
            if self._file < 0:
                raise StoreUnavailable("the store is closed")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        with self._threads:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
