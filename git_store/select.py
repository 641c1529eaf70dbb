"""Which objects a fetch sends: the commits between wants and haves, and what changed in them.

Pure over Objects and Graph. fetch.py calls it, or a process that fetch.py asks; packwriter.py
writes what comes out.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from git_store.errors import ProtocolError
from git_store.graph import Graph
from git_store.objects import Objects
from git_store.packfile import DIRECTORY, GITLINK, TAG, TREE, mode_of, raw_entries

_WANT, _HAVE = 1, 2
# Commits looked at after the last one to send: clocks of commits are not exact. Where they are very
# wrong, a few objects are sent that the client has.
_SLOP = 8
_ENTRIES_CACHED = 30_000  # of trees, of some 100 bytes each
_SHA = 20


@dataclass(frozen=True, slots=True)
class Filter:
    """What a partial clone leaves out."""

    blob_bytes: int | None = None  # blobs of this size or larger; 0: all
    tree_depth: int | None = None  # everything deeper

    def __str__(self) -> str:
        if self.tree_depth is not None:
            return f"tree:{self.tree_depth}"
        return f"blob:limit={self.blob_bytes}" if self.blob_bytes else "blob:none"


def parse_filter(text: str) -> Filter:
    """Raises ProtocolError."""
    kind, _, value = text.partition(":")
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    if text == "blob:none":
        return Filter(blob_bytes=0)
    if kind == "blob" and value.startswith("limit="):
        number = value.removeprefix("limit=").lower()
        unit = units.get(number[-1:], 1)
        digits = number[:-1] if unit > 1 else number
        if digits.isdecimal() and len(digits) < 16:
            return Filter(blob_bytes=int(digits) * unit)
    if kind == "tree" and value.isdecimal() and len(value) < 10:
        return Filter(tree_depth=int(value))
    raise ProtocolError(f"filter {text[:100]!r} is not supported")


@dataclass(frozen=True, slots=True)
class Job:
    """What a fetch is to send, when all that may be refused has been."""

    commits: Sequence[bytes]  # wanted, with the parents of those in `opened`
    common: Sequence[bytes]  # commits the client has
    others: Sequence[tuple[bytes, int]]  # tags, trees and files wanted by name, with their types
    tags: Sequence[tuple[bytes, bytes]]  # (commit, tag): it goes along if its commit does
    cut: frozenset[bytes]  # commits the client shall have without their parents
    opened: frozenset[bytes]  # commits it had so, whose parents it gets now
    client_cut: frozenset[bytes]  # commits it has so now
    filter: Filter | None
    thin: bool
    near: bool  # the client understands deltas that name their base by its distance


class TooMany(Exception):
    """More objects than were to be looked at here and now."""


def select(objects: Objects, graph: Graph, job: Job, *, most: int | None = None) -> Selected:
    """The objects of a fetch. Raises TooMany once there are more than `most`."""
    cut = set(job.cut)
    walked = walk(
        graph, job.commits, job.common, cut=cut, client_cut=set(job.client_cut), most=most
    )
    selection = Selection(objects, graph, filtered=job.filter, thin=job.thin, most=most)
    selection.add_commits(walked, cut)
    for name, kind in job.others:
        selection.add(name, kind)
    sent = set(walked.send) if job.tags else set()
    for commit, tag in job.tags:
        if commit in sent:
            for name in objects.peel(tag)[2]:
                selection.add(name, TAG)
    return selection.selected()


@dataclass(frozen=True, slots=True)
class Walked:
    send: list[bytes]  # commits, newest first
    known: set[bytes]  # commits the client has, as far as looked at


def walk(
    graph: Graph,
    wants: Iterable[bytes],
    haves: Iterable[bytes],
    *,
    cut: set[bytes],
    client_cut: set[bytes],
    most: int | None = None,
) -> Walked:
    """The commits to send. Parents of `cut` stay; parents of `client_cut` the client lacks. Raises
    TooMany once it has looked at more than `most`."""
    flags: dict[bytes, int] = {}
    done: dict[bytes, int] = {}
    heap: list[tuple[int, bytes]] = []
    undecided = 0  # commits marked WANT only that are still in the heap

    def mark(commit: bytes, flag: int) -> None:
        nonlocal undecided
        old = flags.get(commit, 0)
        if old | flag == old:
            return
        flags[commit] = old | flag
        heapq.heappush(heap, (-graph.get(commit).time, commit))
        if not old and flag == _WANT:
            undecided += 1
        elif old == _WANT and commit not in done:
            undecided -= 1

    for commit in haves:
        mark(commit, _HAVE)
    for commit in wants:
        mark(commit, _WANT)
    order: list[bytes] = []
    slop = 0
    while heap:
        slop = 0 if undecided > 0 else slop + 1
        if slop > _SLOP:
            break
        if most is not None and len(done) > most:
            raise TooMany
        _, commit = heapq.heappop(heap)
        flag = flags[commit]
        if done.get(commit) == flag:
            continue
        if flag == _WANT:
            undecided -= 1
            if commit not in done:
                order.append(commit)
        done[commit] = flag
        if flag & _HAVE:
            parents = () if commit in client_cut else graph.get(commit).parents
        else:
            parents = () if commit in cut else graph.get(commit).parents
        for parent in parents:
            mark(parent, _HAVE if flag & _HAVE else _WANT)
    return Walked(
        send=[commit for commit in order if not flags[commit] & _HAVE],
        known={commit for commit, flag in flags.items() if flag & _HAVE},
    )


@dataclass(frozen=True, slots=True)
class Selected:
    names: Collection[bytes]  # to send, each once, in this order
    bases: set[bytes]  # the client surely has these: a thin pack may build on them


class Selection:
    """Collects the objects of commits.

    Commits are taken oldest first. When one is done, everything under its tree has been listed or
    is with the client, so for its children only entries that differ from the parent's at the same
    path are looked at. (Newest first would be wrong: after a revert, commit and grandparent share a
    tree, and each would leave the work to the other.)
    """

    def __init__(
        self,
        objects: Objects,
        graph: Graph,
        *,
        filtered: Filter | None,
        thin: bool,
        most: int | None = None,
    ) -> None:
        """Raises TooMany on the way, once there are more than `most`."""
        self._most = most
        self._objects = objects
        self._graph = graph
        self._filter = filtered or Filter()
        self._thin = thin
        self._names: dict[bytes, None] = {}
        self._bases: set[bytes] = set()
        self._visited: set[bytes | tuple[bytes, int]] = set()
        self._cached = 0
        self._trees: OrderedDict[bytes, frozenset[bytes]] = OrderedDict()

    def add_commits(self, walked: Walked, cut: set[bytes]) -> None:
        self._names.update(dict.fromkeys(walked.send))
        self._thin = self._thin and bool(walked.known)
        done: set[bytes] = set()
        for commit in reversed(walked.send):
            node = self._graph.get(commit)
            bases: list[bytes] = []
            if commit not in cut:
                there = (p for p in node.parents if p in done or p in walked.known)
                bases = [self._graph.get(parent).tree for parent in there]
            if node.tree not in bases:
                self._add_tree(node.tree, bases)
            done.add(commit)

    def add(self, name: bytes, kind: int) -> None:
        """Something asked for by name: sent whatever the filter says."""
        if kind == TREE:
            self._names[name] = None
            self._add_tree(name, [])
        else:
            self._names[name] = None

    def selected(self) -> Selected:
        return Selected(self._names.keys(), self._bases - self._names.keys())

    def _add_tree(self, root: bytes, bases: Sequence[bytes]) -> None:
        """A tree and what is below it, except what one of the base trees has at the same path."""
        most = self._filter.tree_depth
        todo: list[tuple[bytes, Sequence[bytes], int]] = [(root, bases, 0)]
        while todo:
            tree, bases, depth = todo.pop()
            key = tree if most is None else (tree, depth)
            if key in self._visited or (most is not None and depth >= most):
                continue
            self._visited.add(key)
            self._names[tree] = None
            if self._most is not None and len(self._names) > self._most:
                raise TooMany
            mine = self._entries(tree)
            theirs = [self._entries(base) for base in bases]
            new = mine.difference(*theirs)
            if self._thin:
                same = (entry[-_SHA:] for entry in mine - new if mode_of(entry) != GITLINK)
                self._bases.update(same)
                self._bases.update(bases)
            below = [_directories(base - mine) for base in theirs]
            for entry in new:
                mode = mode_of(entry)
                if mode == DIRECTORY:
                    beside = [base[entry[:-_SHA]] for base in below if entry[:-_SHA] in base]
                    todo.append((entry[-_SHA:], beside, depth + 1))
                elif mode != GITLINK:
                    self._add_blob(entry[-_SHA:], depth + 1)

    def _add_blob(self, name: bytes, depth: int) -> None:
        limit, most = self._filter.blob_bytes, self._filter.tree_depth
        if name in self._names or (most is not None and depth >= most):
            return
        if limit is not None:
            about = self._objects.info(name)
            if limit == 0 or about is None or about[1] >= limit:
                return
        self._names[name] = None

    def _entries(self, tree: bytes) -> frozenset[bytes]:
        found = self._trees.get(tree)
        if found is None:
            found = frozenset(raw_entries(self._objects.get(tree)[1]))
            self._trees[tree] = found
            self._cached += len(found)
            while self._cached > _ENTRIES_CACHED and len(self._trees) > 1:
                self._cached -= len(self._trees.popitem(last=False)[1])
        else:
            self._trees.move_to_end(tree)
        return found


def _directories(entries: Iterable[bytes]) -> dict[bytes, bytes]:
    """Mode and name -> tree, of those that are directories."""
    return {entry[:-_SHA]: entry[-_SHA:] for entry in entries if mode_of(entry) == DIRECTORY}
