"""One opened pack: its bytes and its index. Read-only, so any thread may use it.

packs.py opens them and keeps them at hand; child processes open their own.
"""

from __future__ import annotations

import mmap
import os
from array import array
from bisect import bisect_left
from pathlib import Path

from git_store.index import PackIndex
from git_store.packfile import STREAM_BYTES, TRAILER, Buffer, inflate, inflate_slices


class Pack:
    """Its data, its index, and its roots if they are known."""

    def __init__(
        self,
        pack_id: str,
        data: Buffer,
        index: Buffer,
        roots: tuple[bytes, ...] | None,
        files: tuple[Path, Path] | None = None,
    ) -> None:
        """`files` are where data and index are mapped from."""
        self.files = files
        self.id = pack_id
        self.data = data
        self.index_data = index
        self.index = PackIndex(index)
        self.find = self.index.find
        self.roots = roots
        self._order: tuple[array[int], array[int]] | None = None

    @property
    def count(self) -> int:
        return self.index.count

    def prepare(self) -> None:
        """Sort the offsets, before many objects are copied. Two threads may both do it."""
        if self._order is None:
            offsets = self.index.offsets()
            numbers = array("L", sorted(range(len(offsets)), key=offsets.__getitem__))
            self._order = (array("Q", [offsets[number] for number in numbers]), numbers)

    def name_at(self, offset: int) -> bytes:
        """The name of the object at an offset."""
        if self._order is None:
            return self.index.name_at(offset)
        offsets, numbers = self._order
        return self.index.name(numbers[bisect_left(offsets, offset)])

    def end_of(self, offset: int, start: int, size: int) -> int:
        """Where the entry at `offset` ends, whose stream starts at `start`."""
        if self._order is not None:
            offsets = self._order[0]
            after = bisect_left(offsets, offset) + 1
            return offsets[after] if after < len(offsets) else len(self.data) - TRAILER
        if size <= STREAM_BYTES:
            return inflate(self.data, start, size)[1]
        return max(end for _, end in inflate_slices(self.data, start, size))


def map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
