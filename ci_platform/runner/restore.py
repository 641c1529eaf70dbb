"""Writing the members of a layer below a workspace, and nowhere else.

The archive is not trusted: absolute and `..` paths, devices and links out of the layer are errors,
every directory is opened without following a link, and set-uid bits are dropped.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tarfile
from typing import IO, cast

from ci_platform.runner.beneath import open_directory

MEMBERS_MAX = 1_000_000  # of one layer
TOP = "."  # always the first member: a header that no member follows cannot be read
_COPY_BYTES = 1 << 20


def apply(archive: tarfile.TarFile, root: int, modes: dict[str, int]) -> None:
    """Write an archive's members below `root`. Raises ValueError for one that would leave it.

    Modes of directories are only noted in `modes`: a directory without write permission could
    not be filled.
    """
    place = _Place(root)
    try:
        deleted = archive.pax_headers.get("SLUICE.deleted", "[]")
        for path in cast(list[str], json.loads(deleted)):
            place.delete(_checked(path))
            for below in [key for key in modes if key == path or key.startswith(path + "/")]:
                del modes[below]
        for count, member in enumerate(archive, 1):
            if count > MEMBERS_MAX:
                raise ValueError(f"it has more than {MEMBERS_MAX} members")
            _restore(archive, member, place, modes)
    finally:
        place.close()


def _restore(
    archive: tarfile.TarFile, member: tarfile.TarInfo, place: _Place, modes: dict[str, int]
) -> None:
    if member.name == TOP and member.isdir():
        return
    path = _checked(member.name)
    if member.isdir():
        place.directory(path)
        modes[path] = member.mode & 0o777
        return
    modes.pop(path, None)
    if member.issym():
        place.link(path, member.linkname)
    elif member.islnk():
        place.hard_link(path, _checked(member.linkname))
    elif member.isreg():
        content = archive.extractfile(member)
        assert content is not None, "a regular member has content"
        place.file(path, content, mode=member.mode & 0o777, mtime=int(member.mtime))
    else:
        raise ValueError(f"{path!r} is a device, socket or unknown kind of member")


def _checked(path: str) -> str:
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is not a path inside the workspace")
    return path


class _Place:
    """Writes below one directory, replacing what stands in the way, following no link.

    Layers of parallel steps do not know of each other's deletions, so parents may be missing.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._parent = -1
        self._parent_path: str | None = None
        self._written: set[str] = set()

    def close(self) -> None:
        if self._parent_path is not None:
            os.close(self._parent)
            self._parent_path = None

    def delete(self, path: str) -> None:
        directory, _, name = path.rpartition("/")
        try:
            parent = open_directory(self._root, directory)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # deleted before, by another layer
            raise
        try:
            remove(parent, name)
        finally:
            os.close(parent)

    def directory(self, path: str) -> None:
        parent, name = self._enter(path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)

    def link(self, path: str, target: str) -> None:
        parent, name = self._enter(path)
        remove(parent, name)
        os.symlink(target, name, dir_fd=parent)

    def hard_link(self, path: str, target: str) -> None:
        if target not in self._written:
            raise ValueError(f"{path!r} is a link to {target!r}, which is not in the layer")
        directory, _, target_name = target.rpartition("/")
        source = open_directory(self._root, directory)
        try:
            parent, name = self._enter(path)
            remove(parent, name)
            os.link(target_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def file(self, path: str, content: IO[bytes], *, mode: int, mtime: int) -> None:
        parent, name = self._enter(path)
        remove(parent, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        with os.fdopen(fd, "wb") as target:
            shutil.copyfileobj(content, target, _COPY_BYTES)
            target.flush()
            os.fchmod(fd, mode)
            os.utime(fd, (mtime, mtime))
        self._written.add(path)

    def _enter(self, path: str) -> tuple[int, str]:
        """The parent directory of a path, made if need be, and the name in it."""
        directory, _, name = path.rpartition("/")
        if directory != self._parent_path:
            parent = self._open_or_make(directory)
            self.close()
            self._parent, self._parent_path = parent, directory
        return self._parent, name

    def _open_or_make(self, directory: str) -> int:
        try:
            return open_directory(self._root, directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        made = ""
        for part in directory.split("/"):
            made = f"{made}/{part}" if made else part
            self.close()
            self.directory(made)
        return open_directory(self._root, directory)


def remove(parent: int, name: str) -> None:
    """Remove whatever stands at a name."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # Linux says EISDIR, POSIX says EPERM
        shutil.rmtree(name, dir_fd=parent)
