"""What is in a workspace that is an overlay: the cached tree below, and the directory of changes.

Reads the changes only, so looking costs what a command touched and not what the commit holds. What
comes out is the manifest that a copied workspace would give. Used by `workspaces.py`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from ci_platform.runner.beneath import open_directory, open_file
from ci_platform.runner.limits import RunnerLimits, over_files
from ci_platform.runner.manifest import Manifest, Mark, TooManyFiles, mark_of, walk
from ci_platform.runner.overlap import is_gone

# As root, and in a user namespace. Commands can set neither: the kernel hides them in an overlay.
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_COMPARE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Below:
    """The cached tree that an overlay lies on. Nobody writes to it."""

    root: int  # descriptor of its directory, locked against eviction
    manifest: Manifest


@dataclass(slots=True)
class _Changes:
    marks: dict[str, Mark]
    gone: set[str]  # of the tree below: these, and what was below them
    plain: bool = True
    newest_ns: int = 0
    total_bytes: int = 0


def scan_upper(upper: int, merged: int, below: Below, limits: RunnerLimits) -> Manifest:
    """List an overlay in which nothing runs. Raises TooManyFiles."""
    found = _changes(upper, merged, below, limits)
    lower = below.manifest
    marks = _left(lower.marks, found.gone)
    covered = sum(marks[path].weight for path in found.marks if path in marks)
    below_bytes = sum(mark.weight for mark in marks.values()) if found.gone else lower.total_bytes
    below_files = len(marks) - sum(path in marks for path in found.marks)
    marks |= found.marks
    if len(marks) > limits.files:
        raise TooManyFiles(over_files(len(marks), limits).detail)
    return Manifest(
        marks,
        found.plain and lower.plain,
        max(found.newest_ns, lower.newest_ns),
        below_bytes - covered + found.total_bytes,
        below_bytes=below_bytes - covered,
        below_files=below_files,
    )


def _left(marks: Mapping[str, Mark], gone: set[str]) -> dict[str, Mark]:
    """What can still be seen of the tree below."""
    directories = {path for path in gone if stat.S_ISDIR(marks[path].mode)}
    if not directories:
        return {path: mark for path, mark in marks.items() if path not in gone}
    return {path: mark for path, mark in marks.items() if not is_gone(path, gone)}


def _changes(upper: int, merged: int, below: Below, limits: RunnerLimits) -> _Changes:
    found = _Changes({}, set())
    known = below.manifest.marks
    for count, (path, entry, readable) in enumerate(walk(upper, force=True, opener=merged), 1):
        if count > limits.files:
            raise TooManyFiles(over_files(count, limits).detail)
        kind, old = stat.S_IFMT(entry.st_mode), known.get(path)
        replaced = kind != stat.S_IFDIR or _opaque(upper, path) if old is not None else False
        if replaced:
            found.gone.add(path)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            found.plain = found.plain and is_whiteout(entry)
            continue
        mark = mark_of(entry)
        if old is not None and kind == stat.S_IFREG and _same(upper, path, below, old, mark):
            mark = old  # the kernel copies a file up when it is opened for writing
        found.plain = found.plain and readable and not entry.st_mode & (stat.S_ISUID | stat.S_ISGID)
        found.newest_ns = max(found.newest_ns, entry.st_ctime_ns)
        found.total_bytes += mark.weight
        found.marks[path] = mark
    return found


def is_whiteout(entry: os.stat_result) -> bool:
    """Whether an entry only says that the one below is deleted."""
    return stat.S_ISCHR(entry.st_mode) and entry.st_rdev == 0


def _opaque(upper: int, path: str) -> bool:
    """Whether a directory replaces the one below instead of adding to it."""
    fd = open_directory(upper, path)
    try:
        names = os.listxattr(fd)
        return any(name in names and os.getxattr(fd, name) == b"y" for name in _OPAQUE)
    finally:
        os.close(fd)


def _same(upper: int, path: str, below: Below, old: Mark, new: Mark) -> bool:
    """Whether a file is what it was. Its times alone do not say so: a command can set them."""
    if (old.mode, old.size, old.mtime_ns) != (new.mode, new.size, new.mtime_ns):
        return False
    if new.links > 1:  # a name that was added to it belongs to the same layer
        return False
    try:
        with (
            os.fdopen(open_file(upper, path), "rb") as one,
            os.fdopen(open_file(below.root, path), "rb") as other,
        ):
            while data := one.read(_COMPARE_BYTES):
                if data != other.read(_COMPARE_BYTES):
                    return False
    except PermissionError:  # closed to its owner, as no file of a commit is
        return False
    return True
