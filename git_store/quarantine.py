"""Where a pack waits while it is received, indexed and checked; nothing in here is visible.

Small packs stay in memory. Larger ones are files that go away with the quarantine, whatever
happens; those of a process that died are swept by age.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from git_store import gitattributes, gitmodules
from git_store.errors import BadPack, OverLimit
from git_store.git_index import ByGit
from git_store.gitattributes import check_gitattributes
from git_store.gitmodules import check_gitmodules
from git_store.index import Lookup, Progress, index_pack
from git_store.index_process import Indexing
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.pack import Pack, map_file
from git_store.pack_process import lay_out
from git_store.packfile import BLOB, TRAILER, Buffer
from git_store.packs import NewPack
from git_store.settle import Settled, settle, settle_files

_SMALLEST = 12 + TRAILER


@dataclass(frozen=True, slots=True)
class Arrived:
    """A pack that is whole and connected: everything it refers to is in it or in the repository."""

    new: NewPack
    pack: Pack
    needs: (
        frozenset[bytes] | None
    )  # what its objects refer to and only the repository has, if known
    completed: frozenset[bytes]  # what was added from the repository, so that it can be read alone
    modules: frozenset[bytes]  # the files that its trees have at .gitmodules
    attributes: frozenset[bytes]  # and at .gitattributes

    def what_it_needs(self, limits: Limits) -> Set[bytes]:
        """`needs`; what git has looked for is found out now."""
        if self.needs is not None:
            return self.needs
        return index_pack(self.pack.data, limits=limits, lookup=lambda name: None).needs


class Quarantine:
    def __init__(
        self,
        directory: Path,
        pack_id: str,
        limits: Limits,
        *,
        heavy: threading.Semaphore,
        processes: threading.Semaphore,
        git: Path | None = None,
    ) -> None:
        self._limits = limits
        self._git = git
        self._heavy = heavy
        self._processes = processes
        self._id = pack_id
        self._directory = directory
        self._pack_file = directory / f"{pack_id}.pack"
        self._index_file = directory / f"{pack_id}.idx"
        self._place = directory / f"{pack_id}.git"
        self._beside: tuple[Sequence[Pack], Sequence[bytes]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pack_file.unlink(missing_ok=True)
        self._index_file.unlink(missing_ok=True)
        if self._place.exists():
            shutil.rmtree(self._place, ignore_errors=True)

    def admit(
        self,
        chunks: Iterable[bytes],
        objects: Objects,
        *,
        tips: Sequence[bytes],
        progress: Progress,
        room: int,
    ) -> Arrived | None:
        """Take in a pack and check it. None if it brings nothing that is not here already.

        `tips` are to be pointed at; `room` is what the repository's quota leaves. `progress` is
        called with nothing, now and then, when there is nothing to say. Raises BadPack, OverLimit.
        """
        self._beside = objects.packs, tips
        arrived = self._take_in(chunks, objects.find, progress, room)
        for name in arrived.needs or ():
            if not objects.has(name):
                raise BadPack(f"missing necessary objects: {name.hex()} is referred to, not sent")
        _check_dot_files(arrived, objects)
        if objects.packs and not _brings_news(arrived, objects):
            return None
        return arrived if arrived.new.objects else None

    def rebuild(self, chunks: Iterable[bytes]) -> Arrived:
        """Take in a pack made of objects that are here; nothing about them needs checking."""
        room = self._limits.repository_bytes
        return self._take_in(chunks, lambda name: None, lambda text: None, room)

    def _take_in(
        self, chunks: Iterable[bytes], lookup: Lookup, progress: Progress, room: int
    ) -> Arrived:
        """Receive the whole pack, hashing it on the way; index it, check its trailer."""
        digest = hashlib.sha1()
        tail = b""
        size = 0
        held: list[bytes] = []
        with ExitStack() as stack:
            file: BinaryIO | None = None
            apart: Indexing | None = None
            for chunk in chunks:
                size += len(chunk)
                self._check_size(size, room)
                if file is None and size > self._limits.inline_pack_bytes:
                    file = stack.enter_context(self._open())
                    for earlier in held:
                        file.write(earlier)
                    held.clear()
                if file is None:
                    held.append(chunk)
                else:
                    file.write(chunk)
                seen = tail + chunk
                digest.update(memoryview(seen)[:-TRAILER])
                tail = seen[-TRAILER:]
                if apart is None and size >= self._limits.process_bytes and file is not None:
                    apart = self._begin_apart(stack, lookup, progress)
                if apart is not None and file is not None:
                    file.flush()
                    apart.arrived(size)
            if size < _SMALLEST or digest.digest() != tail:
                raise BadPack("the pack is damaged or was cut short")
            if file is None:
                return self._held(b"".join(held), lookup, progress)
            file.flush()
            if apart is None and size >= self._limits.process_bytes:
                while not self._processes.acquire(timeout=self._limits.keepalive_seconds):
                    progress("")
                stack.callback(self._processes.release)
                apart = stack.enter_context(self._indexing(lookup, progress))
            if apart is not None:
                return self._filed(apart.finish())
            return self._filed(self._index_here(lookup, progress))

    def _begin_apart(self, stack: ExitStack, lookup: Lookup, progress: Progress) -> Indexing | None:
        """Index what is here already, beside what still comes, if a process is to be had now."""
        if not self._processes.acquire(blocking=False):
            return None
        stack.callback(self._processes.release)
        return stack.enter_context(self._indexing(lookup, progress))

    def _indexing(self, lookup: Lookup, progress: Progress) -> Indexing:
        return Indexing(
            self._pack_file,
            self._index_file,
            limits=self._limits,
            lookup=lookup,
            progress=progress,
            by=self._by_git(),
        )

    def _by_git(self) -> ByGit | None:
        """What git needs, if it is to do it."""
        if self._git is None or self._beside is None:
            return None
        with self._pack_file.open("rb") as file:
            count = int.from_bytes(file.read(12)[8:], "big")
        if not self._limits.git_objects_min <= count <= self._limits.git_objects_max:
            return None
        packs, tips = self._beside
        place, others = self._place / "new", self._place / "here"
        lay_out(place, (), ())
        lay_out(others, packs, ())
        return ByGit(self._git, place, others, tips)

    def _index_here(self, lookup: Lookup, progress: Progress) -> Settled:
        with self._heavy:
            data = map_file(self._pack_file)
            indexed = index_pack(data, limits=self._limits, lookup=lookup, progress=progress)
            return settle_files(self._pack_file, self._index_file, data, indexed)

    def _held(self, data: bytes, lookup: Lookup, progress: Progress) -> Arrived:
        """A pack in memory; one that its missing bases make too large for that goes to a file."""
        indexed = index_pack(data, limits=self._limits, lookup=lookup, progress=progress)
        if sum(len(content) for _, _, content in indexed.bases) > self._limits.inline_pack_bytes:
            with self._open() as file:
                file.write(data)
            return self._filed(settle_files(self._pack_file, self._index_file, data, indexed))
        settled, data, index = settle(data, indexed)
        return self._arrived(settled, data, index)

    def _filed(self, settled: Settled) -> Arrived:
        return self._arrived(settled, map_file(self._pack_file), map_file(self._index_file))

    def _arrived(self, settled: Settled, data: Buffer, index: Buffer) -> Arrived:
        held = data if isinstance(data, bytes) else None
        new = NewPack(
            id=self._id,
            checksum=settled.checksum.hex(),
            size=settled.size,
            objects=settled.objects,
            roots=settled.roots,
            data=held,
            pack_file=self._pack_file if held is None else None,
            index_file=self._index_file if held is None else None,
        )
        pack = Pack(self._id, data, index, settled.roots)
        return Arrived(
            new=new,
            pack=pack,
            needs=settled.needs,
            completed=settled.completed,
            modules=settled.modules,
            attributes=settled.attributes,
        )

    def _check_size(self, size: int, room: int) -> None:
        if size > self._limits.push_bytes:
            raise OverLimit(
                f"the push is larger than {self._limits.push_bytes} bytes, which is the limit of"
                " one push (push_bytes)",
                limit="push_bytes",
            )
        if size > room:
            raise OverLimit(
                f"the repository would grow over its quota of {self._limits.repository_bytes}"
                f" bytes (repository_bytes); {max(0, room)} are left",
                limit="repository_bytes",
            )

    def _open(self) -> BinaryIO:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._pack_file.open("xb")


def _check_dot_files(arrived: Arrived, objects: Objects) -> None:
    """Look into what git acts on, also if it was here before under another name."""
    everything = Objects([arrived.pack, *objects.packs])
    for name in arrived.modules:
        _check_dot_file(everything, name, ".gitmodules", gitmodules.BYTES_MAX)
        check_gitmodules(everything.get(name)[1])
    for name in arrived.attributes:
        _check_dot_file(everything, name, ".gitattributes", gitattributes.BYTES_MAX)
        check_gitattributes(everything.slices(name))


def _check_dot_file(objects: Objects, name: bytes, what: str, most: int) -> None:
    kind, size = objects.info(name) or (None, 0)
    if kind != BLOB:
        raise BadPack(f"{name.hex()} is a {what}, and no file")
    if size > most:
        raise OverLimit(
            f"a {what} of {size} bytes is over the limit of {most}", limit=what.removeprefix(".")
        )


def _brings_news(arrived: Arrived, objects: Objects) -> bool:
    """True if any object is not here yet. One that is here must be the same: SHA-1 collides."""
    if arrived.needs is None:  # git has compared them
        names = map(arrived.pack.index.name, range(arrived.pack.count))
        return any(name not in arrived.completed and not objects.has(name) for name in names)
    news = False
    alone = Objects([arrived.pack])
    for number in range(arrived.pack.count):
        name = arrived.pack.index.name(number)
        if name in arrived.completed:
            continue
        if not objects.has(name):
            news = True
        elif _digest(alone, name) != _digest(objects, name):
            raise BadPack(f"object {name.hex()} is here already with another content")
    return news


def _digest(objects: Objects, name: bytes) -> tuple[int | None, bytes]:
    digest = hashlib.sha256()
    for content in objects.slices(name):
        digest.update(content)
    found = objects.info(name)
    return (found[0] if found else None), digest.digest()


def sweep(directory: Path, *, before_ms: int) -> int:
    """Remove what pushes and fetches of dead processes left behind."""
    removed = 0
    if not directory.is_dir():
        return 0
    for path in directory.iterdir():
        if path.stat().st_mtime * 1000 < before_ms:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
    return removed
