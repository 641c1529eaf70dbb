"""Layers: the file changes of one command, as an immutable object `layers/<digest>`.

A layer is a tar, sorted, without owners, compressed with zstd; deletions are in its global header.
The digest is the SHA-256 of the tar, so it does not depend on the compressor. Times are whole
seconds: rounding down never turns the order of two files round, which is what make looks at.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import obstore
import zstandard
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore

from ci_platform.durable import sync
from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.beneath import open_directory, open_file
from ci_platform.runner.manifest import Changes, Manifest, chmod_beneath
from ci_platform.runner.overlap import (
    DIRECTORY,
    Listing,
    cache_directories,
    file_end,
    link_end,
)
from ci_platform.runner.restore import TOP, apply

LISTINGS_MAX = 64  # held in memory
_COMPRESSION_LEVEL = 1
_WINDOW_BYTES_MAX = 128 << 20
_COPY_BYTES = 1 << 20
_VERSION = "1"


class LayerStore:
    """Keeps layers in the object store; a layer is durable before its digest is given out."""

    def __init__(self, objects: ObjectStore, scratch: Path) -> None:
        self._objects = objects
        self._scratch = scratch
        self._lock = threading.Lock()
        self._listings: dict[str, Listing] = {}  # oldest first

    def save(self, root: int, changes: Changes, after: Manifest) -> str:
        """Pack changes of the workspace `root` and store them. Returns the digest."""
        with tempfile.NamedTemporaryFile(dir=self._scratch, prefix="layer-") as packed:
            digest = pack(cast(IO[bytes], packed), root, changes, after)
            packed.flush()
            path = layer_path(digest)
            try:
                obstore.put(self._objects, path, Path(packed.name))
            except (BaseError, OSError) as error:
                raise RunnerUnavailable(f"layer {digest} cannot be stored: {error}") from error
        if isinstance(self._objects, LocalStore):
            sync(Path(str(self._objects.prefix or "/")) / path)
        return digest

    def restore(self, root: int, digests: Sequence[str]) -> None:
        """Apply layers in order. On an error the workspace is half done: throw it away."""
        modes: dict[str, int] = {}
        for digest in digests:
            with _damage(digest):
                found = self._apply(root, digest, modes)
            if found != digest:
                raise RunnerUnavailable(f"layer {digest} is damaged: its content is {found}")
        for path, mode in modes.items():
            chmod_beneath(root, path, mode)

    def listing(self, digest: str) -> Listing:
        """What a layer changes, read from it."""
        with self._lock:
            if digest in self._listings:
                return self._listings[digest]
        with _damage(digest):
            stream = _Hashed(self._read(digest))
            with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
                found = _list(archive)
        with self._lock:
            self._listings[digest] = found
            while len(self._listings) > LISTINGS_MAX:
                del self._listings[next(iter(self._listings))]
        return found

    def _apply(self, root: int, digest: str, modes: dict[str, int]) -> str:
        stream = _Hashed(self._read(digest))
        with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
            apply(archive, root, modes)
        return stream.finish()

    def _read(self, digest: str) -> IO[bytes]:
        try:
            found = obstore.get(self._objects, layer_path(digest))
            chunks = cast(Iterator[bytes], iter(found.stream(min_chunk_size=_COPY_BYTES)))
        except FileNotFoundError as error:
            raise RunnerUnavailable(f"layer {digest} is not in the object store") from error
        except (BaseError, OSError) as error:
            raise RunnerUnavailable(f"layer {digest} cannot be read: {error}") from error
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
        source = cast(IO[bytes], _Chunks(chunks))
        return cast(IO[bytes], decompressor.stream_reader(source, read_size=_COPY_BYTES))


@contextmanager
def _damage(digest: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zstandard.ZstdError, ValueError, EOFError) as error:
        raise RunnerUnavailable(f"layer {digest} is damaged: {error}") from error


def layer_path(digest: str) -> str:
    return f"layers/{digest}"


def pack(to: IO[bytes], root: int, changes: Changes, after: Manifest) -> str:
    """Write a layer. Equal changes give equal bytes before compression, hence equal digests."""
    header = {
        "SLUICE.version": _VERSION,
        "SLUICE.deleted": json.dumps(list(changes.deleted)),
        "SLUICE.caches": json.dumps(
            cache_directories([*changes.written, *changes.deleted], after.marks)
        ),
    }
    compressor = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL, write_checksum=True)
    first_path: dict[int, str] = {}  # inode -> the first path packed of a file with several
    with compressor.stream_writer(to, closefd=False) as compressed:
        stream = _HashingWriter(compressed)
        with tarfile.open(
            fileobj=cast(IO[bytes], stream),
            mode="w|",
            format=tarfile.PAX_FORMAT,
            pax_headers=header,
            errors="surrogateescape",
        ) as archive:
            top = tarfile.TarInfo(TOP)
            top.type = tarfile.DIRTYPE
            archive.addfile(top)
            for path in changes.written:
                _add(archive, root, path, after, first_path)
    return stream.digest()


def _add(
    archive: tarfile.TarFile, root: int, path: str, after: Manifest, first_path: dict[int, str]
) -> None:
    mark = after.marks[path]
    member = tarfile.TarInfo(path)
    member.mtime = max(0, mark.mtime_ns // 1_000_000_000)
    member.mode = mark.mode & 0o777
    if stat.S_ISDIR(mark.mode):
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    elif stat.S_ISLNK(mark.mode):
        member.type, member.mode = tarfile.SYMTYPE, 0o777
        member.linkname = _readlink(root, path)
        archive.addfile(member)
    elif mark.links > 1 and mark.inode in first_path:
        member.type, member.linkname = tarfile.LNKTYPE, first_path[mark.inode]
        archive.addfile(member)
    else:
        first_path[mark.inode] = path
        with os.fdopen(_open_readable(root, path, mark.mode), "rb") as content:
            member.size = os.fstat(content.fileno()).st_size
            archive.addfile(member, content)


def _list(archive: tarfile.TarFile) -> Listing:
    headers = archive.pax_headers
    written: dict[str, str] = {}
    for member in archive:
        if member.isdir():
            written[member.name] = DIRECTORY
        elif member.issym():
            written[member.name] = link_end(member.linkname)
        elif member.islnk():
            written[member.name] = written[member.linkname]
        else:
            content = archive.extractfile(member)
            if content is None:
                raise ValueError(f"{member.name!r} is a device, socket or unknown kind of member")
            digest = hashlib.file_digest(cast(io.BufferedReader, content), "sha256").hexdigest()
            written[member.name] = file_end(member.mode, digest)
    written.pop(TOP, None)
    deleted = cast(list[str], json.loads(headers.get("SLUICE.deleted", "[]")))
    caches = cast(list[str], json.loads(headers.get("SLUICE.caches", "[]")))
    return Listing(written, deleted, caches)


def _open_readable(root: int, path: str, mode: int) -> int:
    """Open a file that its owner may have made unreadable, leaving its mode as it was."""
    try:
        return open_file(root, path)
    except PermissionError:
        chmod_beneath(root, path, stat.S_IRUSR | stat.S_IWUSR)
        try:
            return open_file(root, path)
        finally:
            chmod_beneath(root, path, stat.S_IMODE(mode))


def _readlink(root: int, path: str) -> str:
    directory, _, name = path.rpartition("/")
    parent = open_directory(root, directory)
    try:
        return os.readlink(name, dir_fd=parent)
    finally:
        os.close(parent)


# --- streams -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Chunks:
    """The pieces of an object as something with `read`."""

    pieces: Iterator[bytes]
    rest: memoryview = field(default_factory=lambda: memoryview(b""))

    def read(self, size: int = -1) -> bytes:
        while not self.rest:
            piece = next(self.pieces, None)
            if piece is None:
                return b""
            self.rest = memoryview(bytes(piece))
        end = len(self.rest) if size < 0 else size
        taken, self.rest = self.rest[:end], self.rest[end:]
        return bytes(taken)


class _Hashed(io.RawIOBase):
    """Reads a stream and hashes what went by."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        return data

    def finish(self) -> str:
        """Read what is left; the digest of everything."""
        while self.read(_COPY_BYTES):
            pass
        return self._hash.hexdigest()


class _HashingWriter:
    def __init__(self, to: zstandard.ZstdCompressionWriter) -> None:
        self._to = to
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._to.write(data)

    def digest(self) -> str:
        return self._hash.hexdigest()
