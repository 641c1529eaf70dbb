"""The pack format, read and written in memory: entry headers, inflation, what an object refers to.

Pure functions over a buffer, with every size in it distrusted. SHA-1 object names, 20 bytes raw.
dulwich supplies the parsing of trees and the application of deltas; its own pack reader inflates
more than once and walks whole packs, which is why this exists.
"""

from __future__ import annotations

import binascii
import mmap
import re
import zlib
from collections.abc import Iterator
from typing import Protocol

from dulwich.errors import ApplyDeltaError, ObjectFormatException
from dulwich.objects import parse_tree
from dulwich.pack import apply_delta

from git_store.errors import BadPack

COMMIT, TREE, BLOB, TAG, OFS_DELTA, REF_DELTA = 1, 2, 3, 4, 6, 7
TYPE_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
STREAM_BYTES = 4 << 20  # blobs above this are read in slices, never held whole
SLICE = 1 << 20
TRAILER = 20
GITLINK = 0o160000
DIRECTORY = 0o040000
LINK = 0o120000
REGULAR = 0o100000

Buffer = mmap.mmap | bytes
_PAGE = mmap.PAGESIZE
Tree = list[tuple[bytes, int, bytes]]  # name, mode, hex sha

_SIZE_BITS = 62
_ENTRY = re.compile(rb"[^\0]+\0.{20}", re.DOTALL)


class Slices(Protocol):
    """Data that slices can be had of."""

    def __getitem__(self, part: slice, /) -> bytes: ...


def unload(data: Buffer, start: int, end: int) -> None:
    """Let go of the memory behind a stretch of a file that has been read. It stays readable."""
    if isinstance(data, mmap.mmap):
        first = start // _PAGE * _PAGE
        if end > first:
            data.madvise(mmap.MADV_DONTNEED, first, end - first)


def pieces(data: Buffer, start: int, end: int) -> Iterator[bytes]:
    """A stretch of a pack in slices; the memory behind each is let go of."""
    for at in range(start, end, SLICE):
        yield data[at : min(end, at + SLICE)]
        unload(data, at, min(end, at + SLICE))


def entry_at(data: Buffer, position: int) -> tuple[int, int, int, int | bytes | None]:
    """(type, inflated size, where the stream starts, delta base) of the entry at `position`.

    The base is a distance for an OFS_DELTA and a name for a REF_DELTA. Raises IndexError at the end
    of the data.
    """
    byte = data[position]
    position += 1
    kind, size, shift = (byte >> 4) & 7, byte & 15, 4
    while byte & 0x80:
        byte = data[position]
        position += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if shift > _SIZE_BITS:
            raise BadPack("an object claims an impossible size")
    if kind == OFS_DELTA:
        byte = data[position]
        position += 1
        distance = byte & 0x7F
        while byte & 0x80:
            byte = data[position]
            position += 1
            distance = ((distance + 1) << 7) | (byte & 0x7F)
            if distance >> _SIZE_BITS:
                raise BadPack("a delta base is impossibly far away")
        return kind, size, position, distance
    if kind == REF_DELTA:
        return kind, size, position + 20, bytes(data[position : position + 20])
    return kind, size, position, None


def inflate(data: Buffer, position: int, size: int) -> tuple[bytes, int]:
    """(content, end of the stream).

    The input is sliced near the known size: zlib copies what it does not use, so a long slice would
    cost more than the inflation itself.
    """
    stream = zlib.decompressobj()
    taken = min(len(data), position + size + (size >> 8) + 64)
    content = stream.decompress(data[position:taken], size + 1)
    while not stream.eof and len(content) <= size:
        more = stream.unconsumed_tail
        if not more:
            more = data[taken : taken + 4096]
            taken += len(more)
            if not more:
                break
        content += stream.decompress(more, size + 1 - len(content))
    if not stream.eof or len(content) != size:
        raise BadPack(f"the object at {position} is damaged, or not of the size it claims")
    return content, taken - len(stream.unused_data)


def inflate_slices(data: Slices, position: int, size: int) -> Iterator[tuple[bytes, int]]:
    """Like `inflate` for large blobs: yields (slice, 0) and at last (b"", end of the stream)."""
    stream = zlib.decompressobj()
    total, taken, more = 0, position, b""
    while not stream.eof:
        if not more:
            more = data[taken : taken + SLICE]
            taken += len(more)
            if not more:
                raise BadPack(f"the object at {position} is truncated")
        content = stream.decompress(more, SLICE)
        more = stream.unconsumed_tail
        total += len(content)
        if total > size:
            raise BadPack(f"the object at {position} is longer than it claims")
        if content:
            yield content, 0
    if total != size:
        raise BadPack(f"the object at {position} is shorter than it claims")
    yield b"", taken - len(stream.unused_data)


def delta_result_size(delta: bytes) -> int:
    """How long the text is that a delta makes. Raises IndexError if it is cut short."""
    position = size = 0
    for _ in range(2):
        size = shift = 0
        while True:
            byte = delta[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > _SIZE_BITS:
                raise BadPack("a delta claims an impossible size")
    return size


def patch(base: bytes, delta: bytes) -> bytes:
    """The text a delta makes of its base. Raises BadPack."""
    try:
        chunks = apply_delta(base, delta)
    except ApplyDeltaError as error:
        raise BadPack(f"a delta does not fit its base: {error}") from error
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def references(kind: int, content: bytes) -> list[bytes]:
    """Raw names of what an object points at, in order; submodules left out.

    Of a commit: its tree, then its parents. Raises BadPack if it cannot be read.
    """
    try:
        if kind == TREE:
            return [binascii.unhexlify(sha) for _, mode, sha in entries(content) if mode != GITLINK]
        if kind == COMMIT:
            return _commit_references(content)
        if kind == TAG:
            if content[:7] != b"object " or content[47:48] != b"\n":
                raise BadPack("a tag without an object")
            return [binascii.unhexlify(content[7:47])]
    except binascii.Error as error:
        raise BadPack("an object refers to something that is no object id") from error
    return []


def entries(content: bytes) -> Tree:
    """A tree's entries. Raises BadPack if it cannot be parsed."""
    try:
        return list(parse_tree(content, 20))
    except ObjectFormatException as error:
        raise BadPack(f"a tree cannot be parsed: {error}") from error


def raw_entries(content: bytes) -> list[bytes]:
    """A tree's entries as they lie in it: quicker than taking each apart. Raises BadPack."""
    found = _ENTRY.findall(content)
    if sum(map(len, found)) != len(content):
        raise BadPack("a tree cannot be parsed")
    return found


def mode_of(entry: bytes) -> int:
    """Raises BadPack."""
    try:
        return int(entry[: entry.index(b" ")], 8)
    except ValueError as error:
        raise BadPack("a tree cannot be parsed: it has an entry without a mode") from error


def _commit_references(content: bytes) -> list[bytes]:
    if content[:5] != b"tree " or content[45:46] != b"\n":
        raise BadPack("a commit without a tree")
    names = [binascii.unhexlify(content[5:45])]
    position = 46
    while content[position : position + 7] == b"parent ":
        if content[position + 47 : position + 48] != b"\n":
            raise BadPack("a commit with a damaged parent line")
        names.append(binascii.unhexlify(content[position + 7 : position + 47]))
        position += 48
    return names


def commit_time(content: bytes) -> int:
    """Seconds since 1970 of the committer line; 0 if it has none, as in a few old histories."""
    start = content.find(b"\ncommitter ", 0, 1 << 16)
    if start < 0:
        return 0
    words = content[start + 1 : content.find(b"\n", start + 1)].rsplit(b" ", 2)
    try:
        return max(0, min(int(words[-2]), 1 << 40))
    except (ValueError, IndexError):
        return 0


def entry_header(kind: int, size: int, base: int | bytes | None = None) -> bytes:
    """The head of a pack entry; `base` is a distance or a name for the two kinds of delta."""
    byte = (kind << 4) | (size & 15)
    size >>= 4
    head = bytearray()
    while size:
        head.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    head.append(byte)
    if isinstance(base, int):
        digits = [base & 0x7F]
        base >>= 7
        while base:
            base -= 1
            digits.append(0x80 | (base & 0x7F))
            base >>= 7
        head += bytes(reversed(digits))
    elif base is not None:
        head += base
    return bytes(head)


def pack_header(count: int) -> bytes:
    return b"PACK\0\0\0\2" + count.to_bytes(4, "big")
