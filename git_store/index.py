"""Indexing a pack in one pass, and the index file (git's version 2) itself.

Every object is inflated once, and once more if it is a delta base. The same pass answers what the
pack's objects refer to but the pack lacks (the connectivity check needs no walk) and which of them
nothing in the pack refers to (whole packs can be sent again later as they are).
"""

from __future__ import annotations

import binascii
import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from git_store.errors import BadPack, OverLimit
from git_store.limits import Limits
from git_store.packfile import (
    BLOB,
    OFS_DELTA,
    REF_DELTA,
    SLICE,
    STREAM_BYTES,
    TRAILER,
    TYPE_NAMES,
    Buffer,
    delta_result_size,
    entry_at,
    inflate,
    inflate_slices,
    patch,
    unload,
)
from git_store.treecheck import TreeCheck

_DELTAS_HELD_BYTES = 4 << 20  # delta texts kept between the two phases; others inflate twice
_UNLOAD_BYTES = 8 << 20  # of the pack, read and then let go of
_UNLOAD_SLICES = 8
_AHEAD = 1024  # more than an entry's head, and what deflation adds to a few bytes
_PROGRESS_EVERY = 2000  # objects
_LARGE_OFFSET = 1 << 31
_HEADER = 12

Entry = tuple[bytes, int, int]  # name, offset, crc32
Lookup = Callable[[bytes], tuple[int, bytes] | None]  # (type, content) of an object elsewhere
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Indexed:
    entries: list[Entry]  # sorted by name; of the pack as received, then what completes it
    types: dict[bytes, int]  # of the objects received
    wanted: set[bytes]  # referred to by them, and not among them
    roots: list[bytes]  # those of them nothing else in the pack refers to
    bases: list[tuple[bytes, int, bytes]]  # missing delta bases found elsewhere: append them
    modules: set[bytes]  # the files that its trees have at .gitmodules
    attributes: set[bytes]  # and at .gitattributes


class Source:
    """A pack to be indexed. This one is all there; a subclass waits for one that still arrives."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.ended = True

    def reach(self, position: int) -> None:
        """Wait until the data goes up to a position, or has ended."""

    def __getitem__(self, part: slice) -> bytes:
        self.reach(part.stop)
        return self.data[part]


def index_pack(
    data: Buffer | Source, *, limits: Limits, lookup: Lookup, progress: Progress = lambda text: None
) -> Indexed:
    """Index a pack. Its trailer is the caller's to check. Raises BadPack, OverLimit."""
    source = data if isinstance(data, Source) else Source(data)
    indexer = _Indexer(source, limits, progress)
    try:
        indexer.scan()
        indexer.resolve_inside()
        return indexer.resolve_outside(lookup)
    except (IndexError, zlib.error) as error:
        raise BadPack(f"the pack is damaged: {error}") from error


class _Indexer:
    def __init__(self, source: Source, limits: Limits, progress: Progress) -> None:
        self._source = source
        self._data = source.data
        self._end = 0
        self._limits = limits
        self._progress = progress
        self._entries: list[Entry] = []
        self._types: dict[bytes, int] = {}
        self._wanted: set[bytes] = set()
        self._whole: dict[int, bytes] = {}  # offset -> name of entries that are no deltas
        self._near: dict[int, list[int]] = {}  # offset of a base -> offsets of its deltas
        self._named: dict[bytes, list[int]] = {}  # name of a base -> offsets of its deltas
        self._deltas: dict[int, bytes | None] = {}  # offset -> delta text; None: inflate it again
        self._crcs: dict[int, int] = {}
        self._trees = TreeCheck()
        self._held = 0
        self._resolved = 0
        self._results = 0

    def scan(self) -> None:
        """Go through the pack once: name what is whole, note what is a delta of what."""
        self._reach(_HEADER)
        data, end = self._data, self._end
        if end < _HEADER or data[:4] != b"PACK" or data[4:8] not in (b"\0\0\0\2", b"\0\0\0\3"):
            raise BadPack("this is not a pack")
        count = int.from_bytes(data[8:_HEADER], "big")
        if count > self._limits.push_objects:
            raise OverLimit(
                f"the pack has {count} objects; at most {self._limits.push_objects} are allowed"
                " in one push (push_objects)",
                limit="push_objects",
            )
        position = unloaded = _HEADER
        for number in range(count):
            self._reach(position + _AHEAD)
            if position >= self._end:
                raise BadPack("the pack is truncated")
            if position - unloaded > _UNLOAD_BYTES:
                unload(self._data, unloaded, position)
                unloaded = position
            if number % _PROGRESS_EVERY == 0 and number:
                self._progress(f"Indexing objects: {number * 100 // count}% ({number}/{count})\r")
            kind, size, start, base = entry_at(self._data, position)
            if kind in TYPE_NAMES:
                self._check_size(kind, size)
                after = self._name_whole(kind, size, position, start)
            elif kind in (OFS_DELTA, REF_DELTA):
                after = self._note_delta(size, position, start, base)
            else:
                raise BadPack(f"an object of unknown type {kind}")
            position = after
        self._reach(position + _AHEAD)
        if position != self._end:
            raise BadPack("there is something after the last object")

    def _reach(self, position: int) -> None:
        """Make the data go so far, if there is so much of it."""
        source = self._source
        source.reach(position)
        self._data = source.data
        self._end = len(source.data) - (TRAILER if source.ended else 0)

    def _check_size(self, kind: int, size: int) -> None:
        limit, name = (
            (self._limits.blob_bytes, "blob_bytes")
            if kind == BLOB
            else (self._limits.tree_bytes, "tree_bytes")
        )
        if size > limit:
            what = "a file" if kind == BLOB else "a tree, commit or tag"
            raise OverLimit(
                f"{what} of {size} bytes is over the limit of {limit} ({name})", limit=name
            )

    def _name_whole(self, kind: int, size: int, position: int, start: int) -> int:
        if kind == BLOB and size > STREAM_BYTES:
            digest = hashlib.sha1(b"blob %d\0" % size)
            after = start
            for number, (content, end) in enumerate(inflate_slices(self._source, start, size)):
                digest.update(content)
                after = end
                if number % _UNLOAD_SLICES == 0:
                    unload(self._source.data, position, len(self._source.data))
            name, crc = digest.digest(), 0
            self._reach(after)
            for at in range(position, after, SLICE):
                crc = binascii.crc32(self._data[at : min(after, at + SLICE)], crc)
                unload(self._data, at, min(after, at + SLICE))
        else:
            self._reach(start + size + (size >> 8) + _AHEAD)
            data = self._data
            content, after = inflate(data, start, size)
            name = _name(kind, content)
            crc = binascii.crc32(data[position:after])
            if kind != BLOB:
                self._wanted.update(self._trees.references(kind, content))
        self._add(name, kind, position, crc)
        self._whole[position] = name
        return after

    def _note_delta(self, size: int, position: int, start: int, base: int | bytes | None) -> int:
        if size > self._limits.delta_result_bytes:
            raise OverLimit("a delta is over the limit (delta_result_bytes)", limit="delta_bytes")
        self._reach(start + size + (size >> 8) + _AHEAD)
        content, after = inflate(self._data, start, size)
        self._crcs[position] = binascii.crc32(self._data[position:after])
        if isinstance(base, int):
            self._near.setdefault(position - base, []).append(position)
        else:
            assert base is not None
            self._named.setdefault(base, []).append(position)
        self._deltas[position] = content if self._held < _DELTAS_HELD_BYTES else None
        self._held += size
        return after

    def _add(self, name: bytes, kind: int, position: int, crc: int) -> None:
        if name in self._types:
            raise BadPack(f"the pack has object {name.hex()} twice")
        self._types[name] = kind
        self._entries.append((name, position, crc))

    def resolve_inside(self) -> None:
        """Resolve the deltas whose chains end at a whole object of this pack."""
        for position, name in self._whole.items():
            kids = self._kids(position, name)
            if not kids:
                continue
            _, size, start, _ = entry_at(self._data, position)
            if size > self._limits.delta_result_bytes:
                raise OverLimit(
                    f"a delta of a file of {size} bytes is over the limit of"
                    f" {self._limits.delta_result_bytes} (delta_result_bytes)",
                    limit="delta_result_bytes",
                )
            content, _ = inflate(self._data, start, size)
            self._resolve(kids, self._types[name], content)

    def resolve_outside(self, lookup: Lookup) -> Indexed:
        """Resolve what is left with bases from elsewhere (a thin pack), and conclude."""
        bases: list[tuple[bytes, int, bytes]] = []
        progress = True
        while self._named and progress:
            progress = False
            for name in sorted(self._named):
                found = lookup(name) if name in self._named else None
                if found is not None:
                    bases.append((name, *found))
                    self._resolve(self._named.pop(name), *found)
                    progress = True
        if self._named:
            raise BadPack(f"{len(self._named)} delta bases are missing")
        if self._near or self._deltas:
            raise BadPack("a delta has no base")
        self._entries.sort()
        types, wanted = self._types, self._wanted
        return Indexed(
            entries=self._entries,
            types=types,
            wanted=wanted - types.keys(),
            roots=[name for name in types if name not in wanted],
            # One that the pack itself turned out to make, later than it was asked for, is no news.
            bases=[base for base in bases if base[0] not in types],
            modules=self._trees.modules,
            attributes=self._trees.attributes,
        )

    def _kids(self, position: int, name: bytes) -> list[int]:
        return self._near.pop(position, []) + self._named.pop(name, [])

    def _resolve(self, kids: list[int], kind: int, content: bytes) -> None:
        """Depth first from a base, so that only the texts of one path are held."""
        todo = [(kid, content) for kid in kids]
        while todo:
            position, base = todo.pop()
            result = patch(base, self._take_delta(position, kind))
            name = _name(kind, result)
            self._add(name, kind, position, self._crcs.pop(position))
            if kind != BLOB:
                self._wanted.update(self._trees.references(kind, result))
            todo += [(kid, result) for kid in self._kids(position, name)]
            self._resolved += 1
            if self._resolved % _PROGRESS_EVERY == 0:
                unload(self._data, 0, len(self._data))
                self._progress(f"Resolving deltas: {self._resolved}\r")

    def _take_delta(self, position: int, kind: int) -> bytes:
        delta = self._deltas.pop(position)
        if delta is None:
            _, size, start, _ = entry_at(self._data, position)
            delta, _ = inflate(self._data, start, size)
        size = delta_result_size(delta)
        self._check_size(kind, size)
        self._results += size
        if size > self._limits.delta_result_bytes or self._results > self._limits.inflated_bytes:
            raise OverLimit(
                "the deltas of the pack make more data than allowed (delta_result_bytes,"
                " inflated_bytes)",
                limit="inflated_bytes",
            )
        return delta


def _name(kind: int, content: bytes) -> bytes:
    digest = hashlib.sha1(b"%s %d\0" % (TYPE_NAMES[kind], len(content)))
    digest.update(content)
    return digest.digest()


def index_bytes(entries: list[Entry], checksum: bytes) -> bytes:
    """The index file of a pack; `entries` sorted. (dulwich's writer costs ten times as much.)"""
    count = len(entries)
    fan = [0] * 256
    for name, _, _ in entries:
        fan[name[0]] += 1
    total = 0
    for byte in range(256):
        total += fan[byte]
        fan[byte] = total
    offsets: list[int] = []
    large: list[int] = []
    for _, offset, _ in entries:
        if offset >= _LARGE_OFFSET:
            offsets.append(_LARGE_OFFSET | len(large))
            large.append(offset)
        else:
            offsets.append(offset)
    content = b"".join(
        [
            b"\377tOc\0\0\0\2",
            struct.pack(">256L", *fan),
            b"".join([name for name, _, _ in entries]),
            struct.pack(f">{count}L", *[crc for _, _, crc in entries]),
            struct.pack(f">{count}L", *offsets),
            struct.pack(f">{len(large)}Q", *large),
            checksum,
        ]
    )
    return content + hashlib.sha1(content).digest()


class PackIndex:
    """Look-ups in an index file, over a map of it or its bytes."""

    def __init__(self, data: Buffer) -> None:
        if data[:8] != b"\377tOc\0\0\0\2":
            raise BadPack("this is not a pack index of version 2")
        self._data = data
        self._fan: tuple[int, ...] = struct.unpack(">256L", data[8:1032])
        self.count = self._fan[255]
        self._names_at = 1032
        self._offsets_at = self._names_at + 24 * self.count
        self._large_at = self._offsets_at + 4 * self.count

    def find(self, name: bytes) -> int | None:
        """The offset of an object in the pack."""
        first = name[0]
        low, high = (self._fan[first - 1] if first else 0), self._fan[first]
        data, names_at = self._data, self._names_at
        while low < high:
            middle = (low + high) >> 1
            at = names_at + 20 * middle
            there = data[at : at + 20]
            if there < name:
                low = middle + 1
            elif there > name:
                high = middle
            else:
                return self._offset(middle)
        return None

    def _offset(self, number: int) -> int:
        at = self._offsets_at + 4 * number
        offset = int.from_bytes(self._data[at : at + 4], "big")
        if offset & _LARGE_OFFSET:
            at = self._large_at + 8 * (offset & ~_LARGE_OFFSET)
            offset = int.from_bytes(self._data[at : at + 8], "big")
        return offset

    def name(self, number: int) -> bytes:
        at = self._names_at + 20 * number
        return self._data[at : at + 20]

    def name_at(self, offset: int) -> bytes:
        """The object at an offset, found by a scan of the table: quick, and nothing is kept."""
        if offset >= _LARGE_OFFSET:
            return self.name(self.offsets().index(offset))
        wanted = offset.to_bytes(4, "big")
        at = self._data.find(wanted, self._offsets_at, self._large_at)
        while at >= 0 and (at - self._offsets_at) % 4:
            at = self._data.find(wanted, at + 1, self._large_at)
        if at < 0:
            raise BadPack(f"no object starts at {offset}")
        return self.name((at - self._offsets_at) // 4)

    def names(self) -> list[bytes]:
        """All names, sorted."""
        names = self._data[self._names_at : self._names_at + 20 * self.count]
        return [names[at : at + 20] for at in range(0, len(names), 20)]

    def offsets(self) -> list[int]:
        """The offsets of all objects, in the order of `names`."""
        at = self._offsets_at
        offsets = list(struct.unpack(f">{self.count}L", self._data[at : at + 4 * self.count]))
        if any(offset & _LARGE_OFFSET for offset in offsets):
            return [self._offset(number) for number in range(self.count)]
        return offsets
