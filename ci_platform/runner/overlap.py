"""Whether two layers of steps that ran at the same time can lie on one another.

Pure. A path that both changed, to different ends, is one too many: whichever came later would
undo the other's work unseen. Caches that tools keep for themselves are left out, since losing them
costs time and nothing else: `__pycache__`, and directories that say so with a CACHEDIR.TAG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

CACHE_TAG = "CACHEDIR.TAG"
DIRECTORY = "directory"
_DELETED = "deleted"
_BYTECODE = "__pycache__"


def file_end(mode: int, digest: str) -> str:
    """What a file is: its mode and content, not its times."""
    return f"{mode:o} {digest}"


def link_end(target: str) -> str:
    return f"link to {target}"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a layer does to a workspace."""

    written: Mapping[str, str]  # path -> what it becomes: equal texts are equal files
    deleted: Sequence[str]
    caches: Sequence[str]  # directories with a CACHEDIR.TAG that it changed something in

    def ends(self) -> dict[str, str]:
        """Each path that is touched -> what becomes of it."""
        return {**dict.fromkeys(self.deleted, _DELETED), **self.written}


def is_gone(path: str, gone: Set[str]) -> bool:
    """Whether a path went, by itself or with a directory above it."""
    if path in gone:
        return True
    at = path.find("/")
    while at != -1:
        if path[:at] in gone:
            return True
        at = path.find("/", at + 1)
    return False


def overlap(one: Listing, other: Listing) -> str | None:
    """The first path that both changed, each in its own way; None if there is none."""
    caches = frozenset([*one.caches, *other.caches])
    first, second = one.ends(), other.ends()
    found = [path for path in first.keys() & second.keys() if first[path] != second[path]]
    found += [*_inside(first, second), *_inside(second, first)]
    return min((path for path in found if not _cached(path, caches)), default=None)


def _inside(ends: Mapping[str, str], others: Mapping[str, str]) -> Iterable[str]:
    """Paths of `others` that are written where `ends` leaves no directory."""
    blocked = {path for path, end in ends.items() if end != DIRECTORY}
    for path, end in others.items():
        if end != _DELETED and any(parent in blocked for parent in _parents(path)):
            yield path


def cache_directories(paths: Iterable[str], there: Mapping[str, object]) -> list[str]:
    """Of the directories above `paths`, those with a tag, given all that is there."""
    above = {parent for path in paths for parent in _parents(path)}
    return sorted(parent for parent in above if f"{parent}/{CACHE_TAG}" in there)


def _cached(path: str, caches: frozenset[str]) -> bool:
    return any(one in caches or one.rpartition("/")[2] == _BYTECODE for one in _parents(path))


def _parents(path: str) -> Iterable[str]:
    at = path.find("/")
    while at != -1:
        yield path[:at]
        at = path.find("/", at + 1)
