"""Where the history a client gets is cut off: depth, since, not, relative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from git_store.errors import ProtocolError
from git_store.graph import Graph

INFINITE = 0x7FFFFFFF  # what `git fetch --unshallow` asks for


@dataclass(frozen=True, slots=True)
class Deepen:
    """What a client asks for; None and empty: not at all."""

    depth: int | None = None
    relative: bool = False  # depth counts from the client's present boundary
    since: int | None = None
    excluded: Sequence[bytes] = ()  # commits of deepen-not

    @property
    def asked(self) -> bool:
        return self.depth is not None or self.since is not None or bool(self.excluded)


@dataclass(frozen=True, slots=True)
class Boundary:
    cut: frozenset[bytes] = frozenset()  # commits the client shall have without their parents
    opened: frozenset[bytes] = frozenset()  # commits it had so, whose parents it gets now


def boundary(
    graph: Graph, deepen: Deepen, tips: Iterable[bytes], client: frozenset[bytes]
) -> Boundary:
    """The new boundary of a client whose present one is `client`. Raises ProtocolError."""
    if deepen.depth is not None:
        if deepen.since is not None or deepen.excluded:
            raise ProtocolError("deepen and deepen-since (or deepen-not) cannot be used together")
        if deepen.depth >= INFINITE:
            return Boundary(frozenset(), client)
        if deepen.relative:  # a client that has everything has nothing to count from
            return _by_depth(graph, dict.fromkeys(client, 0), deepen.depth, client)
        return _by_depth(graph, dict.fromkeys(tips, 1), deepen.depth, client)
    return _by_time(graph, deepen, tips, client)


def _by_depth(
    graph: Graph, starts: dict[bytes, int], depth: int, client: frozenset[bytes]
) -> Boundary:
    """Breadth first, so a commit is first seen at its least depth."""
    found = dict(starts)
    todo = list(starts)
    while todo:
        following: list[bytes] = []
        for commit in todo:
            at = found[commit]
            if at >= depth:
                continue
            for parent in graph.get(commit).parents:
                if parent not in found:
                    found[parent] = at + 1
                    following.append(parent)
        todo = following
    cut = {commit for commit, at in found.items() if at >= depth and graph.get(commit).parents}
    inside = {commit for commit, at in found.items() if at < depth}
    return Boundary(frozenset(cut), client & inside)


def _by_time(
    graph: Graph, deepen: Deepen, tips: Iterable[bytes], client: frozenset[bytes]
) -> Boundary:
    excluded = set(graph.newest_first(deepen.excluded))

    def outside(commit: bytes) -> bool:
        too_old = deepen.since is not None and graph.get(commit).time < deepen.since
        return too_old or commit in excluded

    todo = [commit for commit in tips if not outside(commit)]
    if not todo:
        raise ProtocolError("no commits selected for shallow requests")
    seen: set[bytes] = set()
    cut: set[bytes] = set()
    while todo:
        commit = todo.pop()
        if commit in seen:
            continue
        seen.add(commit)
        parents = graph.get(commit).parents
        if any(outside(parent) for parent in parents):
            cut.add(commit)
        todo += [parent for parent in parents if not outside(parent)]
    return Boundary(frozenset(cut), client & (seen - cut))
