"""What is known of the entries of a pack while it is indexed, and the names they refer to.

Rows have a fixed size. A few are kept in memory; many lie in a file without a name, so that a pack
of millions of objects takes no more memory than one of thousands. index.py fills them.
"""

from __future__ import annotations

import heapq
import mmap
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Protocol

from git_store.errors import BadPack

Entry = tuple[bytes, int, int]  # name, offset, crc32

ROWS_IN_MEMORY = 50_000
NAMES_HELD = 50_000
RUN = 1 << 16  # rows sorted at once
_NAME = 20
_ROW = 8 + 8 + 4 + 4 + 4 + 4 + 1 + _NAME


class Listed(Protocol):
    """Entries in the order of their names, as often as asked for."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Entry]: ...


class Columns:
    """One row for each entry, in the order of the pack. Numbers of rows are kept with one added: 0
    is none."""

    def __init__(self, count: int, spill: Path | None) -> None:
        """`spill` is where many rows go; None: they stay in memory."""
        rows = max(count, 1)
        if spill is None or count <= ROWS_IN_MEMORY:
            buffer = memoryview(bytearray(rows * _ROW))
        else:
            with tempfile.TemporaryFile(dir=spill) as file:
                file.truncate(rows * _ROW)
                buffer = memoryview(mmap.mmap(file.fileno(), rows * _ROW))
        wide, narrow = buffer[: rows * 16].cast("Q"), buffer[rows * 16 : rows * 32].cast("I")
        self._keys = wide[:rows]
        self.offsets = wide[rows:]  # where each starts; they grow
        self.crcs = narrow[:rows]
        self.kids = narrow[rows : 2 * rows]  # the last delta that builds on it
        self.next = narrow[2 * rows : 3 * rows]  # another delta that builds on the same
        self._order = narrow[3 * rows :]
        self.kinds = buffer[rows * 32 : rows * 33]  # 0: a delta that is not resolved yet
        self._names = buffer[rows * 33 :]
        self.count = 0

    def add(self, offset: int, crc: int) -> int:
        """A row for the entry at an offset; its number."""
        number = self.count
        self.offsets[number] = offset
        self.crcs[number] = crc
        self.count = number + 1
        return number

    def at(self, offset: int) -> int:
        """The number of the entry that starts at an offset. Raises BadPack."""
        number = bisect_left(self.offsets, offset, 0, self.count)
        if number == self.count or self.offsets[number] != offset:
            raise BadPack("a delta has no base")
        return number

    def identify(self, number: int, name: bytes, kind: int) -> None:
        """What an entry turned out to be."""
        self._names[number * _NAME : number * _NAME + _NAME] = name
        self.kinds[number] = kind

    def name(self, number: int) -> bytes:
        return self._names[number * _NAME : number * _NAME + _NAME].tobytes()

    def sort(self) -> Listed:
        """The rows in the order of their names. Raises BadPack if one is there twice."""
        if self.count <= RUN:
            return self._listed()
        before = b""
        for place, number in enumerate(self._by_name()):
            name = self.name(number)
            if name == before:
                raise _twice(name)
            self._order[place] = number
            before = name
        return Entries(self, self._order)

    def _listed(self) -> list[Entry]:
        count = self.count
        raw = self._names[: count * _NAME].tobytes()
        names = [raw[at : at + _NAME] for at in range(0, len(raw), _NAME)]
        found = sorted(zip(names, self.offsets[:count], self.crcs[:count], strict=True))
        if len(set(names)) != count:
            raise next(_twice(one[0]) for one, two in pairwise(found) if one[0] == two[0])
        return found

    def _by_name(self) -> Iterator[int]:
        """The numbers of many rows."""
        shift = self.count.bit_length()
        for number in range(self.count):
            self._keys[number] = key(self.name(number), number, shift)
        mask, same, last = (1 << shift) - 1, list[int](), -1
        for each in merged(self._keys, self.count):
            if each >> shift != last:
                yield from same
                same, last = [each & mask], each >> shift
            else:  # names that begin alike, as far as that was looked at
                same = sorted([*same, each & mask], key=self.name)
        yield from same


class Entries:
    """The rows of a pack that is indexed."""

    def __init__(self, columns: Columns, order: Sequence[int]) -> None:
        self._columns = columns
        self._order = order

    def __len__(self) -> int:
        return self._columns.count

    def __iter__(self) -> Iterator[Entry]:
        columns = self._columns
        for number in self._order[: columns.count]:
            yield columns.name(number), columns.offsets[number], columns.crcs[number]


class With:
    """Entries, and some more."""

    def __init__(self, entries: Listed, more: Iterable[Entry]) -> None:
        self._entries = entries
        self._more = sorted(more)

    def __len__(self) -> int:
        return len(self._entries) + len(self._more)

    def __iter__(self) -> Iterator[Entry]:
        return heapq.merge(self._entries, self._more) if self._more else iter(self._entries)


class Bases:
    """The names that deltas build on, and which do."""

    def __init__(self, columns: Columns, shift: int) -> None:
        """`shift`: bits of the number of a row."""
        self._columns = columns
        self._keys = array("Q")
        self._shift = shift

    def add(self, name: bytes, number: int) -> None:
        self._keys.append(key(name, number, self._shift))

    def sort(self) -> None:
        """Nothing is added any more."""
        self._keys = array("Q", merged(memoryview(self._keys), len(self._keys)))

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        """The rows of all of them, by what they build on."""
        mask = (1 << self._shift) - 1
        return (each & mask for each in self._keys)

    def of(self, name: bytes) -> list[int]:
        """The rows that may build on an object: what begins alike must be looked at."""
        if not self._keys:
            return []
        first, mask = key(name, 0, self._shift), (1 << self._shift) - 1
        low = bisect_left(self._keys, first)
        high = bisect_left(self._keys, first + mask + 1, low)
        return [each & mask for each in self._keys[low:high]]


class Names:
    """A set of names. Of many, most lie in a file in sorted runs."""

    def __init__(self, spill: Path | None) -> None:
        self._held: set[bytes] = set()
        self._spill = spill
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, list[int]]] = []  # where each begins, and where in it each byte

    def update(self, names: Iterable[bytes]) -> None:
        self._held.update(names)
        if len(self._held) > NAMES_HELD and self._spill is not None:
            self._put_down()

    def _put_down(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._spill)  # noqa: SIM115 - until `close`
        ordered = sorted(self._held)
        self._held.clear()
        bounds = [bisect_left(ordered, bytes([byte])) for byte in range(256)]
        self._runs.append((self._file.tell(), [*bounds, len(ordered)]))
        self._file.write(b"".join(ordered))

    def parts(self) -> Iterator[tuple[int, set[bytes]]]:
        """All of them in their order, a set at a time, with the first byte they come before."""
        if self._file is None:
            yield 256, self._held
            return
        self._put_down()
        for byte in range(256):
            found: set[bytes] = set()
            for start, bounds in self._runs:
                self._file.seek(start + bounds[byte] * _NAME)
                text = self._file.read((bounds[byte + 1] - bounds[byte]) * _NAME)
                found.update(text[at : at + _NAME] for at in range(0, len(text), _NAME))
            yield byte + 1, found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _twice(name: bytes) -> BadPack:
    return BadPack(f"the pack has object {name.hex()} twice")


def key(name: bytes, number: int, shift: int) -> int:
    """What sorts by how a name begins, and holds a number of `shift` bits."""
    return int.from_bytes(name[:8], "big") >> shift << shift | number


def merged(keys: memoryview[int], count: int) -> Iterator[int]:
    """The keys in order. They are changed."""
    runs = []
    for at in range(0, count, RUN):
        end = min(count, at + RUN)
        keys[at:end] = memoryview(array("Q", sorted(keys[at:end])))
        runs.append(keys[at:end])
    return iter(runs[0]) if len(runs) == 1 else heapq.merge(*runs)
