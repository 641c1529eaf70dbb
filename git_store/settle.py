"""The last step of taking in a pack: completing a thin one, its index, making both durable.

Pure over bytes and files; quarantine.py does it in the server, index_process.py in a child.
"""

from __future__ import annotations

import binascii
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from git_store.columns import Entry, With
from git_store.index import ROOTS_KEPT, Indexed, index_bytes, index_pieces
from git_store.pack import sync
from git_store.packfile import TRAILER, Buffer, entry_header, pieces


@dataclass(frozen=True, slots=True)
class Settled:
    """What there is to know of a pack that stands on its own."""

    checksum: bytes
    size: int
    objects: int
    roots: tuple[bytes, ...] | None  # None: too many to be of use
    needs: frozenset[bytes] | None  # what it refers to and lacks; None: git knows, it is here
    completed: frozenset[bytes]  # what was added to it, because its deltas build on it
    modules: frozenset[bytes]  # the files that its trees have at .gitmodules, if not looked at
    attributes: frozenset[bytes]  # and at .gitattributes


def settle(data: bytes, indexed: Indexed) -> tuple[Settled, bytes, bytes]:
    """Complete a pack in memory; answers the pack and its index, too."""
    head, tail, added = _completion(data, indexed)
    if added:
        data = head + data[len(head) : -TRAILER] + tail
    checksum = data[-TRAILER:]
    entries = sorted([*indexed.entries, *added]) if added else indexed.entries
    index = index_bytes(entries, checksum)
    return _settled(indexed, checksum, len(data), len(added)), data, index


def settle_files(pack_file: Path, index_file: Path, data: Buffer, indexed: Indexed) -> Settled:
    """Complete the pack in a file, write the index beside it, make both durable."""
    head, tail, added = _completion(data, indexed)
    size = len(data)
    checksum = bytes(data[size - TRAILER :])
    if added:
        with pack_file.open("r+b") as file:
            file.write(head)
            file.seek(size - TRAILER)
            file.write(tail)
        size += len(tail) - TRAILER
        checksum = tail[-TRAILER:]
    with index_file.open("wb") as file:
        file.writelines(index_pieces(With(indexed.entries, added), checksum))
    for path in (pack_file, index_file):
        sync(path)
    return _settled(indexed, checksum, size, len(added))


def _settled(indexed: Indexed, checksum: bytes, size: int, added: int) -> Settled:
    roots = tuple(indexed.roots) if len(indexed.roots) <= ROOTS_KEPT else None
    count = len(indexed.entries) + added
    completed = frozenset(base[0] for base in indexed.bases)
    return Settled(
        checksum=checksum,
        size=size,
        objects=count,
        roots=roots,
        needs=frozenset(indexed.needs),
        completed=completed,
        modules=frozenset(indexed.modules),
        attributes=frozenset(indexed.attributes),
    )


def _completion(data: Buffer, indexed: Indexed) -> tuple[bytes, bytes, list[Entry]]:
    """What to write over the head and the trailer so that the missing bases are in the pack."""
    if not indexed.bases:
        return b"", b"", []
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
    for piece in pieces(data, len(head), len(data) - TRAILER):
        digest.update(piece)
    for piece in extra:
        digest.update(piece)
    return head, b"".join([*extra, digest.digest()]), added
