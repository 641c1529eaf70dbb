"""Where a pack waits while it is received, indexed and checked; nothing in here is visible.

Small packs stay in memory. Larger ones are files that go away with the quarantine, whatever
happens; those of a process that died are swept by age.
"""

from __future__ import annotations

import binascii
import hashlib
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from git_store.errors import BadPack, OverLimit
from git_store.index import Entry, Indexed, Lookup, Progress, index_bytes, index_pack
from git_store.index_process import index_apart
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.pack import Pack, map_file
from git_store.packfile import SLICE, TRAILER, Buffer, entry_header
from git_store.packs import NewPack, sync

_SMALLEST = 12 + TRAILER


@dataclass(frozen=True, slots=True)
class Arrived:
    """A pack that is whole and connected: everything it refers to is in it or in the repository."""

    new: NewPack
    pack: Pack
    needs: frozenset[bytes]  # what its objects refer to and only the repository has


class Quarantine:
    def __init__(
        self, directory: Path, pack_id: str, limits: Limits, heavy: threading.Semaphore
    ) -> None:
        self._limits = limits
        self._heavy = heavy
        self._id = pack_id
        self._directory = directory
        self._pack_file = directory / f"{pack_id}.pack"
        self._index_file = directory / f"{pack_id}.idx"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pack_file.unlink(missing_ok=True)
        self._index_file.unlink(missing_ok=True)

    def admit(
        self, chunks: Iterable[bytes], objects: Objects, *, progress: Progress, room: int
    ) -> Arrived | None:
        """Take in a pack and check it. None if it brings nothing that is not here already.

        `room` is what the repository's quota leaves. Raises BadPack, OverLimit.
        """
        data = self._spool(chunks, room)
        indexed = self._index(data, objects.find, progress)
        for name in indexed.wanted:
            if not objects.has(name):
                raise BadPack(f"missing necessary objects: {name.hex()} is referred to, not sent")
        arrived = self._finish(data, indexed)
        if objects.packs and not _brings_news(arrived.pack, indexed, objects):
            return None
        return arrived if indexed.entries else None

    def rebuild(self, chunks: Iterable[bytes]) -> Arrived:
        """Take in a pack made of objects that are here; nothing about them needs checking."""
        data = self._spool(chunks, room=self._limits.repository_bytes)
        indexed = self._index(data, lambda name: None, lambda text: None)
        return self._finish(data, indexed)

    def _index(self, data: Buffer, lookup: Lookup, progress: Progress) -> Indexed:
        if isinstance(data, bytes):
            return index_pack(data, limits=self._limits, lookup=lookup, progress=progress)
        with self._heavy:
            if len(data) < self._limits.process_bytes:
                return index_pack(data, limits=self._limits, lookup=lookup, progress=progress)
            return index_apart(
                self._pack_file, limits=self._limits, lookup=lookup, progress=progress
            )

    def _spool(self, chunks: Iterable[bytes], room: int) -> Buffer:
        """Receive the whole pack, hashing it on the way, and check its trailer."""
        digest = hashlib.sha1()
        tail = b""
        size = 0
        held: list[bytes] = []
        file: BinaryIO | None = None
        try:
            for chunk in chunks:
                size += len(chunk)
                self._check_size(size, room)
                if file is None and size > self._limits.inline_pack_bytes:
                    file = self._open()
                    file.writelines(held)
                    held.clear()
                if file is None:
                    held.append(chunk)
                else:
                    file.write(chunk)
                seen = tail + chunk
                digest.update(memoryview(seen)[:-TRAILER])
                tail = seen[-TRAILER:]
        finally:
            if file is not None:
                file.close()
        if size < _SMALLEST or digest.digest() != tail:
            raise BadPack("the pack is damaged or was cut short")
        return map_file(self._pack_file) if file is not None else b"".join(held)

    def _check_size(self, size: int, room: int) -> None:
        if size > self._limits.push_bytes:
            raise OverLimit(
                f"the push is larger than {self._limits.push_bytes} bytes, which is the limit of"
                " one push (push_bytes)",
                limit="push_bytes",
            )
        if size > room:
            raise OverLimit(
                f"the repository would grow over its quota of {self._limits.repository_bytes}"
                f" bytes (repository_bytes); {max(0, room)} are left",
                limit="repository_bytes",
            )

    def _open(self) -> BinaryIO:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._pack_file.open("xb")

    def _finish(self, data: Buffer, indexed: Indexed) -> Arrived:
        """Complete a thin pack, write the index, make files durable."""
        entries = indexed.entries
        if indexed.bases:
            data, added = self._complete(data, indexed)
            entries = sorted(entries + added)
        checksum = bytes(data[len(data) - TRAILER :])
        index: Buffer = index_bytes(entries, checksum)
        inline = isinstance(data, bytes)
        if not inline:
            self._index_file.write_bytes(bytes(index))
            for path in (self._pack_file, self._index_file):
                sync(path)
        new = NewPack(
            id=self._id,
            checksum=checksum.hex(),
            size=len(data),
            objects=len(entries),
            roots=tuple(indexed.roots),
            data=bytes(data) if inline else None,
            pack_file=None if inline else self._pack_file,
            index_file=None if inline else self._index_file,
        )
        return Arrived(
            new=new,
            pack=Pack(self._id, data, index, new.roots),
            needs=frozenset(indexed.wanted),
        )

    def _complete(self, data: Buffer, indexed: Indexed) -> tuple[Buffer, list[Entry]]:
        """Append the missing bases, so that the pack can be read on its own."""
        added: list[Entry] = []
        extra: list[bytes] = []
        position = len(data) - TRAILER
        for name, kind, content in indexed.bases:
            entry = entry_header(kind, len(content)) + zlib.compress(content, 1)
            added.append((name, position, binascii.crc32(entry)))
            extra.append(entry)
            position += len(entry)
        count = int.from_bytes(data[8:12], "big") + len(added)
        head = data[:8] + count.to_bytes(4, "big")
        digest = hashlib.sha1(head)
        for piece in [*_pieces(data, 12, len(data) - TRAILER), *extra]:
            digest.update(piece)
        tail = b"".join([*extra, digest.digest()])
        if isinstance(data, bytes) and position + TRAILER <= self._limits.inline_pack_bytes:
            return head + data[12:-TRAILER] + tail, added
        if isinstance(data, bytes):
            with self._open() as file:
                file.write(data)
        with self._pack_file.open("r+b") as file:
            file.write(head)
            file.seek(len(data) - TRAILER)
            file.write(tail)
        return map_file(self._pack_file), added


def _pieces(data: Buffer, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, SLICE):
        yield data[at : min(end, at + SLICE)]


def _brings_news(pack: Pack, indexed: Indexed, objects: Objects) -> bool:
    """True if any object is not here yet. One that is here must be the same: SHA-1 collides."""
    news = False
    for name in indexed.types:
        there = objects.locate(name)
        if there is None:
            news = True
        elif _digest(Objects([pack]), name) != _digest(objects, name):
            raise BadPack(f"object {name.hex()} is here already with another content")
    return news


def _digest(objects: Objects, name: bytes) -> tuple[int | None, bytes]:
    digest = hashlib.sha256()
    for content in objects.slices(name):
        digest.update(content)
    found = objects.info(name)
    return (found[0] if found else None), digest.digest()


def sweep(directory: Path, *, before_ms: int) -> int:
    """Remove what pushes of dead processes left behind."""
    removed = 0
    if not directory.is_dir():
        return 0
    for path in directory.iterdir():
        if path.stat().st_mtime * 1000 < before_ms:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
    return removed
