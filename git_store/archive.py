"""A commit's files as a tar or zip, made while they are sent: memory does not grow with them.

The same commit always gives the same tar: times are the commit's, owners are nobody.
"""

from __future__ import annotations

import io
import os
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from git_store.errors import BadPack, OverLimit
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.packfile import DIRECTORY, GITLINK, LINK, TREE, entries
from git_store.treecheck import checked_references

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_FORMAT = 0o170000
_DEPTH = 200
_BLOCK = 512
_FLUSH_BYTES = 1 << 16
_LINK_BYTES = 4095
_ZIP_EPOCH = 315_532_800  # 1980: a zip knows nothing older
_ZIP64_BYTES = 1 << 31


class ArchiveFormat(StrEnum):
    TAR = "tar.gz"
    ZIP = "zip"


@dataclass(frozen=True, slots=True)
class _Member:
    path: str  # bytes that are not UTF-8 come as surrogate escapes
    mode: int  # as in git
    blob: bytes
    size: int


class Archiver:
    def __init__(self, objects: Objects, limits: Limits) -> None:
        self._objects = objects
        self._limits = limits

    def members(self, tree: bytes, prefix: str) -> Iterator[_Member]:
        """Everything below a tree, in git's order. Raises BadPack, OverLimit."""
        count = total = 0
        todo = [(prefix, tree, 0)]
        while todo:
            parent, name, depth = todo.pop()
            kind, content = self._objects.get(name)
            if kind != TREE or depth > _DEPTH:
                raise BadPack(f"{name.hex()} should be a tree, not deeper than {_DEPTH}")
            checked_references(kind, content)  # no `..`, no slash: nothing that leads elsewhere
            below: list[tuple[str, bytes, int]] = []
            for entry, mode, child in entries(content):
                path = f"{parent}{os.fsdecode(entry)}"
                blob = bytes.fromhex(child.decode())
                count += 1
                if mode & _FORMAT == DIRECTORY:
                    below.append((f"{path}/", blob, depth + 1))
                    continue
                about = None if mode & _FORMAT == GITLINK else self._objects.info(blob)
                size = about[1] if about else 0
                total += size
                self._check(count, total)
                yield _Member(path, mode, blob, size)
            todo += reversed(below)

    def _check(self, count: int, total: int) -> None:
        if count > self._limits.export_files or total > self._limits.export_bytes:
            raise OverLimit(
                f"the tree has more than {self._limits.export_files} files (export_files) or"
                f" {self._limits.export_bytes} bytes (export_bytes)",
                limit="export_bytes",
            )

    def tar(self, members: Iterable[_Member], at_seconds: int) -> Iterator[bytes]:
        """A gzipped tar, in pieces."""
        squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: with a gzip header, without a time
        for piece in self._tar(members, at_seconds):
            if squeezed := squeeze.compress(piece):
                yield squeezed
        yield squeeze.flush()

    def _tar(self, members: Iterable[_Member], at_seconds: int) -> Iterator[bytes]:
        for member in members:
            info = tarfile.TarInfo(member.path)
            info.mtime = at_seconds
            info.mode = 0o755 if member.mode & 0o100 else 0o644
            kind = member.mode & _FORMAT
            if kind == GITLINK:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif kind == LINK:
                info.type, info.mode = tarfile.SYMTYPE, 0o777
                info.linkname = os.fsdecode(self._link(member))
            else:
                info.size = member.size
            yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if info.size:
                yield from self._objects.slices(member.blob)
                yield bytes(-info.size % _BLOCK)
        yield bytes(2 * _BLOCK)

    def zip(self, members: Iterable[_Member], at_seconds: int) -> Iterator[bytes]:
        """A zip, in pieces."""
        sink = _Sink()
        moment = time.gmtime(max(at_seconds, _ZIP_EPOCH))[:6]
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in members:
                for _ in self._zipped(archive, member, moment):
                    if sink.held > _FLUSH_BYTES:
                        yield sink.take()
        yield sink.take()

    def _zipped(
        self, archive: zipfile.ZipFile, member: _Member, moment: tuple[int, ...]
    ) -> Iterator[None]:
        """Write one file; yields now and then, so that what is written can be sent."""
        kind = member.mode & _FORMAT
        name = os.fsencode(member.path).decode("utf-8", "replace")
        info = zipfile.ZipInfo(f"{name}/" if kind == GITLINK else name, moment)  # type: ignore[arg-type]
        info.compress_type = zipfile.ZIP_DEFLATED
        mode = 0o100755 if member.mode & 0o100 else 0o100644
        info.external_attr = {LINK: 0o120777, GITLINK: 0o40755}.get(kind, mode) << 16
        if kind == GITLINK:
            archive.writestr(info, b"")
        elif kind == LINK:
            archive.writestr(info, self._link(member))
        else:
            large = member.size >= _ZIP64_BYTES
            with archive.open(info, "w", force_zip64=large) as file:
                for content in self._objects.slices(member.blob):
                    file.write(content)
                    yield
        yield

    def _link(self, member: _Member) -> bytes:
        if member.size > _LINK_BYTES:
            raise BadPack(f"a link's target is longer than {_LINK_BYTES} bytes")
        return self._objects.get(member.blob)[1]


class _Sink(io.RawIOBase):
    """Where zipfile writes: it cannot seek, so nothing is written twice, and gives it away."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.held = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self.held += len(piece)
        return len(piece)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self.held = 0
        return taken
