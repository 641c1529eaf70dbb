"""The objects of one repository: look-up over its packs, and reading through delta chains.

One `Objects` serves one request in one thread; the packs behind it are shared.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from git_store.errors import BadPack, ObjectNotFound
from git_store.pack import Pack
from git_store.packfile import (
    COMMIT,
    OFS_DELTA,
    REF_DELTA,
    STREAM_BYTES,
    TAG,
    delta_result_size,
    entry_at,
    inflate,
    inflate_slices,
    patch,
    references,
)

_CACHE_BYTES = 8 << 20
_PLACES_KEPT = 1000
_KEPT_BYTES = 400  # of an object in the cache, beside its content
_CHAIN = 10_000  # longest delta chain followed; git makes 50, at most 4,095
_TAGS = 100  # longest chain of tags of tags


class _Contents:
    """A byte-bounded LRU of inflated objects, keyed by pack and offset."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], tuple[int, bytes]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, int]) -> tuple[int, bytes] | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: tuple[str, int], kind: int, content: bytes) -> None:
        if key in self._kept or len(content) > _CACHE_BYTES // 8:
            return
        self._kept[key] = (kind, content)
        self._bytes += len(content) + _KEPT_BYTES
        while self._bytes > _CACHE_BYTES:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= len(dropped) + _KEPT_BYTES


class Objects:
    """Packs are asked in their order, so an object that is there twice is the older one."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self.packs = list(packs)
        self._contents = _Contents()
        self._places: dict[bytes, tuple[Pack, int]] = {}  # of those asked for last

    def locate(self, name: bytes) -> tuple[Pack, int] | None:
        place = self._places.get(name)
        if place is not None:
            return place
        for pack in self.packs:
            offset = pack.find(name)
            if offset is not None:
                if len(self._places) >= _PLACES_KEPT:
                    self._places.clear()
                self._places[name] = pack, offset
                return pack, offset
        return None

    def has(self, name: bytes) -> bool:
        return self.locate(name) is not None

    def find(self, name: bytes) -> tuple[int, bytes] | None:
        """(type, content), or None."""
        place = self.locate(name)
        return None if place is None else self.at(*place)

    def get(self, name: bytes) -> tuple[int, bytes]:
        """(type, content). Raises ObjectNotFound."""
        place = self.locate(name)
        if place is None:
            raise ObjectNotFound(f"object {name.hex()} is not in this repository")
        return self.at(*place)

    def at(self, pack: Pack, offset: int) -> tuple[int, bytes]:
        """The object at a place: down the chain to a whole one, then up again."""
        chain: list[tuple[tuple[str, int], bytes]] = []
        while True:
            key = (pack.id, offset)
            found = self._contents.get(key)
            if found is not None:
                kind, content = found
                break
            kind, size, start, base = entry_at(pack.data, offset)
            content, _ = inflate(pack.data, start, size)
            if kind not in (OFS_DELTA, REF_DELTA):
                self._contents.put(key, kind, content)
                break
            chain.append((key, content))
            pack, offset = self._base(pack, offset, base)
            if len(chain) > _CHAIN:
                raise BadPack(f"a delta chain in pack {pack.id} does not end")
        for key, delta in reversed(chain):
            content = patch(content, delta)
            self._contents.put(key, kind, content)
        return kind, content

    def _base(self, pack: Pack, offset: int, base: int | bytes | None) -> tuple[Pack, int]:
        if isinstance(base, int):
            return pack, offset - base
        assert base is not None
        inside = pack.find(base)
        if inside is not None:
            return pack, inside
        place = self.locate(base)
        if place is None:
            raise ObjectNotFound(f"delta base {base.hex()} is not in this repository")
        return place

    def info(self, name: bytes) -> tuple[int, int] | None:
        """(type, size) of an object, without inflating more than the head of a delta."""
        place = self.locate(name)
        if place is None:
            return None
        pack, offset = place
        kind, size, start, base = entry_at(pack.data, offset)
        if kind in (OFS_DELTA, REF_DELTA):
            head = zlib.decompressobj().decompress(pack.data[start : start + 1024], 40)
            size = delta_result_size(head)
        for _ in range(_CHAIN):
            if kind not in (OFS_DELTA, REF_DELTA):
                return kind, size
            pack, offset = self._base(pack, offset, base)
            kind, _, _, base = entry_at(pack.data, offset)
        raise BadPack(f"a delta chain in pack {pack.id} does not end")

    def slices(self, name: bytes) -> Iterator[bytes]:
        """The content of a blob in pieces; a large one that is no delta is never held whole."""
        place = self.locate(name)
        if place is None:
            raise ObjectNotFound(f"object {name.hex()} is not in this repository")
        pack, offset = place
        kind, size, start, _ = entry_at(pack.data, offset)
        if kind in (OFS_DELTA, REF_DELTA) or size <= STREAM_BYTES:
            yield self.at(pack, offset)[1]
            return
        for content, _ in inflate_slices(pack.data, start, size):
            yield content

    def peel(self, name: bytes) -> tuple[bytes, int, list[bytes]]:
        """(object, its type, the tags on the way to it). Raises ObjectNotFound, BadPack."""
        tags: list[bytes] = []
        while True:
            found = self.info(name)
            if found is None:
                raise ObjectNotFound(f"object {name.hex()} is not in this repository")
            if found[0] != TAG:
                return name, found[0], tags
            tags.append(name)
            if len(tags) > _TAGS:
                raise BadPack("a chain of tags does not end")
            name = references(TAG, self.get(name)[1])[0]

    def is_commit(self, name: bytes) -> bool:
        found = self.info(name)
        return found is not None and found[0] == COMMIT
