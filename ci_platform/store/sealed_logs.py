"""Logs that have ended, each one object `logs/<sha256>`: its chunks in order, then an index.

The object is valid zstd: every chunk is a frame, and the index is a skippable one. A row tells
which object a log has and how far it reaches; lines written later (another attempt) are rows again,
until the log is sealed anew. The object goes when no run refers to it any more, as layers do.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import obstore
import zstandard
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore
from sqlalchemy import Connection, and_, bindparam, func, select

from ci_platform.durable import sync
from ci_platform.errors import Conflict, StoreUnavailable
from ci_platform.model import LogLine, RunId
from ci_platform.store.database import Database
from ci_platform.store.log_chunks import Chunk, chunks, unpacked
from ci_platform.store.retention import note_objects
from ci_platform.store.tables import LOG_CHUNKS, LOG_HOT_BYTES, LOGS, RUN_LAYERS, RUNS, SEALED_LOGS

READ_BYTES_MAX = 8 << 20  # before compression, of one read; at least one chunk is returned
BATCH_LINES = 10_000
INDEXES_MAX = 64  # held in memory
_COPY_BYTES = 1 << 20
_SKIPPABLE = 0x184D2A50  # begins a frame that zstd passes over
_HEAD = struct.Struct("<II")

_RUN = select(RUNS.c.n).where(RUNS.c.id == bindparam("run_id")).scalar_subquery()
_FIND = select(SEALED_LOGS).where(
    SEALED_LOGS.c.run_n == _RUN, SEALED_LOGS.c.step == bindparam("step")
)
_HOT = select(func.sum(LOG_CHUNKS.c.size)).where(
    LOG_CHUNKS.c.run_n == _RUN, LOG_CHUNKS.c.step == bindparam("step")
)
_LOCK = (
    select(LOGS.c.run_n)
    .where(LOGS.c.run_n == _RUN, LOGS.c.step == bindparam("step"))
    .with_for_update()
)

ReadRows = Callable[[int], Sequence[LogLine]]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Where the lines of a log are, up to `last`."""

    digest: str
    last: int
    index_at: int  # where the index begins in the object
    size: int  # of the object


@dataclass(frozen=True, slots=True)
class _Index:
    firsts: Sequence[int]
    frames: Sequence[tuple[int, int, int, int]]  # first line, last line, size, offset
    end: int  # where the last frame ends

    def data(self, number: int) -> tuple[int, int]:
        """Where a frame begins and ends."""
        last = number + 1 == len(self.frames)
        return self.frames[number][3], self.end if last else self.frames[number + 1][3]


class SealedLogs:
    def __init__(self, database: Database, objects: ObjectStore | None) -> None:
        """`objects` None: logs stay rows."""
        self._database = database
        self._objects = objects
        self._lock = threading.Lock()
        self._indexes: dict[str, _Index] = {}  # by digest, oldest first

    def find(self, run_id: RunId, step: str) -> Sealed | None:
        asked = {"run_id": run_id, "step": step}
        row = self._database.read(lambda connection: connection.execute(_FIND, asked).first())
        return None if row is None else Sealed(row.digest, row.last, row.index_at, row.size)

    def read(self, sealed: Sealed, *, after: int, limit: int) -> list[LogLine]:
        """The next lines, at least one if there is one."""
        index = self._index(sealed)
        start = end = max(0, bisect_right(index.firsts, after + 1) - 1)
        size = lines = 0
        while end < len(index.frames) and lines < limit:
            first, last, bytes_, _ = index.frames[end]
            size += bytes_
            if end > start and size > READ_BYTES_MAX:
                break
            lines += last - max(first - 1, after)
            end += 1
        return [line for line in self._lines(sealed, start, end) if line.number > after][:limit]

    def tail(self, sealed: Sealed, *, limit: int) -> list[LogLine]:
        index = self._index(sealed)
        start = end = len(index.frames)
        size = lines = 0
        while start > 0 and lines < limit:
            first, last, bytes_, _ = index.frames[start - 1]
            size += bytes_
            if start < end and size > READ_BYTES_MAX:
                break
            lines += last - first + 1
            start -= 1
        return list(self._lines(sealed, start, end))[-limit:]

    def seal(self, run_id: RunId, step: str, rows: ReadRows) -> bool:
        """Move a log's rows into an object; `rows` reads those behind a line. False: not worth it,
        or another process was at it. Raises StoreUnavailable."""
        asked = {"run_id": run_id, "step": step}
        hot = self._database.read(lambda connection: connection.execute(_HOT, asked).scalar())
        if self._objects is None or not hot or hot < LOG_HOT_BYTES:
            return False
        before = self.find(run_id, step)
        with tempfile.NamedTemporaryFile(prefix="sluice-log-") as file:
            sealed = self._write(cast(IO[bytes], file), before, rows)
            file.flush()
            self._put(sealed.digest, Path(file.name))
        try:
            return self._database.write(lambda one: _move(one, asked, before, sealed))
        except Conflict:
            return False

    def _write(self, to: IO[bytes], before: Sealed | None, rows: ReadRows) -> Sealed:
        file = _Hashing(to)
        frames: list[tuple[int, int, int, int]] = []
        if before is not None:
            frames += self._index(before).frames
            for piece in self._pieces(before.digest, before.index_at):
                file.write(piece)
        at = frames[-1][1] if frames else 0
        while lines := rows(at):
            for chunk in chunks(lines):
                frames.append(_written(file, chunk))
            at = lines[-1].number
        index_at = file.size
        packed = zstandard.compress(json.dumps(frames, separators=(",", ":")).encode())
        file.write(_HEAD.pack(_SKIPPABLE, len(packed)) + packed)
        return Sealed(file.digest(), at, index_at, file.size)

    def _put(self, digest: str, path: Path) -> None:
        assert self._objects is not None, "seal looked"
        try:
            obstore.put(self._objects, log_path(digest), path)
            if isinstance(self._objects, LocalStore):
                sync(Path(str(self._objects.prefix or "/")) / log_path(digest))
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"a log cannot be stored: {error}") from error

    def _index(self, sealed: Sealed) -> _Index:
        with self._lock:
            if sealed.digest in self._indexes:
                return self._indexes[sealed.digest]
        data = self._range(sealed.digest, sealed.index_at + _HEAD.size, sealed.size)
        try:
            frames = [tuple(one) for one in json.loads(zstandard.decompress(data))]
        except (zstandard.ZstdError, ValueError) as error:
            raise StoreUnavailable(f"log {sealed.digest} is damaged: {error}") from error
        found = _Index([one[0] for one in frames], frames, sealed.index_at)
        with self._lock:
            self._indexes[sealed.digest] = found
            while len(self._indexes) > INDEXES_MAX:
                del self._indexes[next(iter(self._indexes))]
        return found

    def _lines(self, sealed: Sealed, start: int, end: int) -> Iterator[LogLine]:
        """The lines of the frames from `start` up to `end`, read at once."""
        if start >= end:
            return
        index = self._index(sealed)
        begin, stop = index.data(start)[0], index.data(end - 1)[1]
        data = self._range(sealed.digest, begin, stop)
        try:
            for number in range(start, end):
                at, until = index.data(number)
                yield from unpacked(data[at - begin : until - begin], index.frames[number][2])
        except (zstandard.ZstdError, ValueError) as error:
            raise StoreUnavailable(f"log {sealed.digest} is damaged: {error}") from error

    def _pieces(self, digest: str, end: int) -> Iterator[bytes]:
        for at in range(0, end, _COPY_BYTES):
            yield self._range(digest, at, min(end, at + _COPY_BYTES))

    def _range(self, digest: str, start: int, end: int) -> bytes:
        if self._objects is None:
            raise StoreUnavailable(f"log {digest} is in an object store that is not open")
        try:
            return bytes(obstore.get_range(self._objects, log_path(digest), start=start, end=end))
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"log {digest} cannot be read: {error}") from error


class _Hashing:
    """A file that knows the SHA-256 of what was written."""

    def __init__(self, to: IO[bytes]) -> None:
        self._to = to
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._to.write(data)
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> str:
        return self._hash.hexdigest()


def log_path(digest: str) -> str:
    return f"logs/{digest}"


def _written(file: _Hashing, chunk: Chunk) -> tuple[int, int, int, int]:
    at = file.size
    file.write(chunk.data)
    return chunk.first, chunk.last, chunk.size, at


def _move(
    connection: Connection, asked: Mapping[str, str], before: Sealed | None, sealed: Sealed
) -> bool:
    """Let the object take the place of the rows, unless the log was sealed meanwhile."""
    run_n = connection.execute(_LOCK, asked).scalar_one_or_none()
    if run_n is None:
        return False  # the run is gone
    found = connection.execute(_FIND, asked).first()
    if (None if found is None else found.digest) != (None if before is None else before.digest):
        return False
    own = {"run_n": run_n, "step": asked["step"]}
    mine = and_(SEALED_LOGS.c.run_n == run_n, SEALED_LOGS.c.step == asked["step"])
    connection.execute(SEALED_LOGS.delete().where(mine))
    place = {"index_at": sealed.index_at, "size": sealed.size}
    row = {**own, "digest": sealed.digest, "last": sealed.last, **place}
    connection.execute(SEALED_LOGS.insert(), row)
    hot = and_(LOG_CHUNKS.c.run_n == run_n, LOG_CHUNKS.c.step == asked["step"])
    connection.execute(LOG_CHUNKS.delete().where(hot, LOG_CHUNKS.c.last <= sealed.last))
    left = select(func.coalesce(func.sum(LOG_CHUNKS.c.size), 0)).where(hot).scalar_subquery()
    log = and_(LOGS.c.run_n == run_n, LOGS.c.step == asked["step"])
    connection.execute(LOGS.update().where(log).values(hot=left))
    if before is not None and before.digest != sealed.digest:
        old = and_(RUN_LAYERS.c.run_n == run_n, RUN_LAYERS.c.digest == before.digest)
        connection.execute(RUN_LAYERS.delete().where(old))
    note_objects(connection, run_n, [sealed.digest])
    return True
