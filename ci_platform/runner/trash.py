"""Removing workspaces in the background: a step never waits for the files of another to go.

What is thrown away is moved aside at once, which is one rename, and removed by a thread. What a
worker did not get to remove before it ended, the next one does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import stat
import threading
import time
from pathlib import Path

WAITING_MAX = 16  # directories thrown away but still there; then throwing away waits
CLOSE_SECONDS = 5.0
_LOOK_SECONDS = 0.02

_log = logging.getLogger(__name__)


class Trash:
    """A directory that empties itself. Workers of one machine may share it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._waiting: queue.Queue[str | None] = queue.Queue(WAITING_MAX)
        self._left = sorted(path.name for path in directory.iterdir())
        self._thread = threading.Thread(target=self._empty, name="trash", daemon=True)
        self._thread.start()

    def throw(self, path: Path, lock: int) -> None:
        """Move a directory here; it is gone from its place when this returns.

        `lock`: the descriptor of it that the caller has locked; closed once it is moved.
        """
        name = f"{path.name}-{os.urandom(6).hex()}"
        try:
            os.rename(path, self._directory / name)
        finally:
            os.close(lock)
        self._waiting.put(name)

    def settle(self) -> None:
        """Wait until what was thrown away so far is gone, or for a moment."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and self._waiting.unfinished_tasks:
            if time.monotonic() > deadline:
                return
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Stop removing, after a moment. Safe to call twice."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(CLOSE_SECONDS)

    def _empty(self) -> None:
        for left in self._left:
            self._remove(left)
        while (name := self._waiting.get()) is not None:
            self._remove(name)
            self._waiting.task_done()

    def _remove(self, name: str) -> None:
        path = self._directory / name
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(self._directory, name)
        except BlockingIOError:
            return  # another worker is at it
        except OSError:
            _log.exception("%s cannot be removed", path)
        finally:
            os.close(lock)


def remove_tree(parent: Path, name: str) -> None:
    """Remove a directory that a command filled, however deep or closed its directories are.

    Directories are first moved up to one level, so neither recursion nor the length of a path
    is a limit; `shutil.rmtree` fails for both.
    """
    top = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(top, 0o700)
        waiting = _clear(top, top, 0)
        moved = len(waiting)
        while waiting:
            directory = waiting.pop()
            _open_up(top, directory)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(directory, flags, dir_fd=top)
            try:
                below = _clear(fd, top, moved)
            finally:
                os.close(fd)
            moved += len(below)
            waiting += below
            os.rmdir(directory, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(parent / name)


def _clear(directory: int, top: int, moved: int) -> list[str]:
    """Unlink the files of a directory and move its directories to `top`; their new names."""
    names: list[str] = []
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        _open_up(directory, name)
        names.append(f".removing-{moved + len(names)}")
        os.rename(name, names[-1], src_dir_fd=directory, dst_dir_fd=top)
    return names


def _open_up(parent: int, name: str) -> None:
    mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, 0o700, dir_fd=parent)
