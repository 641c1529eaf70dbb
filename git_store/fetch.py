"""The wire side of a fetch: git-upload-pack, protocol versions 0, 1 and 2.

Reads what a client wants and has, and answers with a pack. Everything it may ask for by name must
be reached from a visible ref, if it is a commit or tag; trees and files may be any (a partial clone
asks for them one by one), since nobody learns their names from anything hidden.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from git_store.errors import ProtocolError
from git_store.graph import Graph
from git_store.limits import Limits
from git_store.names import is_sha
from git_store.objects import Objects
from git_store.pack_process import PackProcesses
from git_store.packfile import COMMIT, TAG
from git_store.packwriter import PackWriter, reusable, send_whole
from git_store.pktline import DELIMITER, FLUSH, Mark, Out, PacketReader, SideBand, packet
from git_store.refs import Ref
from git_store.select import Filter, Job, Selected, TooMany, parse_filter, select
from git_store.shallow import Boundary, Deepen, boundary

Line = TypeVar("Line")

_ARGUMENTS_MAX = 1_000_000  # lines of one request


@dataclass(slots=True)
class _Request:
    wants: list[bytes] = field(default_factory=list)
    haves: list[bytes] = field(default_factory=list)
    shallow: set[bytes] = field(default_factory=set)
    depth: int | None = None
    relative: bool = False
    since: int | None = None
    excluded: list[str] = field(default_factory=list)  # refs of deepen-not
    filter: Filter | None = None
    flags: set[bytes] = field(default_factory=set)  # thin-pack, ofs-delta, done, ...

    @property
    def thin(self) -> bool:
        """A client with a filter may lack any file, so nothing is surely with it to build on."""
        return b"thin-pack" in self.flags and self.filter is None

    def take(self, line: bytes, limits: Limits) -> None:
        """One argument of a fetch. Unknown ones are ignored, as git does."""
        key, _, value = line.partition(b" ")
        text = value.decode("utf-8", "replace")
        if key == b"want":
            self.wants.append(_object_id(text))
        elif key == b"have":
            self.haves.append(_object_id(text))
        elif key == b"shallow":
            self.shallow.add(_object_id(text))
        elif key == b"deepen":
            self.depth = _number(text)
        elif key == b"deepen-since":
            self.since = _number(text)
        elif key == b"deepen-not":
            self.excluded.append(text)
        elif key == b"filter":
            self.filter = parse_filter(text)
        else:
            self.flags.add(key)
        if len(self.wants) > limits.fetch_wants or len(self.haves) > limits.fetch_haves:
            raise ProtocolError(
                f"more than {limits.fetch_wants} wants or {limits.fetch_haves} haves in one request"
            )


class Fetcher:
    """Answers the fetches of one repository; made for one request.

    `refs` must have been read before the packs of `objects` were listed: a ref read later could
    point at objects that are in none of them.
    """

    def __init__(
        self,
        refs: Sequence[Ref],
        objects: Objects,
        *,
        limits: Limits,
        heavy: threading.Semaphore,
        apart: PackProcesses,
    ) -> None:
        self._apart = apart
        self._refs = refs
        self._objects = objects
        self._graph = Graph(objects)
        self._limits = limits
        self._heavy = heavy

    # --- version 2 --------------------------------------------------------------------------------

    def fetch(self, arguments: Sequence[bytes], out: Out) -> None:
        """The fetch command of version 2."""
        request = _Request()
        for line in arguments:
            request.take(line, self._limits)
        wanted = self._wanted(request.wants)
        common = [commit for name in request.haves for commit in self._common(name)]
        wait = b"wait-for-done" in request.flags
        if b"done" not in request.flags and (request.haves or wait):
            out.write(packet(b"acknowledgments\n"))
            for commit in common:
                out.write(packet(f"ACK {commit.hex()}\n".encode()))
            if not common:
                out.write(packet(b"NAK\n"))
            if wait or not self._ready(wanted, common):
                out.write(FLUSH)
                return
            out.write(packet(b"ready\n") + DELIMITER)
        if not request.wants:
            out.write(FLUSH)
            return
        limit = self._boundary(request, wanted)
        if limit is not None:
            out.write(packet(b"shallow-info\n"))
            out.write(_shallow_lines(limit, request.shallow) + DELIMITER)
        out.write(packet(b"packfile\n"))
        side = SideBand(out, large=True, quiet=b"no-progress" in request.flags)
        self._send(request, wanted, common, limit, side)
        out.write(FLUSH)

    # --- versions 0 and 1 -------------------------------------------------------------------------

    def upload(self, reader: PacketReader, out: Out) -> None:
        """One request of versions 0 and 1: all that was negotiated before comes with it again."""
        request = _Request()
        for number, line in enumerate(_bounded(reader.lines())):
            if number == 0:
                line, *capabilities = _split_capabilities(line)
                if not line.startswith(b"want "):
                    raise ProtocolError("expected 'want'")
                request.flags.update(capabilities)
            request.take(line, self._limits)
        if not request.wants:
            return
        request.relative = b"deepen-relative" in request.flags
        wanted = self._wanted(request.wants)
        limit = self._boundary(request, wanted)
        if limit is not None:
            out.write(_shallow_lines(limit, request.shallow) + FLUSH)
        common = self._negotiate(request, wanted, reader, out)
        if common is None:
            return
        side = SideBand(
            out,
            large=b"side-band-64k" in request.flags,
            small=b"side-band" in request.flags,
            quiet=b"no-progress" in request.flags,
        )
        self._send(request, wanted, common, limit, side)
        if side.on:
            out.write(FLUSH)

    def _negotiate(
        self, request: _Request, wanted: _Wanted, reader: PacketReader, out: Out
    ) -> list[bytes] | None:
        """Answer the client's haves. The commits in common, or None if it will ask again."""
        detailed = b"multi_ack_detailed" in request.flags
        common: list[bytes] = []
        for line in _bounded(_with_flushes(reader)):
            if line is Mark.FLUSH:
                is_ready = self._ready(wanted, common)
                if is_ready and detailed:
                    out.write(packet(f"ACK {common[-1].hex()} ready\n".encode()))
                out.write(packet(b"NAK\n"))
                if is_ready and detailed and b"no-done" in request.flags:
                    out.write(packet(f"ACK {common[-1].hex()}\n".encode()))
                    return common
            elif line == b"done":
                if common and detailed:
                    out.write(packet(f"ACK {common[-1].hex()}\n".encode()))
                elif not common:
                    out.write(packet(b"NAK\n"))
                return common
            elif isinstance(line, bytes) and line.startswith(b"have "):
                name = _object_id(line[5:].decode("ascii", "replace"))
                for commit in self._common(name):
                    if detailed:
                        out.write(packet(f"ACK {name.hex()} common\n".encode()))
                    elif not common:
                        out.write(packet(f"ACK {name.hex()}\n".encode()))
                    common.append(commit)
            else:
                raise ProtocolError("expected 'have' or 'done'")
        return None

    # --- both -------------------------------------------------------------------------------------

    def _wanted(self, names: Iterable[bytes]) -> _Wanted:
        """Sort what is asked for, and refuse what may not be."""
        wanted = _Wanted()
        tips = {bytes.fromhex(ref.sha) for ref in self._refs}
        unsure: dict[bytes, bytes] = {}  # commit -> the name it was asked for by
        for name in dict.fromkeys(names):
            if not self._objects.has(name):
                raise ProtocolError(f"upload-pack: not our ref {name.hex()}")
            target, kind, tags = self._objects.peel(name)
            wanted.tags += tags
            if kind == COMMIT:
                wanted.commits.append(target)
            else:
                wanted.others.append((target, kind))
            if name not in tips and (tags or kind == COMMIT):
                if tags:
                    raise ProtocolError(f"upload-pack: not our ref {name.hex()}")
                unsure[target] = name
        if unsure:
            visible = [bytes.fromhex(ref.target) for ref in self._refs]
            starts = [name for name in visible if self._objects.is_commit(name)]
            for commit in self._graph.unreached(starts, unsure):
                raise ProtocolError(f"upload-pack: not our ref {unsure[commit].hex()}")
        return wanted

    def _common(self, name: bytes) -> list[bytes]:
        """The commit behind something the client has, if it is here too."""
        if not self._objects.has(name):
            return []
        target, kind, _ = self._objects.peel(name)
        return [target] if kind == COMMIT else []

    def _ready(self, wanted: _Wanted, common: Sequence[bytes]) -> bool:
        """True if every wanted commit has an ancestor in common: more haves would save little."""
        if not common:
            return False
        known = set(common)
        floor = min(self._graph.get(commit).time for commit in known)
        for want in wanted.commits:
            todo, seen, found = [want], set[bytes](), False
            while todo and not found:
                commit = todo.pop()
                if commit in known:
                    found = True
                elif commit not in seen:
                    seen.add(commit)
                    node = self._graph.get(commit)
                    todo += node.parents if node.time >= floor else ()
            if not found:
                return False
        return True

    def _boundary(self, request: _Request, wanted: _Wanted) -> Boundary | None:
        deepen = Deepen(
            depth=request.depth,
            relative=request.relative or b"deepen-relative" in request.flags,
            since=request.since,
            excluded=[self._excluded(name) for name in request.excluded],
        )
        if not deepen.asked:
            return None
        here = frozenset(name for name in request.shallow if self._objects.has(name))
        return boundary(self._graph, deepen, wanted.commits, here)

    def _excluded(self, name: str) -> bytes:
        by_name = {ref.name: ref for ref in self._refs}
        for candidate in (name, f"refs/tags/{name}", f"refs/heads/{name}"):
            if candidate in by_name:
                return bytes.fromhex(by_name[candidate].target)
        raise ProtocolError(f"deepen-not is not a ref: {name[:200]}")

    def _send(
        self,
        request: _Request,
        wanted: _Wanted,
        common: Sequence[bytes],
        limit: Boundary | None,
        side: SideBand,
    ) -> None:
        plain = limit is None and request.filter is None and not request.shallow
        if plain and not common and not wanted.others:
            packs = reusable(self._objects, self._graph, wanted.commits, wanted.tags)
            if packs is not None:
                side.progress(f"Sending {sum(pack.count for pack in packs)} objects as stored.\n")
                send_whole(packs, side)
                return
        job = self._job(request, wanted, common, limit or Boundary())
        selected = self._select_here(job)
        if selected is None:
            packs = self._objects.packs
            self._objects = Objects(packs)  # what was read on the way is read again there
            self._graph = Graph(self._objects)
            self._apart.send(packs, job, side)
            return
        side.progress(f"Enumerating objects: {len(selected.names)}, done.\n")
        PackWriter(self._objects, selected, side, thin=job.thin, near=job.near).send()

    def _select_here(self, job: Job) -> Selected | None:
        """The objects to send; None if they are so many that a process is to find them."""
        with self._heavy:
            try:
                return select(self._objects, self._graph, job, most=self._limits.process_objects)
            except TooMany:
                return None

    def _job(
        self, request: _Request, wanted: _Wanted, common: Sequence[bytes], limit: Boundary
    ) -> Job:
        opened = [parent for commit in limit.opened for parent in self._graph.get(commit).parents]
        return Job(
            commits=wanted.commits + opened,
            common=common,
            others=[*((tag, TAG) for tag in wanted.tags), *wanted.others],
            tags=list(self._tags()) if b"include-tag" in request.flags else [],
            cut=frozenset(limit.cut | (request.shallow - limit.opened)),
            opened=limit.opened,
            client_cut=frozenset(request.shallow),
            filter=request.filter,
            thin=request.thin,
            near=b"ofs-delta" in request.flags,
        )

    def _tags(self) -> Iterator[tuple[bytes, bytes]]:
        """The annotated tags, each after what it finally points at."""
        for ref in self._refs:
            if ref.peeled is not None:
                yield bytes.fromhex(ref.peeled), bytes.fromhex(ref.sha)


@dataclass(slots=True)
class _Wanted:
    commits: list[bytes] = field(default_factory=list)
    tags: list[bytes] = field(default_factory=list)
    others: list[tuple[bytes, int]] = field(default_factory=list)  # trees and files


def _shallow_lines(limit: Boundary, client: set[bytes]) -> bytes:
    lines = [f"shallow {commit.hex()}\n" for commit in sorted(limit.cut - client)]
    lines += [f"unshallow {commit.hex()}\n" for commit in sorted(limit.opened)]
    return b"".join(packet(line.encode()) for line in lines)


def _with_flushes(reader: PacketReader) -> Iterator[bytes | Mark]:
    """Lines and flushes up to the end of the request."""
    while (line := reader.line()) is not Mark.END:
        yield line.removesuffix(b"\n") if isinstance(line, bytes) else line


def _bounded(lines: Iterable[Line]) -> Iterator[Line]:
    for number, line in enumerate(lines):
        if number > _ARGUMENTS_MAX:
            raise ProtocolError(f"more than {_ARGUMENTS_MAX} lines in one request")
        yield line


def _split_capabilities(line: bytes) -> list[bytes]:
    """The first want line, then the capabilities behind it, after a space or a NUL."""
    words = line.replace(b"\0", b" ").split(b" ")
    return [b" ".join(words[:2]), *words[2:]]


def _object_id(text: str) -> bytes:
    if not is_sha(text):
        raise ProtocolError(f"{text[:100]!r} is not a sha1 object id")
    return bytes.fromhex(text)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise ProtocolError(f"{text[:100]!r} is not a number")
    return int(text)
