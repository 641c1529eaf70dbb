"""Writing a pack to a client: whole packs as they are, or chosen objects, copied not inflated."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, KeysView, Sequence

from git_store.graph import Graph
from git_store.objects import Objects
from git_store.pack import Pack
from git_store.packfile import (
    BLOB,
    OFS_DELTA,
    REF_DELTA,
    SLICE,
    STREAM_BYTES,
    TRAILER,
    entry_at,
    entry_header,
    pack_header,
    pieces,
)
from git_store.pktline import SideBand
from git_store.select import Selected

_HELD_BYTES = 1 << 18
_PREPARE_SHARE = 40  # sending more than one in so many objects of a pack, its offsets are sorted
_PROGRESS_EVERY = 10_000


def reusable(
    objects: Objects, graph: Graph, commits: Sequence[bytes], others: Sequence[bytes]
) -> list[Pack] | None:
    """The packs, if together they hold just what the wants reach; None if they hold more.

    A pack holds nothing else if its roots, which nothing in it refers to, are all reached: so what
    a deleted branch left behind is not given away.
    """
    packs = [pack for pack in objects.packs if pack.count]
    if not packs:
        return None
    roots: set[bytes] = set()
    for pack in packs:
        if pack.roots is None:
            return None
        roots.update(pack.roots)
    roots -= {*commits, *others}
    if any(not objects.is_commit(root) for root in roots):
        return None
    if graph.unreached(commits, roots):
        return None
    if len(packs) > 1:
        names = {name for pack in packs for name in pack.index.names()}
        if len(names) != sum(pack.count for pack in packs):
            return None
    return packs


def send_whole(packs: Sequence[Pack], side: SideBand) -> None:
    if len(packs) == 1:
        for piece in pieces(packs[0].data, 0, len(packs[0].data)):
            side.data(piece)
        return
    header = pack_header(sum(pack.count for pack in packs))
    digest = hashlib.sha1(header)
    side.data(header)
    for pack in packs:
        for piece in pieces(pack.data, 12, len(pack.data) - TRAILER):
            digest.update(piece)
            side.data(piece)
    side.data(digest.digest())


class PackWriter:
    """Sends chosen objects. Compressed bytes are copied as they are; a delta too, when its base
    also goes out or, in a thin pack, is surely with the client."""

    def __init__(
        self, objects: Objects, selected: Selected, side: SideBand, *, thin: bool, near: bool
    ) -> None:
        """`near`: the client understands deltas that name their base by its distance."""
        self._objects = objects
        self._selected = selected
        names = selected.names
        self._sending: Collection[bytes] = names if isinstance(names, KeysView) else set(names)
        self._bases = selected.bases if thin else set[bytes]()
        self._near = near
        self._side = side
        self._digest = hashlib.sha1()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._position = 0
        self._sent: dict[bytes, int] = {}  # name -> position in the pack that goes out
        self._waiting: set[bytes] = set()  # deltas whose base is being sent first

    def send(self) -> None:
        self._prepare()
        total = len(self._selected.names)
        self._put(pack_header(total))
        for number, name in enumerate(self._selected.names):
            self._send_with_bases(name)
            if number % _PROGRESS_EVERY == 0 and number:
                self._side.progress(
                    f"Sending objects: {number * 100 // total}% ({number}/{total})\r"
                )
        self._flush()
        self._side.data(self._digest.digest())

    def _prepare(self) -> None:
        """Sort the offsets of packs of which much goes out."""
        counts: dict[str, int] = {}
        packs: dict[str, Pack] = {}
        if len(self._objects.packs) == 1:
            (only,) = self._objects.packs
            if len(self._selected.names) * _PREPARE_SHARE > only.count:
                only.prepare()
            return
        for name in self._selected.names:
            place = self._objects.locate(name)
            if place is not None:
                packs[place[0].id] = place[0]
                counts[place[0].id] = counts.get(place[0].id, 0) + 1
        for pack_id, count in counts.items():
            if count * _PREPARE_SHARE > packs[pack_id].count:
                packs[pack_id].prepare()

    def _send_with_bases(self, wanted: bytes) -> None:
        """Bases go first. A cycle of deltas across packs is cut by sending one object whole."""
        stack = [wanted]
        while stack:
            name = stack[-1]
            if name in self._sent:
                stack.pop()
                continue
            place = self._objects.locate(name)
            if place is None:
                self._send_whole(name)
                stack.pop()
                continue
            pack, offset = place
            kind, size, start, base = entry_at(pack.data, offset)
            if kind not in (OFS_DELTA, REF_DELTA):
                self._copy(name, pack, pack.data[offset:start], (offset, start, size))
                stack.pop()
                continue
            base_name = pack.name_at(offset - base) if isinstance(base, int) else base
            assert base_name is not None
            to_come = base_name in self._sending and base_name not in self._sent
            if to_come and base_name not in self._waiting:
                self._waiting.add(name)
                stack.append(base_name)
                continue
            header = self._delta_header(size, base_name)
            if header is None:
                self._send_whole(name)
            else:
                self._copy(name, pack, header, (offset, start, size))
            self._waiting.discard(name)
            stack.pop()

    def _delta_header(self, size: int, base: bytes) -> bytes | None:
        """How to name the base to the client; None if the client would not find it."""
        if base in self._sent and self._near:
            return entry_header(OFS_DELTA, size, self._position - self._sent[base])
        if base in self._sent or (base in self._bases and base not in self._sending):
            return entry_header(REF_DELTA, size, base)
        return None

    def _copy(self, name: bytes, pack: Pack, header: bytes, entry: tuple[int, int, int]) -> None:
        offset, start, size = entry
        end = pack.end_of(offset, start, size)
        self._sent[name] = self._position
        self._put(header)
        if end - start < SLICE:
            self._put(pack.data[start:end])
            return
        for piece in pieces(pack.data, start, end):
            self._put(piece)

    def _send_whole(self, name: bytes) -> None:
        self._sent[name] = self._position
        about = self._objects.info(name)
        if about is not None and about[0] == BLOB and about[1] > STREAM_BYTES:
            self._put(entry_header(BLOB, about[1]))
            stream = zlib.compressobj(1)
            for content in self._objects.slices(name):
                self._put(stream.compress(content))
            self._put(stream.flush())
            return
        kind, content = self._objects.get(name)
        self._put(entry_header(kind, len(content)))
        self._put(zlib.compress(content, 1))

    def _put(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        self._position += len(data)
        if self._held_bytes > _HELD_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        self._digest.update(data)
        self._side.data(data)
