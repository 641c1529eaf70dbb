"""The graph of commits of one repository, parsed once per request: parents, tree, time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from git_store.errors import ObjectNotFound
from git_store.objects import Objects
from git_store.packfile import COMMIT, commit_time, references

_CLOCK_SKEW_SECONDS = 86_400  # how much older than its parent a commit may claim to be


@dataclass(frozen=True, slots=True)
class Node:
    tree: bytes
    parents: tuple[bytes, ...]
    time: int  # seconds


class Graph:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._nodes: dict[bytes, Node] = {}

    def get(self, commit: bytes) -> Node:
        """Raises ObjectNotFound if it is not here or no commit."""
        node = self._nodes.get(commit)
        if node is None:
            kind, content = self._objects.get(commit)
            if kind != COMMIT:
                raise ObjectNotFound(f"{commit.hex()} is not a commit")
            tree, *parents = references(kind, content)
            node = Node(tree, tuple(parents), commit_time(content))
            self._nodes[commit] = node
        return node

    def newest_first(self, starts: Iterable[bytes]) -> Iterator[bytes]:
        """The commits and their ancestors, each once, newest first by commit time."""
        seen = set(starts)
        heap = [(-self.get(commit).time, commit) for commit in seen]
        heapq.heapify(heap)
        while heap:
            _, commit = heapq.heappop(heap)
            yield commit
            for parent in self.get(commit).parents:
                if parent not in seen:
                    seen.add(parent)
                    heapq.heappush(heap, (-self.get(parent).time, parent))

    def reaches(self, starts: Iterable[bytes], commit: bytes) -> bool:
        """True if `commit` is one of the starts or of their ancestors."""
        return not self.unreached(starts, {commit})

    def unreached(self, starts: Iterable[bytes], wanted: Iterable[bytes]) -> set[bytes]:
        """Those of the wanted commits that are not among the starts and their ancestors."""
        missing = set(wanted)
        if not missing:
            return missing
        floor = min(self.get(commit).time for commit in missing) - _CLOCK_SKEW_SECONDS
        todo, seen = list(starts), set[bytes]()
        while todo and missing:
            commit = todo.pop()
            if commit in seen:
                continue
            seen.add(commit)
            missing.discard(commit)
            node = self.get(commit)
            if node.time >= floor:
                todo += node.parents
        return missing
