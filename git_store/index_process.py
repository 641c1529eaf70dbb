"""A large pack is indexed in a process of its own while it arrives, so that it never holds up the
server's threads, and is nearly done when the last byte is here.

`Indexing` is the server's side, `main` is what the child runs. They speak over a socket pair: the
child hears how much of the file is there, asks for objects it needs, tells its progress, writes
the index and ends with what there is to know of the pack. With git in the child's stead where
that is faster (git_index.py).
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from git_store.child import confine, end, start_python
from git_store.errors import BadPack, GitStoreError, OverLimit, StorageFailed
from git_store.git_index import ByGit, index_by_git
from git_store.index import Lookup, Progress, Source, index_pack
from git_store.limits import Limits
from git_store.pack import map_file
from git_store.settle import Settled, settle_files

MODULE = "index_process"  # what the child runs
_LOOKUP, _PROGRESS, _DONE, _BAD, _OVER = range(5)  # what the child says
_TELL_BYTES = 1 << 20  # of the pack, before the child hears of them


class Indexing:
    """One pack, as `index_pack` and `settle_files` would do it. Close it, whatever happens.

    `progress` is also called with nothing, now and then, while there is nothing to say.
    """

    def __init__(
        self,
        pack_file: Path,
        index_file: Path,
        *,
        limits: Limits,
        lookup: Lookup,
        progress: Progress,
        by: ByGit | None = None,
    ) -> None:
        """`by`: let git do it."""
        self._limits = limits
        self._lookup = lookup
        self._progress = progress
        self._told = 0
        self._settled: Settled | None = None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._child = start_python(
                MODULE, str(theirs.fileno()), limits=limits, pass_fds=[theirs.fileno()]
            )
            self._line = Connection(ours.detach())
        job = (pack_file, index_file, dataclasses.asdict(limits), by)
        self._talk(lambda: self._line.send(job))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._line.close()
        end(self._child)  # it has ended, unless we gave up on it

    def arrived(self, size: int) -> None:
        """So much of the file is there. Raises BadPack, OverLimit, as soon as the child knows."""
        if size - self._told >= _TELL_BYTES:
            self._told = size
            self._talk(lambda: self._tell(size))

    def finish(self) -> Settled:
        """The file is whole. Raises BadPack, OverLimit; StorageFailed if the child died."""
        self._talk(self._conclude)
        assert self._settled is not None
        return self._settled

    def _talk(self, say: Callable[[], None]) -> None:
        try:
            try:
                say()
            except BrokenPipeError:
                while True:  # it ended: what has it said at last?
                    self._hear()
        except (EOFError, OSError) as error:
            raise StorageFailed("the process that indexes the pack died; push again") from error

    def _tell(self, size: int) -> None:
        while self._line.poll():
            self._hear()
        self._line.send(size)

    def _conclude(self) -> None:
        self._line.send(None)
        while self._settled is None:
            if self._line.poll(self._limits.keepalive_seconds):
                self._hear()
            else:
                self._progress("")

    def _hear(self) -> None:
        what, value = self._line.recv()
        if what == _LOOKUP:
            self._line.send(self._lookup(value))
        elif what == _PROGRESS:
            self._progress(value)
        elif what == _BAD:
            raise BadPack(value)
        elif what == _OVER:
            raise OverLimit(value[0], limit=value[1])
        else:
            self._settled = value


class _Arriving(Source):
    """A file that grows while it is read."""

    def __init__(self, path: Path, line: Connection) -> None:
        super().__init__(b"")
        self.ended = False
        self._path = path
        self._line = line

    def reach(self, position: int) -> None:
        while not self.ended and (len(self.data) < position or self._line.poll()):
            self.ended = self._line.recv() is None
            if self.ended or len(self.data) < position:
                self.data = map_file(self._path)

    def sizes(self) -> Iterator[int]:
        """How much of it is there, again and again until it has ended."""
        while not self.ended:
            self.ended = self._line.recv() is None
            self.data = map_file(self._path)
            yield len(self.data)

    def drain(self) -> None:
        """Hear the end, so that what comes next on the line is an answer."""
        while not self.ended:
            self.reach(len(self.data) + 1)


def main() -> None:
    """The child: one pack, then it ends."""
    (descriptor,) = confine()
    with Connection(int(descriptor)) as line:
        pack_file, index_file, bounds, by = line.recv()
        limits = Limits(**bounds)

        def lookup(name: bytes) -> tuple[int, bytes] | None:
            source.drain()
            line.send((_LOOKUP, name))
            found: tuple[int, bytes] | None = line.recv()
            return found

        def progress(text: str) -> None:
            line.send((_PROGRESS, text))

        source = _Arriving(pack_file, line)
        try:
            settled = by and index_by_git(
                by, pack_file, index_file, sizes=source.sizes(), limits=limits, progress=progress
            )
            if settled is None:
                indexed = index_pack(
                    source,
                    limits=limits,
                    lookup=lookup,
                    progress=progress,
                    spill=index_file.parent,
                )
                settled = settle_files(pack_file, index_file, source.data, indexed)
        except OverLimit as error:
            line.send((_OVER, (error.detail, error.limit)))
        except GitStoreError as error:
            line.send((_BAD, error.detail))
        else:
            line.send((_DONE, settled))
        os._exit(0)  # giving back the memory piece by piece would only take time
