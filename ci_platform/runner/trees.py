"""Checked-out trees, kept read-only: `trees/<tree id>` in the work directory.

Workspaces are overlays on top of one, or copies of it; a command never gets the cached tree itself,
nor a hard link into one. Workers of one machine share the cache; a lock on each tree keeps it from
being evicted while it is in use.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.limits import RunnerLimits
from ci_platform.runner.manifest import Manifest, scan
from ci_platform.runner.overlap import file_end, link_end
from ci_platform.runner.restore import remove
from ci_platform.runner.upper import Below
from ci_platform.shell import Trees

GIT = ".git"
TREES_MAX = 32
COMMITS_MAX = 1000
LISTINGS_MAX = 16  # held in memory
MARKS_MAX = 500_000  # held in memory for manifests, of all trees but the last
_SCRATCH_SECONDS_MAX = 86_400  # an export that took longer was left by a worker that died
_ATTEMPTS_MAX = 10
_EPOCH = 946_684_800  # 2000-01-01
_YEARS_10 = 10 * 365 * 86_400
_COPY_BYTES = 1 << 30
_ID = re.compile(r"[0-9a-f]{40,64}")


class TreeCache:
    def __init__(self, trees: Trees, directory: Path, *, trees_max: int = TREES_MAX) -> None:
        self._trees = trees
        self._directory = directory
        self._commits = directory / "commits"
        self._trees_max = trees_max
        self._lock = threading.Lock()
        self._listings: dict[str, Mapping[str, str]] = {}  # by tree id; oldest first
        self._manifests: dict[str, Manifest] = {}  # the same
        self._commits.mkdir(parents=True, exist_ok=True)
        for path in directory.glob("new-*"):
            if time.time() - path.stat().st_mtime > _SCRATCH_SECONDS_MAX:
                _remove_unused(path)

    def checkout(self, repository_id: str, commit: str, into: Path) -> None:
        """Copy the commit's tree to `into`, which exists and is empty."""
        for _ in range(_ATTEMPTS_MAX):
            tree = self._tree_of(repository_id, commit)
            if tree is None:
                tree = self._export(repository_id, commit)
            with self._held(tree) as found:
                if found is not None:
                    os.utime(found)
                    copy_tree(found, into)
                    return
            self._commit_file(repository_id, commit).unlink(missing_ok=True)  # it was evicted
        raise RunnerUnavailable(f"the tree of commit {commit} is evicted faster than copied")

    def below(self, repository_id: str, commit: str, limits: RunnerLimits) -> tuple[str, Below]:
        """The commit's tree, to lie under an overlay: its id, and the tree, which is not evicted
        before its descriptor is closed. Raises TooManyFiles."""
        for _ in range(_ATTEMPTS_MAX):
            tree = self._tree_of(repository_id, commit) or self._export(repository_id, commit)
            try:
                root = os.open(self._directory / tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._commit_file(repository_id, commit).unlink(missing_ok=True)  # it was evicted
                continue
            try:
                fcntl.flock(root, fcntl.LOCK_SH)
                os.utime(self._directory / tree)
                return tree, Below(root, self._manifest(tree, root, limits))
            except FileNotFoundError:  # evicted before it was locked
                os.close(root)
            except BaseException:
                os.close(root)
                raise
        raise RunnerUnavailable(f"the tree of commit {commit} is evicted faster than locked")

    def _manifest(self, tree: str, root: int, limits: RunnerLimits) -> Manifest:
        with self._lock:
            if tree in self._manifests:
                return self._manifests[tree]
        found = scan(root, limits)
        with self._lock:
            self._manifests[tree] = found
            while len(self._manifests) > 1 and self._marks() > MARKS_MAX:
                del self._manifests[next(iter(self._manifests))]
        return found

    def _marks(self) -> int:
        return sum(len(one.marks) for one in self._manifests.values())

    def history(self, repository_id: str, commit: str, root: int, *, depth: int) -> None:
        """Put a `.git` into a workspace in which nothing runs, instead of whatever is there."""
        scratch = Path(tempfile.mkdtemp(dir=self._directory, prefix="new-"))
        try:
            self._trees.history(repository_id, commit, scratch, depth=depth)
            remove(root, GIT)
            os.mkdir(GIT, 0o755, dir_fd=root)
            copy_tree(scratch / GIT, Path(f"/proc/self/fd/{root}/{GIT}"))
        finally:
            shutil.rmtree(scratch)

    def listing(self, repository_id: str, commit: str) -> Mapping[str, str]:
        """Every file and link of a commit's tree -> what it is, as in a layer's listing."""
        for _ in range(_ATTEMPTS_MAX):
            tree = self._tree_of(repository_id, commit) or self._export(repository_id, commit)
            found = self._listed(tree)
            if found is not None:
                return found
            self._commit_file(repository_id, commit).unlink(missing_ok=True)  # it was evicted
        raise RunnerUnavailable(f"the tree of commit {commit} is evicted faster than read")

    def _listed(self, tree: str) -> Mapping[str, str] | None:
        with self._lock:
            if tree in self._listings:
                return self._listings[tree]
        with self._held(tree) as path:
            if path is None:
                return None
            found = {os.path.relpath(one, path): _end(one) for one in _leaves(path)}
        with self._lock:
            self._listings[tree] = found
            while len(self._listings) > LISTINGS_MAX:
                del self._listings[next(iter(self._listings))]
        return found

    def _tree_of(self, repository_id: str, commit: str) -> str | None:
        try:
            return self._commit_file(repository_id, commit).read_text()
        except FileNotFoundError:
            return None

    def _commit_file(self, repository_id: str, commit: str) -> Path:
        """Per repository: what a commit id leads to must not depend on other tenants."""
        name = hashlib.sha256(f"{repository_id}\0{commit}".encode()).hexdigest()
        return self._commits / name

    def _export(self, repository_id: str, commit: str) -> str:
        scratch = Path(tempfile.mkdtemp(dir=self._directory, prefix="new-"))
        try:
            files = scratch / "files"
            files.mkdir()
            tree = self._trees.export(repository_id, commit, files)
            if _ID.fullmatch(tree) is None:
                raise RunnerUnavailable(f"commit {commit} has a tree with the bad id {tree!r}")
            _stamp(files, tree_mtime(tree))
            try:
                os.rename(files, self._directory / tree)
            except OSError:  # another worker was faster
                if not (self._directory / tree).is_dir():
                    raise
        finally:
            shutil.rmtree(scratch)
        note = scratch.with_name(f"{scratch.name}-commit")
        note.write_text(tree)
        os.replace(note, self._commit_file(repository_id, commit))
        self._evict(tree)
        return tree

    @contextmanager
    def _held(self, tree: str) -> Iterator[Path | None]:
        """Keep a tree from being evicted; None if it is not here any more."""
        path = self._directory / tree
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield path if path.is_dir() else None
        finally:
            os.close(fd)

    def clear(self) -> None:
        """Remove every tree that is not in use."""
        for path in _by_age(self._directory):
            if _ID.fullmatch(path.name):
                _remove_unused(path)

    def _evict(self, newest: str) -> None:
        """Remove the trees that were not used for longest, but for those in use."""
        for path in _by_age(self._commits)[COMMITS_MAX:]:
            path.unlink(missing_ok=True)
        for path in _by_age(self._directory)[self._trees_max :]:
            if _ID.fullmatch(path.name) and path.name != newest:
                _remove_unused(path)


def _remove_unused(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(fd)


def _by_age(directory: Path) -> list[Path]:
    """Most recently used first; what vanishes meanwhile is left out."""
    ages: list[tuple[float, Path]] = []
    for path in directory.iterdir():
        with suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(ages, reverse=True)]


def tree_mtime(tree: str) -> int:
    """The modification time of a tree's files: made from its id, and in the past.

    The same on every machine and at every step, so that make and Python's bytecode see unchanged
    files as unchanged after a restore; different for different trees, so that rsync does not
    take a changed file for the old one.
    """
    return _EPOCH + int(hashlib.sha256(tree.encode()).hexdigest()[:8], 16) % _YEARS_10


def copy_tree(source: Path, into: Path) -> None:
    """Copy directories, files and links with modes and times."""
    for directory, names, files in os.walk(source):
        target = into / os.path.relpath(directory, source)
        for name in [name for name in names if os.path.islink(os.path.join(directory, name))]:
            names.remove(name)
            files.append(name)
        for name in names:
            os.mkdir(target / name, 0o755)
        for name in files:
            _copy(os.path.join(directory, name), os.path.join(target, name))


def _leaves(directory: Path) -> Iterator[str]:
    """All files, and links to whatever."""
    for parent, names, files in os.walk(directory):
        links = [name for name in names if os.path.islink(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in (*links, *files))


def _end(path: str) -> str:
    """What a file is, in the words of layers.py."""
    if os.path.islink(path):
        return link_end(os.readlink(path))
    with open(path, "rb") as file:
        mode = 0o755 if os.fstat(file.fileno()).st_mode & 0o100 else 0o644
        return file_end(mode, hashlib.file_digest(file, "sha256").hexdigest())


def _copy(source: str, target: str) -> None:
    found = os.lstat(source)
    times = (found.st_atime_ns, found.st_mtime_ns)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        os.utime(target, ns=times, follow_symlinks=False)
        return
    with open(source, "rb") as read, open(target, "xb") as write:
        os.fchmod(write.fileno(), 0o755 if found.st_mode & 0o100 else 0o644)
        try:  # shares the blocks where the file system can
            while os.copy_file_range(read.fileno(), write.fileno(), _COPY_BYTES):
                pass
        except OSError:
            read.seek(write.seek(0, os.SEEK_CUR))
            shutil.copyfileobj(read, write)
            write.flush()
        os.utime(write.fileno(), ns=times)


def _stamp(files: Path, mtime: int) -> None:
    """Give everything the modes and times it has in every workspace, on every machine."""
    files.chmod(0o755)
    for directory, names, leaves in os.walk(files):
        for name in (*names, *leaves):
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode):
                wanted = 0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644
                os.chmod(path, wanted)
            os.utime(path, (mtime, mtime), follow_symlinks=False)
