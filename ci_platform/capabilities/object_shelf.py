"""Databases of repositories in object storage, for deployments of several machines.

A row says which object is the newest state. A statement runs on a copy of it; if it changed the
copy, that becomes a new object and the row is moved to it, which is when the statement counts: a
worker that was overtaken meanwhile has changed nothing, and does it again on the newer state. No
worker ever holds anything, so none that dies has to give anything back.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.store import ObjectStore

from ci_platform.capabilities.shelf import folder_name
from ci_platform.errors import InternalError, TooMany
from ci_platform.model import RepositoryId
from ci_platform.ports.granting import ShelfStore, Shelved

Found = TypeVar("Found")
TRIES_MAX = 20  # of a statement that is overtaken again and again
COPIES_MAX = 32  # kept here between statements
_CHANGES = slice(24, 28)  # of a SQLite file: its count of changes


class ObjectShelf:
    """A `Shelf` over the store's rows and an object store. Copies are this process's alone."""

    def __init__(self, rows: ShelfStore, objects: ObjectStore) -> None:
        self._rows = rows
        self._objects = objects
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._copies: dict[tuple[RepositoryId, str], Shelved] = {}  # what stands in the folder
        self._used: set[RepositoryId] = set()  # their copies must stay

    def use(self, repository: RepositoryId, name: str, work: Callable[[Path], Found]) -> Found:
        with self._lock:
            self._used.add(repository)
        try:
            return self._use(repository, name, work)
        finally:
            with self._lock:
                self._used.discard(repository)

    def _use(self, repository: RepositoryId, name: str, work: Callable[[Path], Found]) -> Found:
        for _ in range(TRIES_MAX):
            try:
                newest = self._rows.get(repository, name)
                path = self._copy(repository, name, newest)
            except FileNotFoundError:
                continue  # the object was replaced between the two looks
            except (OSError, obstore.exceptions.BaseError) as error:
                raise InternalError(f"the storage of {repository} is out of reach") from error
            before = _changes(path)
            try:
                found = work(path)
            except BaseException:
                self._drop(repository, name)  # whatever it left there
                raise
            if _changes(path) == before or self._keep(repository, name, newest, path):
                return found
            self._drop(repository, name)
        raise TooMany("the storage of this repository is written by too many at once")

    def remove(self, repository: RepositoryId) -> None:
        for name in self._rows.remove(repository):
            self._forget(name)

    def _copy(self, repository: RepositoryId, name: str, newest: Shelved | None) -> Path:
        """This machine's copy of the newest state. Raises FileNotFoundError if it is gone."""
        folder = self._folder() / folder_name(repository)
        path = folder / f"{name}.db"
        if newest is not None and self._copies.get((repository, name)) == newest:
            return path
        self._drop(repository, name)
        self._make_room()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if newest is not None:
            path.write_bytes(obstore.get(self._objects, newest.object).bytes())
            self._copies[repository, name] = newest
        return path

    def _keep(
        self, repository: RepositoryId, name: str, newest: Shelved | None, path: Path
    ) -> bool:
        """Make the changed copy the newest state. False: another came first."""
        to = f"storage/{folder_name(repository)}/{name}-{uuid.uuid4().hex}.db"
        try:
            obstore.put(self._objects, to, path)
        except (OSError, obstore.exceptions.BaseError) as error:
            self._drop(repository, name)
            raise InternalError(f"the storage of {repository} cannot be written") from error
        version = 0 if newest is None else newest.version
        moved = self._rows.move(repository, name, version=version, to=to)
        if moved is None:
            self._forget(to)
            return False
        self._copies[repository, name] = moved
        if newest is not None:
            self._forget(newest.object)
        return True

    def _make_room(self) -> None:
        with self._lock:
            idle = [key for key in list(self._copies) if key[0] not in self._used]
            for key in idle[: max(0, len(self._copies) - COPIES_MAX + 1)]:
                self._drop(*key)

    def _folder(self) -> Path:
        with self._opening:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="sluice-storage-")
            return Path(self._temporary.name)

    def _drop(self, repository: RepositoryId, name: str) -> None:
        self._copies.pop((repository, name), None)
        folder = self._folder() / folder_name(repository)
        for path in folder.glob(f"{name}.db*"):
            path.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        """An object that stays behind costs space, and is no reason to fail a statement."""
        with contextlib.suppress(OSError, obstore.exceptions.BaseError):
            obstore.delete(self._objects, name)

    def close(self) -> None:
        """Drop the copies; what was kept is in the object store."""
        with self._opening:
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = None


def _changes(path: Path) -> bytes:
    """SQLite counts a file's changes in its header; a database without any is no file, or empty."""
    try:
        with path.open("rb") as file:
            return file.read(28)[_CHANGES]
    except FileNotFoundError:
        return b""
