"""The data directory's lock: one server at a time, and how others learn its address.

The kernel drops the lock with the process that holds it, so a file left behind blocks nothing.
Taken by serve.py, asked by app.py for commands that run beside a server.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ci_platform.errors import InvalidRequest

LOCK_FILE = "serve.lock"
WAIT_SECONDS = 0.5  # for a killed server to be gone, and for `running_url` to let go
LOOK_SECONDS = 0.01


class ServerBusy(InvalidRequest):
    """Another `sluice serve` uses this data directory."""


def make_directory(data: Path) -> None:
    """Make the data directory, for its owner alone, unless it is there. Raises InvalidRequest."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidRequest(f"SLUICE_DATA: {data} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def locked(data: Path) -> Iterator[TextIO]:
    """Hold the data directory alone. Yields the lock's file, for `note`. Raises ServerBusy."""
    make_directory(data)
    deadline = time.monotonic() + WAIT_SECONDS
    with (data / LOCK_FILE).open("a+", encoding="utf-8") as file:
        while not _take(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = _holder(file.read())
                raise ServerBusy(f"{data} is in use by another `sluice serve`{holder}")
            time.sleep(LOOK_SECONDS)
        note(file, "")
        yield file


def _take(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def note(file: TextIO, url: str) -> None:
    """Write down who holds the lock, and where it can be reached."""
    file.seek(0)
    file.truncate()
    file.write(json.dumps({"pid": os.getpid(), "url": url}))
    file.flush()


def _holder(text: str) -> str:
    try:
        noted = json.loads(text)
    except ValueError:
        return ""
    return f": pid {noted['pid']} {noted['url']}".rstrip()


def running_url(data: Path) -> str | None:
    """The URL of the server that uses this data directory now; None if there is none."""
    try:
        with (data / LOCK_FILE).open(encoding="utf-8") as file:
            if _take(file, fcntl.LOCK_SH):
                return None
            return str(json.loads(file.read() or "{}").get("url") or "") or None
    except (OSError, ValueError):  # nothing there, or nothing of ours
        return None
