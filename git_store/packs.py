"""Immutable packs: small ones as rows, larger ones as objects, and the opened ones of this process.

A pack is stored once under an id of its own and never changes; which repositories use it is rows.
Nothing here knows refs. `Packs` is shared by all threads; an opened `Pack` is read-only.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from git_store.database import Clock, Database, new_id
from git_store.direct import Direct
from git_store.errors import BadPack, ObjectNotFound, StorageFailed
from git_store.index import index_bytes, index_pack
from git_store.limits import Limits
from git_store.pack import Pack, map_file, sync
from git_store.packfile import TRAILER
from git_store.tables import packs, repositories, repository_packs

log = logging.getLogger(__name__)

PREFIX = "packs/"
_IDS_PER_QUERY = 500
_INLINE_OVERHEAD_BYTES = 4096  # an index and its objects in Python
_LISTED = Direct(
    select(repository_packs.c.pack_id)
    .where(repository_packs.c.repository_id == bindparam("repository"))
    .order_by(repository_packs.c.pack_id)
)
_GROW = Direct(
    update(repositories)
    .where(repositories.c.id == bindparam("repository"))
    .values(pack_bytes=repositories.c.pack_bytes + bindparam("size"))
)
_ADD_PACK, _ADD_TO_LIST = Direct(insert(packs)), Direct(insert(repository_packs))


@dataclass(frozen=True, slots=True)
class NewPack:
    """A checked pack in quarantine: in memory, or two files."""

    id: str
    checksum: str
    size: int
    objects: int
    roots: tuple[bytes, ...] | None
    data: bytes | None
    pack_file: Path | None
    index_file: Path | None


class Packs:
    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        directory: Path,
        *,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._database = database
        self._objects = objects
        self._directory = directory
        self._clock = clock
        self._limits = limits
        self._opened: OrderedDict[str, Pack] = OrderedDict()
        self._mapped = 0  # each holds two descriptors
        self._inline_bytes = 0
        self._lock = threading.Lock()

    def new_id(self) -> str:
        return new_id("pack", self._clock())

    # --- writing ----------------------------------------------------------------------------------

    def upload(self, new: NewPack) -> None:
        """Make the bytes of a large pack durable; small ones go with the row."""
        if new.pack_file is None or new.index_file is None:
            return
        # The index last: who finds one may rely on the pack.
        for key, path in ((pack_key(new.id), new.pack_file), (index_key(new.id), new.index_file)):
            with _storing():
                if isinstance(self._objects, LocalStore):
                    _move_in(self._objects, key, path)
                else:
                    obstore.put(self._objects, key, path)

    def insert(self, connection: Connection, repository_id: str, new: NewPack) -> None:
        """Add the row, put the pack on the repository's list and on its account."""
        row = {
            "id": new.id,
            "checksum": new.checksum,
            "size": new.size,
            "objects": new.objects,
            "roots": None if new.roots is None else b"".join(new.roots),
            "data": new.data,
            "created_ms": self._clock(),
            "released_ms": None,
        }
        _ADD_PACK.run(connection, row)
        _ADD_TO_LIST.run(connection, {"repository_id": repository_id, "pack_id": new.id})
        _GROW.run(connection, {"repository": repository_id, "size": new.size})

    def release(self, connection: Connection, repository_id: str, pack_ids: Sequence[str]) -> int:
        """Take packs off the repository's list and account. Returns how many were on it."""
        listed = repository_packs.c.repository_id == repository_id
        taken = 0
        for at in range(0, len(pack_ids), _IDS_PER_QUERY):
            some = pack_ids[at : at + _IDS_PER_QUERY]
            size = select(func.sum(packs.c.size)).where(packs.c.id.in_(some)).scalar_subquery()
            connection.execute(
                update(repositories)
                .where(repositories.c.id == repository_id)
                .values(pack_bytes=repositories.c.pack_bytes - size)
            )
            connection.execute(
                update(packs).where(packs.c.id.in_(some)).values(released_ms=self._clock())
            )
            gone = delete(repository_packs).where(listed, repository_packs.c.pack_id.in_(some))
            taken += connection.execute(gone).rowcount
        return taken

    def discard(self, pack_ids: Iterable[str]) -> None:
        """Remove objects whose rows are gone. Twice is as good as once."""
        for pack_id in pack_ids:
            with self._lock:
                self._forget(pack_id)
            for key in (index_key(pack_id), pack_key(pack_id)):
                with suppress(NotFoundError, FileNotFoundError):
                    obstore.delete(self._objects, key)
            for path in self._cached(pack_id):
                path.unlink(missing_ok=True)

    # --- opening ----------------------------------------------------------------------------------

    def of_repository(self, repository_id: str) -> list[Pack]:
        """The repository's packs as of now, opened, oldest first."""
        with self._database.reading() as connection:
            found = _LISTED.rows(connection, {"repository": repository_id})
        return self.open([row[0] for row in found])

    def open(self, pack_ids: Sequence[str]) -> list[Pack]:
        """Packs in the order asked for, from those opened before where possible."""
        with self._lock:
            found = {key: self._opened[key] for key in pack_ids if key in self._opened}
            for key in found:
                self._opened.move_to_end(key)
        missing = [key for key in pack_ids if key not in found]
        for at in range(0, len(missing), _IDS_PER_QUERY):
            found.update(self._open_rows(missing[at : at + _IDS_PER_QUERY]))
        for key in missing:
            self.adopt(found[key])
        return [found[key] for key in pack_ids]

    def adopt(self, pack: Pack) -> None:
        """Keep an opened pack at hand; let go of those used longest ago."""
        if not isinstance(pack.data, bytes) and isinstance(self._objects, LocalStore):
            pack.files = _local_files(self._objects, pack.id)
        with self._lock:
            self._forget(pack.id)
            self._opened[pack.id] = pack
            self._count(pack, 1)
            while (
                self._mapped > self._limits.open_packs
                or self._inline_bytes > self._limits.open_inline_bytes
            ):
                self._forget(next(iter(self._opened)))

    def _forget(self, pack_id: str) -> None:
        pack = self._opened.pop(pack_id, None)
        if pack is not None:
            self._count(pack, -1)

    def _count(self, pack: Pack, sign: int) -> None:
        if isinstance(pack.data, bytes):
            self._inline_bytes += sign * (len(pack.data) + _INLINE_OVERHEAD_BYTES)
        else:
            self._mapped += sign

    def _open_rows(self, pack_ids: Sequence[str]) -> dict[str, Pack]:
        rows = select(packs.c.id, packs.c.roots, packs.c.data).where(packs.c.id.in_(pack_ids))
        opened: dict[str, Pack] = {}
        with self._database.reading() as connection:
            found = connection.execute(rows).all()
        for pack_id, roots, data in found:
            if data is not None:
                opened[pack_id] = self._open_inline(pack_id, data, roots)
            else:
                opened[pack_id] = self._open_files(pack_id, roots)
        if len(opened) != len(pack_ids):
            gone = set(pack_ids) - opened.keys()
            raise ObjectNotFound(f"pack {min(gone)} has gone; the repository was just repacked")
        return opened

    def _open_inline(self, pack_id: str, data: bytes, roots: bytes | None) -> Pack:
        """Small packs keep no index: making one costs less than reading it from a row would."""
        indexed = index_pack(data, limits=self._limits, lookup=lambda name: None)
        index = index_bytes(indexed.entries, data[-TRAILER:])
        return Pack(pack_id, data, index, _split(roots))

    def _open_files(self, pack_id: str, roots: bytes | None) -> Pack:
        if isinstance(self._objects, LocalStore):
            pack_file, index_file = _local_files(self._objects, pack_id)
        else:
            pack_file, index_file = self._cached(pack_id)
            self._download(pack_key(pack_id), pack_file)
            self._download(index_key(pack_id), index_file)
        try:
            maps = map_file(pack_file), map_file(index_file)
        except (OSError, ValueError) as error:
            raise BadPack(f"pack {pack_id} cannot be opened: {error}") from error
        return Pack(pack_id, *maps, _split(roots), (pack_file, index_file))

    # --- local copies of a remote object store ----------------------------------------------------

    def _cached(self, pack_id: str) -> tuple[Path, Path]:
        folder = self._directory / "packs"
        return folder / f"{pack_id}.pack", folder / f"{pack_id}.idx"

    def _download(self, key: str, path: Path) -> None:
        """Fetch a key unless its copy is here; copies appear whole or not at all."""
        if path.exists():
            os.utime(path)  # used just now: last to be dropped
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
        try:
            with _storing(), partial.open("wb") as file:
                for chunk in obstore.get(self._objects, key).stream(min_chunk_size=1 << 20):
                    file.write(chunk)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        self._trim_cache(path.parent)

    def _trim_cache(self, folder: Path) -> None:
        """Drop the least recently used copies. Maps of them stay valid until they are closed."""
        copies: list[tuple[float, int, Path]] = []
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # another process trims too
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self._limits.cache_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def close(self) -> None:
        with self._lock:
            self._opened.clear()
            self._mapped = self._inline_bytes = 0


@contextmanager
def _storing() -> Iterator[None]:
    """Errors of disk and object store, as ours."""
    try:
        yield
    except (BaseError, OSError) as error:
        log.warning("a pack could not be stored or fetched", exc_info=True)
        raise StorageFailed() from error


def pack_key(pack_id: str) -> str:
    return f"{PREFIX}{pack_id[-2:]}/{pack_id}.pack"


def index_key(pack_id: str) -> str:
    return f"{PREFIX}{pack_id[-2:]}/{pack_id}.idx"


def local_path(objects: LocalStore, key: str) -> Path:
    if objects.prefix is None:
        raise ValueError("a LocalStore for packs needs a prefix")
    return Path(objects.prefix) / key


def _local_files(objects: LocalStore, pack_id: str) -> tuple[Path, Path]:
    return local_path(objects, pack_key(pack_id)), local_path(objects, index_key(pack_id))


def _move_in(objects: LocalStore, key: str, path: Path) -> None:
    """Put a file that was fsynced in quarantine where the store keeps `key`, durably.

    A link costs nothing where a copy of a large pack takes seconds; obstore itself does not fsync.
    """
    target = local_path(objects, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system
        obstore.put(objects, key, path)
        sync(target)
    sync(target.parent)
    sync(target.parent.parent)


def _split(roots: bytes | None) -> tuple[bytes, ...] | None:
    if roots is None:
        return None
    return tuple(roots[at : at + 20] for at in range(0, len(roots), 20))
