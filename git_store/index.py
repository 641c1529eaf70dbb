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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path

from git_store.columns import Bases, Columns, Entry, Listed, Names
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

ROOTS_KEPT = 4096  # a pack with more is never sent again whole
_DELTAS_HELD_BYTES = 4 << 20  # delta texts kept between the two phases; others inflate twice
_DELTA_BYTES = 150  # of each, beside its text
_SMALLEST_ENTRY = 9
_ENTRIES_AT_ONCE = 4096
_UNLOAD_BYTES = 8 << 20  # of the pack, read and then let go of
_UNLOAD_SLICES = 8
_AHEAD = 1024  # more than an entry's head, and what deflation adds to a few bytes
_PROGRESS_EVERY = 2000  # objects
_LARGE_OFFSET = 1 << 31
_HEADER = 12

Lookup = Callable[[bytes], tuple[int, bytes] | None]  # (type, content) of an object elsewhere
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Indexed:
    entries: Listed  # by name; of the pack as received
    needs: set[bytes]  # referred to by them, and not among them
    roots: list[bytes]  # those of them nothing else in the pack refers to; some, if they are many
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
    data: Buffer | Source,
    *,
    limits: Limits,
    lookup: Lookup,
    progress: Progress = lambda text: None,
    spill: Path | None = None,
) -> Indexed:
    """Index a pack. Its trailer is the caller's to check. Raises BadPack, OverLimit.

    `spill` is a directory for what is too much to be kept in memory.
    """
    source = data if isinstance(data, Source) else Source(data)
    indexer = _Indexer(source, limits, progress, spill)
    try:
        indexer.scan()
        indexer.resolve_inside()
        bases = indexer.resolve_outside(lookup)
        return indexer.conclude(bases)
    except (IndexError, zlib.error) as error:
        raise BadPack(f"the pack is damaged: {error}") from error
    finally:
        indexer.close()


class _Indexer:
    def __init__(
        self, source: Source, limits: Limits, progress: Progress, spill: Path | None
    ) -> None:
        self._source = source
        self._data = source.data
        self._end = 0
        self._limits = limits
        self._progress = progress
        self._spill = spill
        self._rows: Columns  # from when the pack tells how many
        self._bases: Bases  # that are named, not told by their distance
        self._wanted = Names(spill)
        self._deltas: dict[int, bytes] = {}  # texts of some, which need not be inflated again
        self._trees = TreeCheck()
        self._held = 0
        self._resolved = self._unresolved = 0
        self._results = 0

    def close(self) -> None:
        self._wanted.close()

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
        if self._spill is None:  # one that claims more than it can hold takes no memory for that
            count = min(count, end // _SMALLEST_ENTRY + 1)
        self._rows = Columns(count, self._spill)
        self._bases = Bases(self._rows, count.bit_length())
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
        self._rows.identify(self._rows.add(position, crc), name, kind)
        return after

    def _note_delta(self, size: int, position: int, start: int, base: int | bytes | None) -> int:
        if size > self._limits.delta_result_bytes:
            raise OverLimit("a delta is over the limit (delta_result_bytes)", limit="delta_bytes")
        self._reach(start + size + (size >> 8) + _AHEAD)
        content, after = inflate(self._data, start, size)
        rows = self._rows
        number = rows.add(position, binascii.crc32(self._data[position:after]))
        if isinstance(base, int):
            under = rows.at(position - base)
            rows.next[number] = rows.kids[under]
            rows.kids[under] = number + 1
        else:
            assert base is not None
            self._bases.add(base, number)
        if self._held < _DELTAS_HELD_BYTES:
            self._deltas[number] = content
            self._held += size + _DELTA_BYTES
        self._unresolved += 1
        return after

    def resolve_inside(self) -> None:
        """Resolve the deltas whose chains end at a whole object of this pack."""
        self._bases.sort()
        rows, named = self._rows, bool(self._bases)
        for number in range(rows.count):
            if not rows.kinds[number] or not (rows.kids[number] or named):
                continue
            kids = self._kids(number, rows.name(number))
            first = next(kids, None)
            if first is not None:
                self._resolve(chain([first], kids), rows.kinds[number], self._whole(number))

    def _whole(self, number: int) -> bytes:
        _, size, start, _ = entry_at(self._data, self._rows.offsets[number])
        if size > self._limits.delta_result_bytes:
            raise OverLimit(
                f"a delta of a file of {size} bytes is over the limit of"
                f" {self._limits.delta_result_bytes} (delta_result_bytes)",
                limit="delta_result_bytes",
            )
        return inflate(self._data, start, size)[0]

    def resolve_outside(self, lookup: Lookup) -> list[tuple[bytes, int, bytes]]:
        """Resolve what is left with bases from elsewhere (a thin pack). These."""
        bases: list[tuple[bytes, int, bytes]] = []
        missing: set[bytes] = set()
        for number in self._bases:
            if self._rows.kinds[number]:
                continue
            name = self._base_name(number)
            found = None if name in missing else lookup(name)
            if found is None:
                missing.add(name)
                continue
            bases.append((name, *found))
            self._resolve(self._kids_by_name(name), *found)
        if self._unresolved:
            left = (number for number in self._bases if not self._rows.kinds[number])
            missing = {self._base_name(number) for number in left}
            if missing:
                raise BadPack(f"{len(missing)} delta bases are missing")
            raise BadPack("a delta has no base")
        return bases

    def conclude(self, bases: list[tuple[bytes, int, bytes]]) -> Indexed:
        """Put it all in order."""
        entries = self._rows.sort()
        asked = {base[0] for base in bases}
        needs: set[bytes] = set()
        roots: list[bytes] = []
        names = (name for name, _, _ in entries)
        name = next(names, None)
        for end, wanted in self._wanted.parts():
            while name is not None and name[0] < end:
                if name in wanted:
                    wanted.discard(name)
                elif len(roots) <= ROOTS_KEPT:
                    roots.append(name)
                asked.discard(name)
                name = next(names, None)
            needs |= wanted
        return Indexed(
            entries=entries,
            needs=needs,
            roots=roots,
            # One that the pack itself turned out to make, later than it was asked for, is no news.
            bases=[base for base in bases if base[0] in asked],
            modules=self._trees.modules,
            attributes=self._trees.attributes,
        )

    def _base_name(self, number: int) -> bytes:
        base = entry_at(self._data, self._rows.offsets[number])[3]
        assert isinstance(base, bytes)
        return base

    def _kids(self, number: int, name: bytes) -> Iterator[int]:
        """The entries that build on one, which are then known no more."""
        rows = self._rows
        kid, rows.kids[number] = rows.kids[number], 0
        while kid:
            yield kid - 1
            kid = rows.next[kid - 1]
        if self._bases:
            yield from self._kids_by_name(name)

    def _kids_by_name(self, name: bytes) -> Iterator[int]:
        for number in self._bases.of(name):
            if not self._rows.kinds[number] and self._base_name(number) == name:
                yield number

    def _resolve(self, kids: Iterator[int], kind: int, content: bytes) -> None:
        """Depth first from a base, so that only the texts of one path are held."""
        rows = self._rows
        path = [(content, kids)]
        while path:
            base, kids = path[-1]
            number = next(kids, None)
            if number is None:
                path.pop()
                continue
            result = patch(base, self._take_delta(number, kind))
            name = _name(kind, result)
            rows.identify(number, name, kind)
            if kind != BLOB:
                self._wanted.update(self._trees.references(kind, result))
            if rows.kids[number] or self._bases:
                path.append((result, self._kids(number, name)))
            self._unresolved -= 1
            self._resolved += 1
            if self._resolved % _PROGRESS_EVERY == 0:
                unload(self._data, 0, len(self._data))
                self._progress(f"Resolving deltas: {self._resolved}\r")

    def _take_delta(self, number: int, kind: int) -> bytes:
        delta = self._deltas.pop(number, None)
        if delta is None:
            _, size, start, _ = entry_at(self._data, self._rows.offsets[number])
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


def index_bytes(entries: Listed, checksum: bytes) -> bytes:
    """The index file of a pack; `entries` by name."""
    return b"".join(index_pieces(entries, checksum))


def index_pieces(entries: Listed, checksum: bytes) -> Iterator[bytes]:
    """The same, piece by piece. (dulwich's writer costs ten times as much.)"""
    digest = hashlib.sha1()
    for piece in _index_pieces(entries, checksum):
        digest.update(piece)
        yield piece
    yield digest.digest()


def _index_pieces(entries: Listed, checksum: bytes) -> Iterator[bytes]:
    fan = [0] * 256
    for name, _, _ in entries:
        fan[name[0]] += 1
    yield b"\377tOc\0\0\0\2" + struct.pack(">256L", *accumulate(fan))
    for some in _some(entries):
        yield b"".join([name for name, _, _ in some])
    for some in _some(entries):
        yield struct.pack(f">{len(some)}L", *[crc for _, _, crc in some])
    large: list[int] = []
    for some in _some(entries):
        offsets = [offset for _, offset, _ in some]
        if max(offsets) >= _LARGE_OFFSET:
            for place, offset in enumerate(offsets):
                if offset >= _LARGE_OFFSET:
                    offsets[place] = _LARGE_OFFSET | len(large)
                    large.append(offset)
        yield struct.pack(f">{len(some)}L", *offsets)
    yield struct.pack(f">{len(large)}Q", *large) + checksum


def _some(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    each = iter(entries)
    while some := list(islice(each, _ENTRIES_AT_ONCE)):
        yield some


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
