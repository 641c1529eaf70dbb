"""What is in a workspace, and what a command changed: sizes and times, never contents.

A file counts as unchanged only if its change time and inode are the same too: a command can set a
modification time back, but not those. Walks by file descriptor and follows no link, so it may
look at a workspace while a command runs in it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ci_platform.runner.beneath import open_beneath, open_directory
from ci_platform.runner.limits import RunnerLimits, over_files

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE: the clock file times are taken from
_TICK_SECONDS_MAX = 0.05


class TooManyFiles(Exception):
    """The workspace holds more entries, or a longer path, than allowed."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Everything of a file that tells whether it was touched."""

    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    links: int
    weight: int = field(compare=False)  # see `weight`: blocks are given out late


@dataclass(frozen=True, slots=True)
class Manifest:
    marks: Mapping[str, Mark]  # path below the workspace -> its mark
    plain: bool  # only files, directories and links, all readable: fit to be used again
    newest_ns: int  # the newest change time
    total_bytes: int  # see `weight`
    # Of all this, what lies in a cached tree below the workspace and takes no space in it.
    below_bytes: int = 0
    below_files: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    written: Sequence[str]  # new or changed, sorted
    deleted: Sequence[str]  # sorted; what was below a deleted directory is left out

    def __bool__(self) -> bool:
        return bool(self.written or self.deleted)


def scan(root: int, limits: RunnerLimits) -> Manifest:
    """List a workspace in which nothing runs. Raises TooManyFiles."""
    marks: dict[str, Mark] = {}
    plain, newest, total = True, 0, 0
    for path, found, readable in walk(root, force=True):
        if len(marks) >= limits.files:
            raise TooManyFiles(over_files(len(marks) + 1, limits).detail)
        kind = stat.S_IFMT(found.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            plain = False
            continue
        plain = plain and readable and not found.st_mode & (stat.S_ISUID | stat.S_ISGID)
        mark = marks[path] = mark_of(found)
        newest, total = max(newest, found.st_ctime_ns), total + mark.weight
    return Manifest(marks, plain, newest, total)


def mark_of(found: os.stat_result) -> Mark:
    return Mark(
        found.st_mode,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_ino,
        found.st_nlink,
        weight(found),
    )


def weight(found: os.stat_result) -> int:
    """What a file costs: its size or its blocks, because either may be far above the other in a
    sparse or a preallocated file. A file with several names counts its share for each."""
    size = max(found.st_size, found.st_blocks * 512)
    return size // max(1, found.st_nlink) if stat.S_ISREG(found.st_mode) else size


def compare(before: Manifest, after: Manifest) -> Changes:
    """What must be written and deleted to come from one to the other."""
    written = [path for path, mark in after.marks.items() if _differs(before.marks.get(path), mark)]
    deleted: list[str] = []
    for path in sorted(path for path in before.marks if path not in after.marks):
        if not (deleted and path.startswith(deleted[-1] + "/")):
            deleted.append(path)
    return Changes(sorted(written), deleted)


def without(changes: Changes, name: str) -> Changes:
    """The changes outside one directory of the top."""

    def outside(path: str) -> bool:
        return path != name and not path.startswith(f"{name}/")

    return Changes(
        [path for path in changes.written if outside(path)],
        [path for path in changes.deleted if outside(path)],
    )


def wait_for_tick(manifest: Manifest) -> None:
    """Let the file clock move past the newest change, so that the next one is told apart.

    File times have the resolution of the timer tick. Without this, a file changed in the tick in
    which it was checked out, to content of the same size, would look untouched.
    """
    deadline = time.monotonic() + _TICK_SECONDS_MAX
    while (
        time.clock_gettime_ns(_COARSE_CLOCK) <= manifest.newest_ns and time.monotonic() < deadline
    ):
        time.sleep(0.001)


def walk(
    root: int, *, force: bool = False, opener: int | None = None
) -> Iterator[tuple[str, os.stat_result, bool]]:
    """Every entry: path, lstat, and whether it is a directory that could not be read as it was.

    With `force`, unreadable directories are opened up (their owner, and only that, may do so), by
    way of the directory `opener` if that shows the same ones; without, they and whatever vanishes
    meanwhile are left out. Raises TooManyFiles for paths the
    kernel cannot open.
    """
    by = root if opener is None else opener
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        try:
            fd = open_directory(root, directory)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise TooManyFiles("A path in the workspace is longer than 4,095 bytes.") from error
            if not force and error.errno in (*_GONE, errno.EACCES):
                continue
            raise
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    path = f"{directory}/{entry.name}" if directory else entry.name
                    readable = True
                    if stat.S_ISDIR(found.st_mode):
                        readable = not force or _opened_up(by, path, found)
                        waiting.append(path)
                    yield path, found, readable
        finally:
            os.close(fd)


def _opened_up(root: int, path: str, found: os.stat_result) -> bool:
    """Make a directory readable to its owner; True if it was."""
    needed = stat.S_IRUSR | stat.S_IXUSR
    if found.st_mode & needed == needed or os.geteuid() == 0:
        return True
    chmod_beneath(root, path, stat.S_IMODE(found.st_mode) | stat.S_IRWXU)
    return False


def chmod_beneath(root: int, path: str, mode: int) -> None:
    """Change a mode by path; also of what may not be opened. Never through a link."""
    fd = open_beneath(root, path, os.O_PATH)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _differs(before: Mark | None, after: Mark) -> bool:
    if before is None:
        return True
    if stat.S_ISDIR(after.mode):  # its times change with every entry; its entries say that
        return before.mode != after.mode
    return before is not after and before != after
