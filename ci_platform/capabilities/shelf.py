"""Where the databases of repositories stand: in the deployment's directory, one folder each.

`ObjectShelf`, for deployments of several machines, is in object_shelf.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from ci_platform.errors import InternalError
from ci_platform.model import RepositoryId

Found = TypeVar("Found")
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Shelf(Protocol):
    """Keeps database files. Safe to call from many threads, for one repository from one."""

    def use(self, repository: RepositoryId, name: str, work: Callable[[Path], Found]) -> Found:
        """Let `work` read and write a database; what it wrote is durable when this returns.
        `work` may be called again, on the state that another worker left."""

    def remove(self, repository: RepositoryId) -> None:
        """Drop all databases of a repository. Safe to call twice."""

    def close(self) -> None: ...


class LocalShelf:
    """Files on this machine. Several processes may use them at once: SQLite locks them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def use(self, repository: RepositoryId, name: str, work: Callable[[Path], Found]) -> Found:
        folder = self._folder / folder_name(repository)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InternalError(f"the storage of {repository} cannot be made: {error}") from error
        return work(folder / f"{name}.db")

    def remove(self, repository: RepositoryId) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder / folder_name(repository))

    def close(self) -> None:
        """Files stay."""


def folder_name(repository: RepositoryId) -> str:
    """A repository's id as a file name: the platform made it, yet a path rests on it."""
    if not _SAFE.fullmatch(repository):
        raise InternalError(f"the repository id {repository[:100]!r} is no file name")
    return repository
